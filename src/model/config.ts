import { AlpsError, describe } from '../errors.js';

export type RopeScaling =
  | { type: 'none' }
  | { type: 'linear'; factor: number }
  | { type: 'llama3'; factor: number; lowFrequency: number; highFrequency: number; originalPositions: number }
  | { type: 'longrope'; short: number[]; long: number[]; originalPositions: number; attentionFactor: number }
  /** Frequencies below the `low`-th stay, those from the `high`-th on are stretched, those between are blended. */
  | { type: 'yarn'; factor: number; low: number; high: number; attentionFactor: number };

/** Rotary positions on the first `dimensions` of each head. */
export interface Rope {
  theta: number;
  scaling: RopeScaling;
  dimensions: number;
}

/** What a family's rotary positions differ in. */
export interface RopeOptions {
  maxPositions: number;
  /** The base where config.json has none; default 10000. */
  theta?: number;
  /** The key at the top level that holds it; default `rope_theta`. */
  thetaKey?: string;
  /** Of one of several kinds of layers; default: the one object that config.json has for all. */
  parameters?: Readonly<Record<string, unknown>>;
  /** Whether `partial_rotary_factor` counts. */
  partial?: boolean;
  /** What goes before an `original_max_position_embeddings` that is not at the top level. */
  originalPositions?: number;
  /** Whether `yarn` is another name of `longrope`. */
  yarnIsLongrope?: boolean;
}

export type Activation = 'silu' | 'gelu' | 'gelu_tanh' | 'relu';

/** A mixture of experts in place of the MLP. */
export interface ExpertsConfig {
  count: number;
  /** Experts that each token goes to. */
  perToken: number;
  intermediate: number;
  /** Whether a token's weights are softmax values over its own experts (else over all). */
  normalise: boolean;
  /** Whether a layer has experts, not one MLP. */
  layers: boolean[];
}

/** The shape of a decoder, from config.json. */
export interface DecoderConfig {
  modelType: string;
  hidden: number;
  intermediate: number;
  layers: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  vocabulary: number;
  maxPositions: number;
  /** `rms` has a weight, to which `normOffset` is added; `layer` has a weight and a bias. */
  norm: 'rms' | 'layer';
  normEps: number;
  normOffset: number;
  /** Where norms stand: before attention and MLP; after the residual sums; or before, and on what is added. */
  normPlacement: 'pre' | 'post' | 'sandwich';
  /** Gated: activation(gate) ∘ up. Plain: activation(up). */
  mlp: 'gated' | 'plain';
  activation: Activation;
  experts?: ExpertsConfig;
  /** Kinds of rotary positions; empty for learned positions. */
  ropes: Rope[];
  /** Each layer's place in `ropes`. */
  ropeOf: number[];
  /** What attention scores are multiplied by. */
  attentionScale: number[];
  /** Scores and logits become cap · tanh(x / cap); 0 for none. */
  attentionSoftCap: number;
  logitSoftCap: number;
  /** RMSNorm of each head's queries and keys. */
  qkNorm: boolean;
  /** Sliding window of each layer's attention; 0 for none. */
  slidingWindow: number[];
  /** What embeddings are multiplied by. */
  embeddingScale: number;
  /** Columns of the embedding table; other than `hidden` where there are projections in and out. */
  embeddingSize: number;
  /** Whether the output head is the embedding table. */
  tiedEmbeddings: boolean;
}

/** What most decoders have. */
export const usualConfig = {
  norm: 'rms',
  normOffset: 0,
  normPlacement: 'pre',
  mlp: 'gated',
  attentionSoftCap: 0,
  logitSoftCap: 0,
  qkNorm: false,
  embeddingScale: 1,
} as const satisfies Partial<DecoderConfig>;

/** Layers or experts, at most: a number in a file must not make lists without bound. */
const mostInAList = 2 ** 16;

/** Reads values of config.json; each complaint names the key. */
export class ConfigReader {
  readonly config: Readonly<Record<string, unknown>>;

  constructor(config: Readonly<Record<string, unknown>>) {
    this.config = config;
  }

  #invalid(key: string, what: string, value: unknown): AlpsError {
    return new AlpsError('INVALID_CHECKPOINT', `config.json: expected ${what} for ${key} but found ${describe(value)}`);
  }

  /** A positive integer; `fallback` when the key is absent or null. */
  size(key: string, fallback?: number): number {
    const value = this.config[key] ?? fallback;
    if (!Number.isSafeInteger(value) || (value as number) < 1 || (value as number) > 2 ** 40) {
      throw this.#invalid(key, 'a positive integer', value);
    }
    return value as number;
  }

  /** How many there are of something of which a list is made: {@link size}, and no more than any model has. */
  count(key: string, fallback?: number): number {
    const value = this.size(key, fallback);
    if (value > mostInAList) throw this.#invalid(key, `at most ${mostInAList}`, value);
    return value;
  }

  positive(key: string, fallback?: number, from: Readonly<Record<string, unknown>> = this.config): number {
    const value = from[key] ?? fallback;
    if (typeof value !== 'number' || !(value > 0 && Number.isFinite(value)))
      throw this.#invalid(key, 'a positive number', value);
    return value;
  }

  flag(key: string, fallback: boolean, from: Readonly<Record<string, unknown>> = this.config): boolean {
    const value = from[key] ?? fallback;
    if (typeof value !== 'boolean') throw this.#invalid(key, 'true or false', value);
    return value;
  }

  /** An object; empty when the key is absent or null. */
  object(key: string, from: Readonly<Record<string, unknown>> = this.config): Readonly<Record<string, unknown>> {
    const value = from[key] ?? {};
    if (typeof value !== 'object' || Array.isArray(value)) throw this.#invalid(key, 'an object', value);
    return value as Record<string, unknown>;
  }

  activation(key: string, fallback: string): Activation {
    const names: Record<string, Activation> = {
      silu: 'silu',
      swish: 'silu',
      gelu: 'gelu',
      gelu_python: 'gelu',
      gelu_accurate: 'gelu_tanh',
      gelu_fast: 'gelu_tanh',
      gelu_new: 'gelu_tanh',
      gelu_python_tanh: 'gelu_tanh',
      gelu_pytorch_tanh: 'gelu_tanh',
      relu: 'relu',
    };
    const value = this.config[key] ?? fallback;
    const found = typeof value === 'string' && Object.hasOwn(names, value) ? names[value] : undefined;
    if (!found)
      throw new AlpsError(
        'UNSUPPORTED_MODEL',
        `config.json: the activation ${describe(value)} (${key}) is not supported`,
      );
    return found;
  }

  /** A list of layers' numbers; empty when the key is absent or null. */
  layerNumbers(key: string): number[] {
    const value = this.config[key] ?? [];
    if (!Array.isArray(value) || !value.every(Number.isSafeInteger))
      throw this.#invalid(key, 'a list of integers', value);
    return value;
  }

  /** A list of strings, or undefined when the key is absent or null. */
  names(key: string): string[] | undefined {
    const value = this.config[key] ?? undefined;
    if (value === undefined) return undefined;
    if (!Array.isArray(value) || !value.every((name) => typeof name === 'string'))
      throw this.#invalid(key, 'a list of strings', value);
    return value;
  }

  /** A sliding window where `types` (or `otherwise`, for files without them) has one. */
  slidingWindows(
    layers: number,
    otherwise: (layer: number) => boolean,
    { usual, types }: { usual?: number; types?: readonly string[] } = {},
  ): number[] {
    const { sliding_window: window = usual } = this.config;
    if (window === undefined || window === null) return new Array(layers).fill(0);
    const size = this.size('sliding_window', usual);
    const slides = (layer: number) => (types ? types[layer] === 'sliding_attention' : otherwise(layer));
    return Array.from({ length: layers }, (_, layer) => (slides(layer) ? size : 0));
  }

  /** Rotary positions, in the spelling `rope_theta` + `rope_scaling`, which goes before the other, or `rope_parameters`. */
  rope(headDim: number, options: RopeOptions): Rope {
    const { theta: usual = 10000, thetaKey = 'rope_theta', partial = false } = options;
    const scaling = this.object('rope_scaling');
    const all = Object.keys(scaling).length > 0 ? scaling : this.object('rope_parameters');
    const { parameters = all } = options;
    const theta = this.positive('rope_theta', this.positive(thetaKey, usual), parameters);
    const part = partial
      ? this.positive('partial_rotary_factor', this.positive('partial_rotary_factor', 1), parameters)
      : 1;
    const dimensions = Math.floor(headDim * part);
    if (dimensions % 2 !== 0 || dimensions > headDim)
      throw this.#invalid('head_dim', 'an even number of rotary dimensions', dimensions);
    return { theta, dimensions, scaling: this.#ropeScaling(parameters, { theta, dimensions }, options) };
  }

  #ropeScaling(
    parameters: Readonly<Record<string, unknown>>,
    { theta, dimensions }: { theta: number; dimensions: number },
    options: RopeOptions,
  ): RopeScaling {
    const { maxPositions } = options;
    const type = parameters.rope_type ?? parameters.type ?? 'default';
    // Dynamic differs from the default beyond max_position_embeddings alone, where no window goes.
    if (type === 'default' || type === 'dynamic') return { type: 'none' };
    if (type === 'linear') return { type, factor: this.positive('factor', undefined, parameters) };
    if (type === 'llama3') {
      return {
        type,
        factor: this.positive('factor', undefined, parameters),
        lowFrequency: this.positive('low_freq_factor', undefined, parameters),
        highFrequency: this.positive('high_freq_factor', undefined, parameters),
        originalPositions: this.#originalPositions(parameters, options),
      };
    }
    if (type === 'longrope' || (type === 'yarn' && options.yarnIsLongrope)) {
      const factors = (key: string) => {
        const list = parameters[key];
        if (
          !Array.isArray(list) ||
          list.length !== dimensions / 2 ||
          !list.every((f) => typeof f === 'number' && f > 0)
        )
          throw this.#invalid(key, `a list of ${dimensions / 2} positive numbers`, list);
        return list as number[];
      };
      const originalPositions = this.#originalPositions(parameters, options);
      const stretch = this.positive('factor', maxPositions / originalPositions, parameters);
      const usual = stretch > 1 ? Math.sqrt(1 + Math.log(stretch) / Math.log(originalPositions)) : 1;
      return {
        type: 'longrope',
        short: factors('short_factor'),
        long: factors('long_factor'),
        originalPositions,
        attentionFactor: this.positive('attention_factor', usual, parameters),
      };
    }
    if (type === 'yarn') return this.#yarn(parameters, { theta, dimensions }, options);
    throw new AlpsError(
      'UNSUPPORTED_MODEL',
      `config.json: the rope_type ${describe(type)} is not supported (default, linear, dynamic, llama3, longrope, yarn are)`,
    );
  }

  /** By the YaRN paper, section 3.2: a frequency that turns often within the original positions stays. */
  #yarn(
    parameters: Readonly<Record<string, unknown>>,
    { theta, dimensions }: { theta: number; dimensions: number },
    options: RopeOptions,
  ): RopeScaling {
    const originalPositions = this.#originalPositions(parameters, options);
    const factor = this.positive('factor', options.maxPositions / originalPositions, parameters);
    // The place of the frequency that turns so often, in whole numbers unless `truncate` is false.
    const placeOf = (turns: number) =>
      (dimensions * Math.log(originalPositions / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
    const first = placeOf(this.positive('beta_fast', 32, parameters));
    const last = placeOf(this.positive('beta_slow', 1, parameters));
    const isWhole = this.flag('truncate', true, parameters);
    const low = Math.max(isWhole ? Math.floor(first) : first, 0);
    const high = Math.min(isWhole ? Math.ceil(last) : last, dimensions - 1);
    const growth = (scale = 1) => (factor > 1 ? 0.1 * scale * Math.log(factor) + 1 : 1);
    const scale = (key: string) => growth(this.positive(key, undefined, parameters));
    const usual = parameters.mscale && parameters.mscale_all_dim ? scale('mscale') / scale('mscale_all_dim') : growth();
    return {
      type: 'yarn',
      factor,
      low,
      high: low === high ? high + 0.001 : high,
      attentionFactor: this.positive('attention_factor', usual, parameters),
    };
  }

  /** The positions that a model had before it was stretched; as in transformers the top level goes first, but not for a kind of layers. */
  #originalPositions(
    parameters: Readonly<Record<string, unknown>>,
    { maxPositions, originalPositions, parameters: ofKind }: RopeOptions,
  ): number {
    const key = 'original_max_position_embeddings';
    const inner = originalPositions ?? this.positive(key, maxPositions, parameters);
    return ofKind ? inner : this.positive(key, inner);
  }
}
