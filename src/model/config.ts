import { AlpsError, describe } from '../errors.js';

export type RopeScaling =
  | { type: 'none' }
  | { type: 'linear'; factor: number }
  | { type: 'llama3'; factor: number; lowFrequency: number; highFrequency: number; originalPositions: number }
  | { type: 'longrope'; short: number[]; long: number[]; originalPositions: number; attentionFactor: number };

/** Rotary positions on the first `dimensions` of each head. */
export interface Rope {
  theta: number;
  scaling: RopeScaling;
  dimensions: number;
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

  flag(key: string, fallback: boolean): boolean {
    const value = this.config[key] ?? fallback;
    if (typeof value !== 'boolean') throw this.#invalid(key, 'true or false', value);
    return value;
  }

  activation(key: string, fallback: string): Activation {
    const names: Record<string, Activation> = {
      silu: 'silu',
      swish: 'silu',
      gelu: 'gelu',
      gelu_fast: 'gelu_tanh',
      gelu_new: 'gelu_tanh',
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

  /** A sliding window where `layer_types` (or `otherwise`, for files without it) has one. */
  slidingWindows(layers: number, otherwise: (layer: number) => boolean, usual?: number): number[] {
    const { sliding_window: window = usual } = this.config;
    if (window === undefined || window === null) return new Array(layers).fill(0);
    const size = this.size('sliding_window', usual);
    const types = this.names('layer_types');
    const slides = (layer: number) => (types ? types[layer] === 'sliding_attention' : otherwise(layer));
    return Array.from({ length: layers }, (_, layer) => (slides(layer) ? size : 0));
  }

  /**
   * Rotary positions, in the spelling `rope_theta` + `rope_scaling` or `rope_parameters`.
   * @param options.kind the key in `rope_parameters` where it has several
   */
  rope(headDim: number, options: { theta?: number; kind?: string } = {}): Rope {
    const all = this.config.rope_parameters ?? this.config.rope_scaling ?? {};
    const nested = options.kind ? ((all as Record<string, unknown>)[options.kind] ?? all) : all;
    if (typeof nested !== 'object' || nested === null || Array.isArray(nested))
      throw this.#invalid('rope_scaling', 'an object', nested);
    const parameters = nested as Record<string, unknown>;
    const { theta: fallback = 10000 } = options;
    const theta = this.positive('rope_theta', (this.config.rope_theta as number) ?? fallback, parameters);
    const partial = this.positive(
      'partial_rotary_factor',
      (this.config.partial_rotary_factor as number) ?? 1,
      parameters,
    );
    const dimensions = Math.floor(headDim * partial);
    if (dimensions % 2 !== 0 || dimensions > headDim)
      throw this.#invalid('head_dim', 'an even number of rotary dimensions', dimensions);
    return { theta, dimensions, scaling: this.#ropeScaling(parameters, dimensions) };
  }

  #ropeScaling(parameters: Record<string, unknown>, dimensions: number): RopeScaling {
    const type = parameters.rope_type ?? parameters.type ?? 'default';
    if (type === 'default') return { type: 'none' };
    if (type === 'linear') return { type, factor: this.positive('factor', undefined, parameters) };
    if (type === 'llama3') {
      return {
        type,
        factor: this.positive('factor', undefined, parameters),
        lowFrequency: this.positive('low_freq_factor', undefined, parameters),
        highFrequency: this.positive('high_freq_factor', undefined, parameters),
        originalPositions: this.positive('original_max_position_embeddings', undefined, parameters),
      };
    }
    if (type === 'longrope') {
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
      const originalPositions = this.positive(
        'original_max_position_embeddings',
        this.config.original_max_position_embeddings as number,
        parameters,
      );
      const stretch = this.size('max_position_embeddings') / originalPositions;
      const usual = stretch > 1 ? Math.sqrt(1 + Math.log(stretch) / Math.log(originalPositions)) : 1;
      return {
        type,
        short: factors('short_factor'),
        long: factors('long_factor'),
        originalPositions,
        attentionFactor: this.positive('attention_factor', usual, parameters),
      };
    }
    throw new AlpsError(
      'UNSUPPORTED_MODEL',
      `config.json: the rope_type ${describe(type)} is not supported (default, linear, llama3, longrope are)`,
    );
  }
}
