import { Device, type DeviceName } from '../device/device.js';
import { Scope } from '../device/tensor.js';
import { invalidArgument, type Names, optionsObject, throwIfAborted } from '../errors.js';
import { type InputMoments, MomentCollector, SquareCollector } from './input-moments.js';
import { diagonalOf, type LayerGroup } from './layer-problem.js';
import {
  needsGram,
  ofLayer,
  onDevices,
  type PruningOptions,
  parsePrecision,
  parsePruningOptions,
  pruningNames,
} from './options.js';
import { withPreset } from './preset.js';
import type { TracePoint } from './solution.js';
import { solveGroup } from './solve-group.js';

type Numbers = Float32Array<ArrayBuffer>;

export interface PruneLayerOptions extends PruningOptions {
  /**
   * Ŵ: the layer's weights, row-major `[outputs, inputs]`, as PyTorch's `nn.Linear` stores them. Not changed. This array and the others are read while
   * the call runs: until it settles they must neither change nor be transferred to another thread, whose memory they would be then.
   */
  weight: Numbers;
  /** `[outputs, inputs]` */
  shape: readonly [outputs: number, inputs: number];
  /**
   * XᵀX, row-major `[inputs, inputs]`, symmetric (of one that is not, the upper triangle counts); not normalised by the number of tokens, though any
   * positive factor is fine.
   */
  gram?: Numbers;
  /** X, row-major `[tokens, inputs]`: the layer's calibration inputs, instead of `gram`. */
  activations?: Numbers;
  /** Mean of each input over the calibration tokens and its variance, `[inputs]`: what DSnoT needs beside `gram`. */
  inputMean?: Numbers;
  inputVariance?: Numbers;
  /** Tokens of a calibration window: DSnoT's threshold is on sums over one. Default 2048, or all tokens of `activations` where there are fewer. */
  windowLength?: number;
  /** A name for error messages. Default `the layer`. */
  name?: string;
  /** Default `auto`. */
  device?: DeviceName | Device;
  /**
   * Number format of the products while the support is sought. Default `float32` but for what `mixedPrecision` takes, which is the default of the
   * ladders; with `precision: 'float32'` nothing is rounded further.
   */
  precision?: 'float32' | 'bfloat16';
  signal?: AbortSignal;
}

export const pruneLayerNames: Names<PruneLayerOptions> = {
  ...pruningNames,
  weight: true,
  shape: true,
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

export interface PruneLayerResult {
  /** Row-major `[outputs, inputs]`; pruned entries are exactly +0. */
  weight: Numbers;
  /** 1 where a weight stays. */
  mask: Uint8Array<ArrayBuffer>;
  /** Weights that stay (k). */
  kept: number;
  sparsity: number;
  /** tr((W−Ŵ) XᵀX (W−Ŵ)ᵀ) / tr(Ŵ XᵀX Ŵᵀ); NaN with `errors: false`, or where these sums are too large for float32 or come out negative. */
  error: number;
  /** The same with the ridge in XᵀX. */
  errorWithRidge: number;
  iterations: number;
  refineIterations: number;
  /** ρ and the change of the support at each look. */
  trace: TracePoint[];
  /** Whether the iteration cap ended ADMM before its support settled. */
  capped: boolean;
  /** λ₂, in units of the Gram matrix. */
  ridge: number;
  /** How many times the ridge was raised because the Gram matrix could not be factorised. */
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
 * The typed arrays given must not change until the promise settles.
 *
 * @throws AlpsError `INVALID_ARGUMENT` for options or lengths that do not fit, `NOT_FINITE` for NaN or infinity in the data or in what is made of it,
 * `NOT_POSITIVE_DEFINITE` for a `gram` that is no Gram matrix, `OUT_OF_MEMORY`, `ABORTED`.
 */
export async function pruneLayer(given: PruneLayerOptions): Promise<PruneLayerResult> {
  optionsObject(given, pruneLayerNames);
  const options = withPreset(given);
  const parsed = ofLayer(parsePruningOptions(options), options.precision);
  const { weight, gram, activations, outputs, inputs, name, precision } = parseLayer(options);
  const givenMoments = parseMoments(options, inputs);
  throwIfAborted(options.signal);
  const device = options.device instanceof Device ? options.device : Device.open(options.device ?? 'auto');
  await using stream = device.stream({ signal: options.signal });
  using scope = new Scope();
  const gramTensor = needsGram(parsed)
    ? scope.hold(device.tensor('float32', [inputs, inputs], `the Gram matrix of ${name}`))
    : undefined;
  let moments = givenMoments;
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
      moments = await collector.finish(diagonal ?? (await diagonalOf(stream, gramTensor!)));
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
const usualWindow = 2048;

function parseMoments(options: PruneLayerOptions, inputs: number): InputMoments | undefined {
  const { inputMean, inputVariance, windowLength = usualWindow } = options;
  if (!Number.isSafeInteger(windowLength) || windowLength < 1)
    throw invalidArgument('windowLength', 'an integer of at least 1', windowLength);
  if (inputMean === undefined && inputVariance === undefined) return undefined;
  for (const [name, value] of Object.entries({ inputMean, inputVariance })) {
    if (!ArrayBuffer.isView(value) || value.length !== inputs || !value.every(Number.isFinite))
      throw invalidArgument(name, `a Float32Array of ${inputs} finite numbers, as is the other of the two,`, value);
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

/** The shape and the data of a layer, checked against each other. */
export function parseLayer(options: PruneLayerOptions) {
  const { weight, shape, gram, activations, name = 'the layer', precision = 'float32' } = options;
  const [outputs, inputs] = parseShape(shape);
  const floats = (option: string, value: unknown, length: number, what: string) => {
    if (!(ArrayBuffer.isView(value) && Object.prototype.toString.call(value) === '[object Float32Array]')) {
      throw invalidArgument(option, `a Float32Array ${what}`, value);
    }
    if ((value as Numbers).length !== length) throw invalidArgument(option, `${length} numbers ${what}`, value);
    return value as Numbers;
  };
  floats('weight', weight, outputs * inputs, `[${outputs}, ${inputs}]`);
  if ((gram === undefined) === (activations === undefined)) {
    throw invalidArgument('gram and activations', 'exactly one', gram === undefined ? 'none' : 'both');
  }
  if (gram !== undefined) floats('gram', gram, inputs * inputs, `[${inputs}, ${inputs}]`);
  if (activations !== undefined) {
    const tokens = Math.floor((activations as Numbers).length / inputs);
    floats('activations', activations, Math.max(tokens, 1) * inputs, `[tokens, ${inputs}]`);
  }
  parsePrecision(precision);
  if (typeof name !== 'string') throw invalidArgument('name', 'a string', name);
  return { weight, gram, activations, outputs, inputs, name, precision } as const;
}
