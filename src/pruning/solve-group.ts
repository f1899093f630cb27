import type { Stream } from '../device/stream.js';
import { Scope, type Tensor } from '../device/tensor.js';
import { AlpsError } from '../errors.js';
import { type AlpsSolution, solveAlps, type TracePoint } from './alps.js';
import { type LayerGroup, LayerProblem, nativePattern } from './layer-problem.js';
import type { ParsedPruningOptions, Precision } from './options.js';

/** What was reached for one layer. */
export interface LayerResult {
  name: string;
  /** Weights that stay (k). */
  kept: number;
  /** Share of zeros: 1 − kept / size. */
  sparsity: number;
  /** tr((W−Ŵ) XᵀX (W−Ŵ)ᵀ) / tr(Ŵ XᵀX Ŵᵀ): the relative error of the layer's outputs. 0 when the outputs are all zero. */
  error: number;
  /** The same with H = XᵀX + λ₂I in place of XᵀX: the objective that is minimised. */
  errorWithRidge: number;
}

export interface GroupResult {
  layers: LayerResult[];
  /** float32 [m, n], pruned entries exactly +0. The caller disposes both tensors. */
  weight: Tensor<'float32'>;
  mask: Tensor<'uint8'>;
  /** ADMM iterations; 0 for methods without. */
  iterations: number;
  /** Iterations of the conjugate gradient. */
  refineIterations: number;
  trace: TracePoint[];
  /** Whether ADMM was ended by its iteration cap. */
  capped: boolean;
  /** λ₂ in units of the Gram matrix. */
  ridge: number;
  /** How many times the ridge had to be raised (×10 each) because H was not positive definite in float32. */
  dampingSteps: number;
  /** Milliseconds. */
  time: { factorise: number; admm: number; refine: number; error: number };
}

const maxDampingSteps = 5;

/** Prunes layers that share their input. The group's tensors stay the caller's. */
export async function solveGroup(
  stream: Stream,
  group: LayerGroup,
  options: ParsedPruningOptions,
  precision: Precision,
): Promise<GroupResult> {
  let ridge = options.ridge;
  for (let dampingSteps = 0; ; dampingSteps++) {
    try {
      return await solveOnce(stream, group, { ...options, ridge }, precision, dampingSteps);
    } catch (error) {
      if (!(error instanceof AlpsError) || error.code !== 'NOT_POSITIVE_DEFINITE') throw error;
      if (dampingSteps === maxDampingSteps) {
        const names = group.layers.map((layer) => layer.name).join(', ');
        throw new AlpsError(
          'NOT_POSITIVE_DEFINITE',
          `The Gram matrix of ${names} is not positive semi-definite: factorising failed with a ridge of up to ${ridge} times its ` +
            'mean diagonal. Was it accumulated from real inputs, without overflow?',
          { cause: error },
        );
      }
      ridge = Math.max(ridge * 10, 1e-4);
    }
  }
}

async function solveOnce(
  stream: Stream,
  group: LayerGroup,
  options: ParsedPruningOptions,
  precision: Precision,
  dampingSteps: number,
): Promise<GroupResult> {
  const problem = await LayerProblem.create(stream, group, options.pattern, options.ridge);
  try {
    const { ridge } = problem;
    const solution = await solveBy(problem, options, precision);
    try {
      const began = performance.now();
      const layers = await layerErrors(stream, group, solution.weight, ridge, problem.segments.keep);
      return { ...solution, layers, ridge, dampingSteps, time: { ...solution.time, error: performance.now() - began } };
    } catch (error) {
      solution.weight.dispose();
      solution.mask.dispose();
      throw error;
    }
  } finally {
    problem.dispose();
  }
}

/** The shortcuts (nothing or everything stays) and the methods. */
async function solveBy(
  problem: LayerProblem,
  options: ParsedPruningOptions,
  precision: Precision,
): Promise<AlpsSolution> {
  const { segments, m, n } = problem;
  const kept = segments.keep.reduce((sum, k) => sum + k, 0);
  if (options.method === 'magnitude' || kept === 0 || kept === m * n) return keepLargest(problem, options);
  return solveAlps(problem, options, precision);
}

/** Magnitude pruning (MP): the largest weights of each layer stay as they are. */
async function keepLargest(problem: LayerProblem, options: ParsedPruningOptions): Promise<AlpsSolution> {
  const { stream, device, group, segments } = problem;
  const shape = group.weight.shape;
  const weight = device.tensor('float32', shape, 'the pruned weights');
  const mask = device.tensor('uint8', shape, 'the support');
  stream.copy(group.weight, weight);
  stream.project(weight, mask, nativePattern(options.pattern), segments);
  stream.applyMask(weight, mask);
  const time = { factorise: 0, admm: 0, refine: 0 };
  return { weight, mask, iterations: 0, refineIterations: 0, trace: [], capped: false, time };
}

/** The relative error of each layer, from the Gram matrix: two products, row sums in double. */
export async function layerErrors(
  stream: Stream,
  group: LayerGroup,
  pruned: Tensor<'float32'>,
  ridge: number,
  keep: readonly number[],
): Promise<LayerResult[]> {
  const { device } = stream;
  const [m = 0, n = 0] = group.weight.shape;
  using scope = new Scope();
  const difference = scope.hold(device.tensor('float32', [m, n], 'the weights’ difference'));
  const product = scope.hold(device.tensor('float32', [m, n], 'the error’s product'));
  const sums = ['lost', 'lostRidge', 'whole', 'wholeRidge'].map(() => scope.hold(device.tensor('float64', [m])));
  const [lost, lostRidge, whole, wholeRidge] = sums as [
    Tensor<'float64'>,
    Tensor<'float64'>,
    Tensor<'float64'>,
    Tensor<'float64'>,
  ];
  stream.copy(group.weight, difference);
  stream.gemm(difference, group.gram, product);
  stream.rowDots(difference, product, whole);
  stream.rowDots(difference, difference, wholeRidge);
  stream.axpby(pruned, difference, -1, 1);
  stream.gemm(difference, group.gram, product);
  stream.rowDots(difference, product, lost);
  stream.rowDots(difference, difference, lostRidge);
  const [lostRows, lostRidgeRows, wholeRows, wholeRidgeRows] = (await Promise.all(
    sums.map((sum) => stream.read(sum)),
  )) as [Float64Array, Float64Array, Float64Array, Float64Array];
  let row = 0;
  return group.layers.map(({ name, outputs }, i) => {
    const total = (rows: Float64Array) => rows.subarray(row, row + outputs).reduce((sum, value) => sum + value, 0);
    const [a, b, c, d] = [total(lostRows), total(lostRidgeRows), total(wholeRows), total(wholeRidgeRows)];
    row += outputs;
    const kept = keep[i]!;
    return {
      name,
      kept,
      sparsity: 1 - kept / (outputs * n),
      error: ratio(a, c),
      errorWithRidge: ratio(a + ridge * b, c + ridge * d),
    };
  });
}

function ratio(part: number, whole: number): number {
  return whole > 0 ? Math.max(part, 0) / whole : 0;
}
