import { AlpsError } from '../../errors.js';
import type { DecoderConfig } from '../config.js';

/** What a part of a matrix does. A plain MLP's first layer is `up`. */
export type Part = 'q' | 'k' | 'v' | 'o' | 'gate' | 'up' | 'down';

/** One matrix of the checkpoint, or one expert's slice of it; it is pruned as one. */
export interface LinearSpec {
  /** Tensor name without ".weight" and ".bias". */
  name: string;
  /** The parts whose rows lie in it, one below the other: `['q', 'k', 'v']` in a fused tensor. */
  parts: Part[];
  bias?: boolean;
  /** Stored [inputs, outputs], as GPT-2's Conv1D. */
  transposed?: boolean;
  /** The tensor, named without ".weight", holds all experts [experts, outputs, inputs], and this one is at `index`. */
  expert?: { index: number; count: number };
}

/** The tensors of one block. Names of norms are without ".weight" and ".bias". */
export interface BlockSpec {
  attentionNorm: string;
  mlpNorm: string;
  /** Norms of what attention and MLP add to the residual stream, where `normPlacement` is `sandwich`. */
  attentionOutNorm?: string;
  mlpOutNorm?: string;
  queryNorm?: string;
  keyNorm?: string;
  /** The layers that make queries, keys and values; then the one behind attention. */
  attention: [inputs: LinearSpec[], output: LinearSpec];
  /** The MLP's layers by stage, or one such pair for each expert. */
  mlp: [inputs: LinearSpec[], output: LinearSpec][];
  /** The router [experts, hidden] where `mlp` are experts. */
  router?: string;
}

/** A decoder as its checkpoint has it. */
export interface Architecture {
  config: DecoderConfig;
  embedding: string;
  /** Learned positions; token t of a window has row t + offset. */
  positions?: { name: string; offset: number; rows: number };
  /** Between the embedding's size and the blocks'. */
  projectIn?: string;
  projectOut?: string;
  finalNorm?: string;
  head: string;
  block(layer: number): BlockSpec;
}

/** What a model family says about itself; see docs/architecture.md, "A new family". */
export interface Family {
  /** Values of config.json's `model_type`. */
  modelTypes: readonly string[];
  /** @param has whether the checkpoint has a tensor */
  read(config: Readonly<Record<string, unknown>>, has: (tensor: string) => boolean): Architecture;
}

/**
 * Which of two prefixes a checkpoint's names have. Both would be one model under two names, of which only one would be pruned.
 * @param name of a tensor that every checkpoint has, without the prefix
 */
export function onePrefix(
  has: (tensor: string) => boolean,
  name: string,
  [usual, other]: readonly [string, string],
): string {
  if (!has(`${other}${name}`)) return usual;
  if (!has(`${usual}${name}`)) return other;
  throw new AlpsError(
    'INVALID_CHECKPOINT',
    `The checkpoint has its tensors under two names, such as ${usual}${name} and ${other}${name}: save it with one of them`,
  );
}
