import { floatDtypes, isFloatDtype } from './checkpoint/dtype.js';
import { type Checkpoint, type CheckpointTensor, quantizationOf } from './checkpoint/folder.js';
import type { CheckpointWriter } from './checkpoint/writer.js';
import type { Stream } from './device/stream.js';
import { allocateArray } from './device/tensor.js';
import { AlpsError, throwIfAborted } from './errors.js';
import { byMagnitude } from './group-pruning.js';
import type { ParsedPruningOptions } from './pruning/options.js';
import type { LayerReport } from './traversal.js';

const blockNumber = /\.(\d+)\./;
const notPruned =
  /embed|norm|relative_attention_bias|router|lm_head|\bwte\b|\bwpe\b|\.gate\.weight$|\bln_|positions?\b/i;

/**
 * The matrices that magnitude pruning takes from a model of unknown type: two dimensions, a name with a block's number that
 * ends with ".weight", and no embedding (of positions, too), norm or router by that name.
 */
export function matricesByName(checkpoint: Checkpoint): CheckpointTensor[] {
  return [...checkpoint.tensors.values()].filter(
    ({ name, shape, dtype }) =>
      shape.length === 2 &&
      shape.every((d) => d > 1) &&
      name.endsWith('.weight') &&
      blockNumber.test(name) &&
      !notPruned.test(name) &&
      isFloatDtype(dtype),
  );
}

/** Magnitude pruning of a model whose type is not known: tensor by tensor, by their names alone. */
export async function pruneByNames(
  checkpoint: Checkpoint,
  stream: Stream,
  parsed: ParsedPruningOptions,
  options: { writer: CheckpointWriter; signal?: AbortSignal; onLayer(report: LayerReport): void },
): Promise<void> {
  for (const { name, shape, dtype } of matricesByName(checkpoint)) {
    throwIfAborted(options.signal);
    const began = performance.now();
    const stored = floatDtypes[dtype as keyof typeof floatDtypes];
    const bytes = await checkpoint.read(name, { signal: options.signal });
    const array = allocateArray(stored, 0).constructor as new (buffer: ArrayBuffer) => never;
    using raw = stream.upload(stored, shape, new array(bytes.buffer), name);
    using weight = stream.device.tensor('float32', shape, name);
    stream.copy(raw, weight);
    const [outputs = 0, inputs = 0] = shape;
    const title = name.replace(/\.weight$/, '');
    const result = await byMagnitude(stream, { layers: [{ name: title, outputs }], weight }, parsed);
    using pruned = result.weight;
    using _mask = result.mask;
    stream.copy(pruned, raw);
    const data = await stream.read(raw);
    await options.writer.write(name, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    const { kept, sparsity } = result.layers[0]!;
    options.onLayer({
      block: Number(blockNumber.exec(name)![1]),
      name: title,
      outputs,
      inputs,
      kept,
      sparsity,
      error: null,
      iterations: 0,
      refineIterations: 0,
      dampingSteps: 0,
      capped: false,
      milliseconds: performance.now() - began,
    });
  }
}

/** Whether a model can only be pruned by names; refuses what cannot be pruned at all. */
export function checkByNames(checkpoint: Checkpoint, cause: AlpsError): void {
  const quantization = quantizationOf(checkpoint);
  if (quantization || matricesByName(checkpoint).length === 0) throw cause;
}

/** What is said when calibration was given for a type that cannot be run. */
export function cannotRun(folder: string, cause: AlpsError): AlpsError {
  return new AlpsError(
    'UNSUPPORTED_MODEL',
    `${folder}: ${cause.message}. A model of another type can only be pruned by magnitude, without calibration ` +
      '(method "magnitude"): its matrices are found by their tensors’ names',
    { cause },
  );
}
