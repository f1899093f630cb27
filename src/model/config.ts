import { AlpsError, describe } from '../errors.js';

export type RopeScaling =
  | { type: 'none' }
  | { type: 'linear'; factor: number }
  | { type: 'llama3'; factor: number; lowFrequency: number; highFrequency: number; originalPositions: number };

export type Activation = 'silu' | 'gelu' | 'gelu_tanh' | 'relu';

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
  normEps: number;
  activation: Activation;
  ropeTheta: number;
  ropeScaling: RopeScaling;
  /** Whether q, k and v (and o, for `attentionOutputBias`) have a bias. */
  attentionBias: boolean;
  attentionOutputBias: boolean;
  mlpBias: boolean;
  /** RMSNorm of each head's queries and keys. */
  qkNorm: boolean;
  /** Sliding window of each layer's attention; 0 for none. */
  slidingWindow: number[];
  /** Whether the output head is the embedding table. */
  tiedEmbeddings: boolean;
}

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

  /** θ and scaling, in the spelling `rope_theta` + `rope_scaling` or `rope_parameters`. */
  rope(fallbackTheta = 10000): { ropeTheta: number; ropeScaling: RopeScaling } {
    const nested = this.config.rope_parameters ?? this.config.rope_scaling ?? {};
    if (typeof nested !== 'object' || Array.isArray(nested)) throw this.#invalid('rope_scaling', 'an object', nested);
    const parameters = nested as Record<string, unknown>;
    const ropeTheta = this.positive('rope_theta', (this.config.rope_theta as number) ?? fallbackTheta, parameters);
    const type = parameters.rope_type ?? parameters.type ?? 'default';
    if (type === 'default') return { ropeTheta, ropeScaling: { type: 'none' } };
    const factor = this.positive('factor', undefined, parameters);
    if (type === 'linear') return { ropeTheta, ropeScaling: { type, factor } };
    if (type !== 'llama3') {
      throw new AlpsError(
        'UNSUPPORTED_MODEL',
        `config.json: the rope_type ${describe(type)} is not supported (default, linear, llama3 are)`,
      );
    }
    return {
      ropeTheta,
      ropeScaling: {
        type,
        factor,
        lowFrequency: this.positive('low_freq_factor', undefined, parameters),
        highFrequency: this.positive('high_freq_factor', undefined, parameters),
        originalPositions: this.positive('original_max_position_embeddings', undefined, parameters),
      },
    };
  }
}
