import type { DecoderConfig } from './config.js';
import type { Precision } from './decoder.js';

/** Of a number in the products. */
export const numberBytes = (precision: Precision) => (precision === 'bfloat16' ? 2 : 4);

export interface TokenCounts {
  windows: number;
  length: number;
}

/** Rows at a time, at most, where a step needs scratch memory. */
export const chunkTokens = 4096;

/**
 * Tokens of a chunk of whole windows of this length: the wider the layers, the more, so that a Gram matrix is not read and written more often than
 * its product takes time.
 */
export function chunkLength(config: DecoderConfig, length: number): number {
  const widest = Math.max(config.hidden, config.heads * config.headDim, innerWidth(config));
  const rows = Math.min(chunkTokens, Math.max(1024, 2 ** Math.floor(Math.log2(widest))));
  return Math.max(1, Math.floor(rows / length)) * length;
}

/** Rows that a chunk has at most. */
export function chunkRows(config: DecoderConfig, { windows, length }: TokenCounts): number {
  return Math.min(windows * length, chunkLength(config, length));
}

/** Of the MLPs without experts; 0 where all have experts. */
export function innerWidth({ experts, intermediate }: DecoderConfig): number {
  return experts?.layers.every(Boolean) ? 0 : intermediate;
}

/** What model/block-run.ts and model/expert-run.ts hold. */
export function activationBytes(
  config: DecoderConfig,
  { windows, length }: TokenCounts,
  number: number,
  { makesOnDemand = false } = {},
): number {
  const { hidden, heads, kvHeads, headDim, experts, mlp, normPlacement, ropes } = config;
  const tokens = windows * length;
  const rows = chunkRows(config, { windows, length });
  const inner = innerWidth(config);
  const queries = heads * headDim;
  const scratch = number * (hidden + queries + 2 * kvHeads * headDim + (mlp === 'gated' ? inner : 0));
  const branch = normPlacement === 'sandwich' ? 4 * hidden : 0;
  const between = (makesOnDemand ? rows : tokens) * number * Math.max(queries, inner);
  const dense = tokens * 4 * hidden + between + rows * (scratch + branch);
  const tables = 8 * length * headDim * ropes.length;
  if (!experts) return dense + tables;
  const piece = Math.min(chunkTokens, tokens);
  const routed =
    piece * (8 * hidden + number * (hidden + experts.intermediate) + 4 * experts.count) +
    tokens * experts.perToken * (16 + number * experts.intermediate);
  return dense + tables + routed + 4 * experts.count * hidden;
}

/** Bytes that the keys and values of a window of `length` tokens take. */
export function keyValueBytes({ layers, kvHeads, headDim }: DecoderConfig, length: number, number: number): number {
  return 2 * layers * length * kvHeads * headDim * number;
}
