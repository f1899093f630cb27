import type { Device } from '../device/device.js';
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

/** Of GPUs with much memory: the sums over a chunk's rows, of up to some hundred megabytes, are read and written once a chunk. */
const [muchMemory, largeChunk] = [2 ** 35, 16384];

/** What the order of sums on a GPU depends on beside its kind. */
export function takesLargeChunks(device: Device): boolean {
  return device.name !== 'cpu' && device.info().memoryLimit >= muchMemory;
}

/**
 * Rows of a chunk, about. On a processor fewer where layers are narrow: there memory counts, and a Gram matrix is small enough to be added to often.
 */
export function rowsAtOnce({ hidden, heads, headDim, ...config }: DecoderConfig, device: Device): number {
  if (device.name !== 'cpu') return takesLargeChunks(device) ? largeChunk : chunkTokens;
  const widest = Math.max(hidden, heads * headDim, innerWidth(config));
  return Math.min(chunkTokens, Math.max(1024, 2 ** Math.floor(Math.log2(widest))));
}

/** Tokens of a chunk of whole windows of this length. */
export function chunkLength(rows: number, length: number): number {
  return Math.max(1, Math.floor(rows / length)) * length;
}

/** The rows that a chunk has at most. */
export function chunkRows(rows: number, { windows, length }: TokenCounts): number {
  return Math.min(windows * length, chunkLength(rows, length));
}

/** Of the MLPs without experts; 0 where all have experts. */
export function innerWidth({ experts, intermediate }: Pick<DecoderConfig, 'experts' | 'intermediate'>): number {
  return experts?.layers.every(Boolean) ? 0 : intermediate;
}

/**
 * What model/block-run.ts and model/expert-run.ts hold.
 * @param how `rows` of {@link rowsAtOnce}
 */
export function activationBytes(
  config: DecoderConfig,
  { windows, length }: TokenCounts,
  number: number,
  { rows: most, makesOnDemand = false }: { rows: number; makesOnDemand?: boolean },
): number {
  const { hidden, heads, kvHeads, headDim, experts, mlp, normPlacement, ropes } = config;
  const tokens = windows * length;
  const rows = chunkRows(most, { windows, length });
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
