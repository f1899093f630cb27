import { setImmediate } from 'node:timers/promises';
import { optionalSignal } from './abort.js';
import { dtypeBits } from './checkpoint/dtype.js';
import { Checkpoint, quantizationOf } from './checkpoint/folder.js';
import { AlpsError, throwIfAborted } from './errors.js';
import { readArchitecture } from './model/decoder.js';
import { knownModelTypes } from './model/families/index.js';
import { linearsOf, tensorOf } from './model/shapes.js';
import { parsePattern, patternNames } from './pruning/pattern.js';
import { optionsInside, snapshot } from './snapshot.js';

/** One tensor of a {@link ModelInspection}. */
export interface TensorInspection {
  name: string;
  dtype: string;
  shape: number[];
  /** Share of entries that are zero (of either sign), from 0 to 1; null for an empty tensor and for dtypes that are not counted. */
  sparsity: number | null;
  /** With the option `pattern`, for matrices of the blocks: whether each group of `of` inputs has at most `keep` entries that are not zero. */
  pattern?: boolean;
}

/** Result of {@link inspectModel}. */
export interface ModelInspection {
  folder: string;
  /** `model_type` of config.json. */
  modelType: unknown;
  /** Whether this package can run the model. */
  supported: boolean;
  /** How the model is quantised, in words. */
  quantization?: string;
  /** Number of safetensors files. */
  shards: number;
  /** Number of entries of all tensors. */
  parameters: number;
  /** Bytes of all tensors. */
  bytes: number;
  tensors: TensorInspection[];
  /** Share of zeros among the weights in the blocks' matrices, from 0 to 1. */
  blockSparsity: number;
}

/**
 * Reads what a model folder holds: its tensors with their share of zeros and, with `pattern`, whether they follow an N:M pattern.
 *
 * @throws AlpsError as {@link Checkpoint.open}, and `INVALID_ARGUMENT` for a pattern that is not N:M
 */
export async function inspectModel(
  folder: string,
  given: { pattern?: { keep: number; of: number }; signal?: AbortSignal } = {},
): Promise<ModelInspection> {
  const options = snapshot(given, { pattern: optionsInside('pattern', patternNames), signal: true });
  optionalSignal(options.signal);
  if (options.pattern !== undefined) parsePattern({ pattern: options.pattern });
  const checkpoint = await Checkpoint.open(folder, { signal: options.signal });
  try {
    const tensors: TensorInspection[] = [];
    const known = prunedTensors(checkpoint);
    let [parameters, bytes, zeros, counted] = [0, 0, 0, 0];
    for (const { name, dtype, shape, byteLength } of checkpoint.tensors.values()) {
      throwIfAborted(options.signal);
      const size = shape.reduce((product, d) => product * d, 1);
      const nonZero = await nonZeroFlags(await checkpoint.read(name, { signal: options.signal }), dtype);
      const kept = nonZero?.reduce((sum, flag) => sum + flag, 0);
      const tensor: TensorInspection = {
        name,
        dtype,
        shape,
        sparsity: kept === undefined || size === 0 ? null : 1 - kept / size,
      };
      const isBlockMatrix = known ? known.has(name) : shape.length === 2 && /\.\d+\./.test(name);
      if (isBlockMatrix && nonZero && kept !== undefined) {
        zeros += size - kept;
        counted += size;
        if (options.pattern)
          tensor.pattern = await followsPattern(nonZero, shape, known?.get(name) === true, options.pattern);
      }
      tensors.push(tensor);
      parameters += size;
      bytes += byteLength;
    }
    const quantization = quantizationOf(checkpoint);
    return {
      folder,
      modelType: checkpoint.config.model_type,
      supported: knownModelTypes.includes(checkpoint.config.model_type as string) && quantization === undefined,
      ...(quantization ? { quantization } : {}),
      shards: checkpoint.shards.length,
      parameters,
      bytes,
      tensors,
      blockSparsity: counted > 0 ? zeros / counted : 0,
    };
  } finally {
    await checkpoint.close();
  }
}

const piece = 1 << 21;

/** 1 for each entry that is not zero, or undefined for dtypes without whole bytes. Turns the event loop between pieces. */
async function nonZeroFlags(
  bytes: Uint8Array<ArrayBuffer>,
  dtype: keyof typeof dtypeBits,
): Promise<Uint8Array | undefined> {
  const width = dtypeBits[dtype] / 8;
  const signed = ['F16', 'BF16', 'F32', 'F64'].includes(dtype);
  if (!(width === 1 || width === 2 || width === 4 || width === 8)) return undefined;
  const words =
    width === 1
      ? bytes
      : width === 2
        ? new Uint16Array(bytes.buffer)
        : width === 4
          ? new Uint32Array(bytes.buffer)
          : undefined;
  const flags = new Uint8Array(bytes.length / width);
  const mask = signed ? (width === 2 ? 0x7fff : 0x7fffffff) : 0xffffffff;
  const long = words ? undefined : new Uint32Array(bytes.buffer);
  for (let start = 0; start < flags.length; start += piece) {
    const end = Math.min(start + piece, flags.length);
    for (let i = start; i < end; i++) {
      const zero = words
        ? (words[i]! & mask) === 0
        : long![2 * i] === 0 && (long![2 * i + 1]! & (signed ? mask : -1)) === 0;
      flags[i] = zero ? 0 : 1;
    }
    await setImmediate();
  }
  return flags;
}

async function followsPattern(
  nonZero: Uint8Array,
  shape: readonly number[],
  transposed: boolean,
  { keep, of }: { keep: number; of: number },
): Promise<boolean> {
  // Where a matrix is stored [inputs, outputs], the inputs of a group lie a row apart.
  const width = shape.at(transposed ? 0 : -1)!;
  const step = transposed ? shape[1]! : 1;
  if (width % of !== 0) return false;
  let seen = 0;
  for (let start = 0; start < nonZero.length; start += transposed ? step * of : of) {
    for (let lane = start; lane < start + step; lane++) {
      let kept = 0;
      for (let i = 0; i < of; i++) kept += nonZero[lane + i * step]!;
      if (kept > keep) return false;
    }
    seen += step * of;
    if (seen > piece) {
      seen = 0;
      await setImmediate();
    }
  }
  return true;
}

/** The tensors that pruning takes, and whether they are stored [inputs, outputs]; undefined for types that are not known. */
function prunedTensors(checkpoint: Checkpoint): Map<string, boolean> | undefined {
  try {
    const specs = linearsOf(readArchitecture(checkpoint));
    return new Map(specs.map((spec) => [tensorOf(spec), spec.transposed === true]));
  } catch (error) {
    if (error instanceof AlpsError) return undefined;
    throw error;
  }
}
