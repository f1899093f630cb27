import type { Stream } from '../device/stream.js';
import { Scope, type Tensor } from '../device/tensor.js';
import { together } from '../together.js';
import { solveAlps } from './alps.js';
import { damped } from './damping.js';
import { solveDsnot } from './dsnot.js';
import { keptOf, type LayerGroup, LayerProblem, segmentsOf, wholeGram } from './layer-problem.js';
import { solveMagnitude } from './magnitude.js';
import { isRowwise, type Method, type ParsedPruningOptions, type Precision } from './options.js';
import { refit } from './refine.js';
import type { Selection } from './selection.js';
import { type Solution, solutionTensors } from './solution.js';
import { solveSparseGpt } from './sparsegpt.js';
import { solveWanda } from './wanda.js';

/** What was reached for one layer. */
export interface LayerResult {
  name: string;
  /** Weights that stay (k). */
  kept: number;
  /** Share of zeros: 1 − kept / size. */
  sparsity: number;
  /** tr((W−Ŵ) XᵀX (W−Ŵ)ᵀ) / tr(Ŵ XᵀX Ŵᵀ): the relative error of the layer's outputs. 0 when the outputs are all zero, NaN when not asked for or lost in rounding. */
  error: number;
  /** The same with H = XᵀX + λ₂I in place of XᵀX: the objective that is minimised. */
  errorWithRidge: number;
}

export interface GroupResult extends Omit<Solution, 'time'> {
  layers: LayerResult[];
  /** λ₂ in units of the Gram matrix. */
  ridge: number;
  /** How many times the ridge had to be raised (×10 each) because H was not positive definite in float32. */
  dampingSteps: number;
  /** Milliseconds. `admm` is the whole search of the methods without ADMM. */
  time: { factorise: number; admm: number; refine: number; error: number };
}

/** Prunes layers that share their input. The group's tensors stay the caller's. */
export function solveGroup(
  stream: Stream,
  group: LayerGroup,
  options: ParsedPruningOptions,
  precision: Precision,
): Promise<GroupResult> {
  return damped(group.layers, options.ridge, (ridge, dampingSteps) =>
    solveOnce(stream, group, { ...options, ridge }, precision, dampingSteps),
  );
}

async function solveOnce(
  stream: Stream,
  group: LayerGroup,
  options: ParsedPruningOptions,
  precision: Precision,
  dampingSteps: number,
): Promise<GroupResult> {
  const segments = segmentsOf(group, options.pattern, isRowwise(options));
  const problem = await LayerProblem.create(stream, group, segments, options.ridge);
  try {
    const { ridge } = problem;
    const solution = await solveBy(problem, options, precision);
    try {
      if (options.method === 'alps' || options.method === 'sparsegpt' || options.refit !== 'none')
        problem.watch(solution.weight);
      const began = performance.now();
      const measure = async () => {
        using copy = stream.device.tensor('float32', group.weight.shape, 'the weights’ difference');
        stream.copy(group.weight, copy);
        return await layerErrors(stream, { ...group, weight: copy }, solution.weight, ridge, segments.keep);
      };
      const [, layers] = await together([
        problem.checkFinite(),
        options.errors ? measure() : withoutErrors(group, segments.keep),
      ]);
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

type Selector = (problem: LayerProblem, options: ParsedPruningOptions, selection: Selection) => Promise<void> | void;

/** The methods that find a mask, with the weights on it; the refit is separate. */
const selectors: Record<Exclude<Method, 'alps'>, Selector> = {
  magnitude: solveMagnitude,
  wanda: solveWanda,
  sparsegpt: solveSparseGpt,
  dsnot: solveDsnot,
};

/** The shortcut (nothing or everything stays) and the methods. */
async function solveBy(problem: LayerProblem, options: ParsedPruningOptions, precision: Precision): Promise<Solution> {
  const { segments, m, n } = problem;
  const kept = keptOf(segments);
  if (kept === 0 || kept === m * n) return select(problem, { ...options, refit: 'none' }, solveMagnitude);
  if (options.method === 'alps') return solveAlps(problem, options, precision);
  return select(problem, options, selectors[options.method]);
}

/** Runs a selector, then the refit. */
async function select(problem: LayerProblem, options: ParsedPruningOptions, selector: Selector): Promise<Solution> {
  const { stream, device, group } = problem;
  const { weight, mask } = solutionTensors(device, group.weight.shape);
  try {
    const began = performance.now();
    stream.enterPhase('admm');
    await selector(problem, options, { weight, mask });
    await stream.sync();
    stream.enterPhase('refine');
    const searched = performance.now();
    let refineIterations = 0;
    if (options.refit !== 'none') {
      using b = problem.scaled(weight);
      refineIterations = await refit(problem, b, mask, options)();
      problem.unscale(b);
      stream.copy(b, weight);
      await stream.sync();
    }
    const time = { factorise: 0, admm: searched - began, refine: performance.now() - searched };
    return { weight, mask, iterations: 0, refineIterations, trace: [], capped: false, time };
  } catch (error) {
    weight.dispose();
    mask.dispose();
    throw error;
  }
}

/** What stays of each layer, where errors are not asked for. */
export function withoutErrors({ layers, weight }: Pick<LayerGroup, 'layers' | 'weight'>, keep: readonly number[]) {
  const n = weight.shape[1]!;
  return layers.map(({ name, outputs }, i): LayerResult => {
    const sparsity = 1 - keep[i]! / (outputs * n);
    return { name, kept: keep[i]!, sparsity, error: Number.NaN, errorWithRidge: Number.NaN };
  });
}

/**
 * The relative error of each layer, from the Gram matrix; sums over rows in double. Queues all its work at its call.
 * @param group whose weights are overwritten
 */
export async function layerErrors(
  stream: Stream,
  group: LayerGroup,
  pruned: Tensor<'float32'>,
  ridge: number,
  keep: readonly number[],
): Promise<LayerResult[]> {
  const { device } = stream;
  stream.enterPhase('error');
  const gram = wholeGram(group);
  const difference = group.weight;
  using scope = new Scope();
  const sums = ['lost', 'lostRidge', 'whole', 'wholeRidge'].map(() =>
    scope.hold(device.tensor('float64', [difference.shape[0]!])),
  );
  const [lost, lostRidge, whole, wholeRidge] = sums as [
    Tensor<'float64'>,
    Tensor<'float64'>,
    Tensor<'float64'>,
    Tensor<'float64'>,
  ];
  stream.quadraticForms(difference, gram, whole);
  stream.rowDots(difference, difference, wholeRidge);
  stream.axpby(pruned, difference, -1, 1);
  stream.quadraticForms(difference, gram, lost);
  stream.rowDots(difference, difference, lostRidge);
  const [lostRows, lostRidgeRows, wholeRows, wholeRidgeRows] = (await Promise.all(
    sums.map((sum) => stream.read(sum)),
  )) as [Float64Array, Float64Array, Float64Array, Float64Array];
  let row = 0;
  return withoutErrors(group, keep).map((layer, i) => {
    const { outputs } = group.layers[i]!;
    const total = (rows: Float64Array) => rows.subarray(row, row + outputs).reduce((sum, value) => sum + value, 0);
    const [a, b, c, d] = [total(lostRows), total(lostRidgeRows), total(wholeRows), total(wholeRidgeRows)];
    row += outputs;
    return { ...layer, error: ratio(a, c), errorWithRidge: ratio(a + ridge * b, c + ridge * d) };
  });
}

/** NaN where the sums overflowed, or are negative by more than rounding: of weights that cancel one another, or of no Gram matrix. */
function ratio(part: number, whole: number): number {
  if (!Number.isFinite(part) || !Number.isFinite(whole) || whole < 0 || part < -1e-5 * whole) return Number.NaN;
  return whole > 0 ? Math.max(part, 0) / whole : 0;
}
