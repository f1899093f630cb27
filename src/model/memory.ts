import type { DecoderConfig } from './config.js';
import type { Precision } from './decoder.js';

/** Of a number in the products. */
export const numberBytes = (precision: Precision) => (precision === 'bfloat16' ? 2 : 4);

export interface TokenCounts {
  windows: number;
  length: number;
}

/** Rows at a time where a step needs scratch memory. */
export const chunkTokens = 4096;

/** Of a chunk of whole windows. */
export function chunkRows({ windows, length }: TokenCounts): number {
  return Math.min(windows * length, Math.max(1, Math.floor(chunkTokens / length)) * length);
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
  const rows = chunkRows({ windows, length });
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
