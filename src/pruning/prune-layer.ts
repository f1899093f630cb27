import { types } from 'node:util';
import { Device, type DeviceName } from '../device/device.js';
import { Scope } from '../device/tensor.js';
import { invalidArgument, type Names, throwIfAborted } from '../errors.js';
import { listInside, snapshot } from '../snapshot.js';
import { type InputMoments, MomentCollector, missingMoments, SquareCollector } from './input-moments.js';
import type { LayerGroup } from './layer-problem.js';
import {
  needsGram,
  ofLayer,
  onDevices,
  type PruningOptions,
  parsePrecision,
  parsePruningOptions,
  pruningNames,
} from './options.js';
import { keptWeights } from './pattern.js';
import { withPreset } from './preset.js';
import type { TracePoint } from './solution.js';
import { solveGroup } from './solve-group.js';

/** float32 numbers in a buffer that is not shared between threads. */
export type Numbers = Float32Array<ArrayBuffer>;

/** Options of {@link pruneLayer}. Give `sparsity` or `pattern`, and `gram` or `activations`. */
export interface PruneLayerOptions extends PruningOptions {
  /**
   * Ŵ: the layer's weights, row-major `[outputs, inputs]`, as PyTorch's `nn.Linear` stores them. They are not changed. This array and the others are
   * read while the call runs: until the promise settles they must neither change nor be transferred to another thread.
   */
  weight: Numbers;
  /** `[outputs, inputs]`, both at least 1. */
  shape: readonly [outputs: number, inputs: number];
  /**
   * XᵀX, row-major `[inputs, inputs]`, symmetric; if it is not, the upper triangle counts. Any positive factor, such as 1 / tokens, is fine.
   */
  gram?: Numbers;
  /** X, row-major `[tokens, inputs]`: the layer's calibration inputs, instead of `gram`. */
  activations?: Numbers;
  /** Mean of each input over the calibration tokens, `[inputs]`. DSnoT needs it with `gram`, together with `inputVariance`. */
  inputMean?: Numbers;
  /** Variance of each input over the calibration tokens, `[inputs]`, at least 0. */
  inputVariance?: Numbers;
  /** Tokens per calibration window, over which DSnoT's `threshold` sums. Default 2048, or all tokens of `activations` if there are fewer. */
  windowLength?: number;
  /** A name for error messages. Default `the layer`. */
  name?: string;
  /** A device name or an open device. Default `auto`. */
  device?: DeviceName | Device;
  /**
   * Number format of the products while the support is sought. Default `float32`, except for the products that `mixedPrecision` covers, which is on by
   * default with the ladders. With `precision: 'float32'` given explicitly, `mixedPrecision` is off by default.
   */
  precision?: 'float32' | 'bfloat16';
  /** Aborts the call with `ABORTED`. */
  signal?: AbortSignal;
}

export const pruneLayerNames: Names<PruneLayerOptions> = {
  ...pruningNames,
  weight: true,
  shape: listInside(),
  gram: true,
  activations: true,
  inputMean: true,
  inputVariance: true,
  windowLength: true,
  name: true,
  device: true,
  precision: true,
  signal: true,
};

/** Result of {@link pruneLayer}. */
export interface PruneLayerResult {
  /** The pruned weights, row-major `[outputs, inputs]`; pruned entries are exactly +0. */
  weight: Numbers;
  /** Row-major `[outputs, inputs]`: 1 for each weight that is kept, else 0. */
  mask: Uint8Array<ArrayBuffer>;
  /** Number of weights that are kept (k). */
  kept: number;
  /** Share of zeros, from 0 to 1. */
  sparsity: number;
  /**
   * Relative error of the outputs, tr((W−Ŵ) XᵀX (W−Ŵ)ᵀ) / tr(Ŵ XᵀX Ŵᵀ). NaN with `errors: false`, and if a sum is too large for float32 or comes out
   * negative.
   */
  error: number;
  /** The same with the ridge added to XᵀX. */
  errorWithRidge: number;
  /** ADMM iterations; 0 for methods without ADMM. */
  iterations: number;
  /** Conjugate gradient iterations of the refit. */
  refineIterations: number;
  /** ρ and the change of the support at each check. */
  trace: TracePoint[];
  /** Whether ADMM reached its iteration limit before its support settled. */
  capped: boolean;
  /** λ₂, the ridge in units of the Gram matrix. */
  ridge: number;
  /** Number of times the ridge was raised tenfold because the Gram matrix could not be factorised. */
  dampingSteps: number;
  /** Milliseconds by phase. */
  time: { factorise: number; admm: number; refine: number; error: number };
}

/**
 * Prunes one linear layer from its Gram matrix or its calibration inputs.
 *
 * ```ts
 * const { weight, mask, error } = await pruneLayer({ weight, shape: [768, 3072], gram, sparsity: 0.7 });
 * ```
 *
 * The typed arrays must not change until the promise settles.
 *
 * @throws AlpsError `INVALID_ARGUMENT` for options or array lengths that do not fit, `NOT_FINITE` for NaN or infinity in the data or the results,
 * `NOT_POSITIVE_DEFINITE` if `gram` is not a Gram matrix, `OUT_OF_MEMORY`, `NO_DEVICE`, `DEVICE_FAILED`, `ABORTED`
 */
export async function pruneLayer(given: PruneLayerOptions): Promise<PruneLayerResult> {
  const options = snapshot(given, pruneLayerNames);
  const { parsed, weight, gram, activations, outputs, inputs, name, precision, ...layer } = parseLayer(options);
  throwIfAborted(options.signal);
  const device = options.device instanceof Device ? options.device : Device.open(options.device);
  await using stream = device.stream({ signal: options.signal });
  using scope = new Scope();
  const gramTensor = needsGram(parsed)
    ? scope.hold(device.tensor('float32', [inputs, inputs], `the Gram matrix of ${name}`))
    : undefined;
  let { moments } = layer;
  let diagonal: Numbers | undefined;
  if (gram) {
    if (gramTensor) {
      stream.write(gramTensor, gram);
      stream.symmetrize(gramTensor); // ops read either triangle
    } else diagonal = Float32Array.from({ length: inputs }, (_, j) => gram[j * inputs + j]!);
  } else if (activations) {
    const tokens = activations.length / inputs;
    using x = stream.upload('float32', [tokens, inputs], activations, `the inputs of ${name}`);
    if (gramTensor) {
      stream.gramAccumulate(x, gramTensor);
      stream.symmetrize(gramTensor);
    } else {
      using squares = new SquareCollector(stream, inputs);
      squares.add(x);
      diagonal = await squares.finish();
    }
    if (parsed.method === 'dsnot') {
      using collector = new MomentCollector(stream, options.windowLength ?? Math.min(tokens, usualWindow));
      collector.add(x);
      moments = await collector.finish(inputs);
    }
  }
  const weightTensor = scope.hold(stream.upload('float32', [outputs, inputs], weight, `the weights of ${name}`));
  const layers = [{ name, outputs }];
  const group: LayerGroup = { layers, weight: weightTensor, gram: gramTensor, diagonal, moments };
  const result = await solveGroup(stream, group, onDevices(parsed, [device], precision), precision);
  scope.hold(result.weight);
  scope.hold(result.mask);
  const [prunedWeight, mask] = await Promise.all([stream.read(result.weight), stream.read(result.mask)]);
  const { layers: solved, weight: _weight, mask: _mask, ...rest } = result;
  const { kept, sparsity, error, errorWithRidge } = solved[0]!;
  return { weight: prunedWeight, mask, kept, sparsity, error, errorWithRidge, ...rest };
}

/** The published code's sequence length. */
export const usualWindow = 2048;

function parseMoments(options: Omit<PruneLayerOptions, 'device' | 'signal'>, inputs: number): InputMoments | undefined {
  const { inputMean, inputVariance, windowLength = usualWindow } = options;
  if (!Number.isSafeInteger(windowLength) || windowLength < 1)
    throw invalidArgument('windowLength', 'an integer of at least 1', windowLength);
  if (inputMean === undefined && inputVariance === undefined) return undefined;
  for (const [name, value] of Object.entries({ inputMean, inputVariance })) {
    if (!ArrayBuffer.isView(value) || value.length !== inputs || !value.every(Number.isFinite))
      throw invalidArgument(
        name,
        `a Float32Array of ${inputs} finite numbers, together with the other of inputMean and inputVariance,`,
        value,
      );
  }
  if (inputVariance!.some((value) => value < 0))
    throw invalidArgument('inputVariance', 'numbers of at least 0', inputVariance);
  const asDoubles = (values: Numbers) => Float64Array.from(values);
  return { mean: asDoubles(inputMean!), variance: asDoubles(inputVariance!), windowLength };
}

export function parseShape(shape: unknown): readonly [outputs: number, inputs: number] {
  const [outputs, inputs] = Array.isArray(shape) ? (shape as [number, number]) : [Number.NaN, Number.NaN];
  if (!(Array.isArray(shape) && shape.length === 2 && [outputs, inputs].every((d) => Number.isInteger(d) && d > 0))) {
    throw invalidArgument('shape', '[outputs, inputs], two positive integers,', shape);
  }
  return [outputs, inputs];
}

/** Refuses what is no Float32Array on memory that stays. @param what its shape, in words */
function checkFloats(option: string, value: unknown, what: string, length: (given: number) => number): void {
  if (!(ArrayBuffer.isView(value) && Object.prototype.toString.call(value) === '[object Float32Array]')) {
    throw invalidArgument(option, `a Float32Array ${what}`, value);
  }
  const { length: given, buffer } = value as Float32Array;
  if (given !== length(given)) throw invalidArgument(option, `${length(given)} numbers ${what}`, value);
  if (types.isSharedArrayBuffer(buffer) || (buffer as { resizable?: boolean }).resizable)
    throw invalidArgument(option, 'a Float32Array on an ArrayBuffer of its own and of fixed length', value);
}

/**
 * All that can be said of a layer without a device: its options, and its shape and data, checked against each other.
 * @throws AlpsError `INVALID_ARGUMENT`
 */
export function parseLayer(given: Omit<PruneLayerOptions, 'device' | 'signal'>) {
  const options = withPreset(given);
  const parsed = ofLayer(parsePruningOptions(options), options.precision);
  const { weight, shape, gram, activations, name = 'the layer', precision = 'float32' } = options;
  const [outputs, inputs] = parseShape(shape);
  checkFloats('weight', weight, `[${outputs}, ${inputs}]`, () => outputs * inputs);
  if ((gram === undefined) === (activations === undefined)) {
    throw invalidArgument('gram and activations', 'exactly one', gram === undefined ? 'none' : 'both');
  }
  if (gram !== undefined) checkFloats('gram', gram, `[${inputs}, ${inputs}]`, () => inputs * inputs);
  const rows = (length: number) => Math.max(Math.floor(length / inputs), 1) * inputs;
  if (activations !== undefined) checkFloats('activations', activations, `[tokens, ${inputs}]`, rows);
  parsePrecision(precision);
  if (typeof name !== 'string') throw invalidArgument('name', 'a string', name);
  keptWeights(parsed.pattern, outputs, inputs, name);
  const moments = parseMoments(options, inputs);
  if (parsed.method === 'dsnot' && !activations && !moments) throw missingMoments(name);
  return { parsed, weight, gram, activations, moments, outputs, inputs, name, precision } as const;
}
