import { Scope, type Tensor } from '../device/tensor.js';
import { together } from '../together.js';
import { fewestTogether, keptOf, type LayerProblem, productsTogether } from './layer-problem.js';
import type { ParsedPruningOptions, Precision } from './options.js';

/**
 * Refits the kept weights in the way that was asked for.
 * @param b scaled weights, zero off the mask; refitted in place
 * @param steps what the products of the conjugate gradient's steps are taken in, see {@link stepsProducts}
 */
export function refit(
  problem: LayerProblem,
  b: Tensor<'float32'>,
  mask: Tensor<'uint8'>,
  options: Pick<ParsedPruningOptions, 'refit' | 'refineIterations' | 'refineTolerance'>,
  steps: StepsProducts = 'float32',
): Refitting {
  const { refit, refineIterations: iterations, refineTolerance: tolerance } = options;
  if (refit === 'pcg' && iterations > 0) return refine(problem, b, mask, { iterations, tolerance, steps });
  if (refit === 'backsolve') backsolve(problem, b, mask);
  return async (last, queued) => {
    queued?.();
    await together([problem.stream.sync(), afterwards(last)]);
    return 0;
  };
}

/**
 * Waits for a refit, and gives the iterations in which some row moved.
 * @param last queues what comes behind the refit's last op, for the device to do while the host waits
 * @param queued is called when all ops of the refit are queued
 */
type Refitting = (last?: () => void, queued?: () => void) => Promise<number>;

const afterwards = async (last: (() => void) | undefined) => last?.();

/** Most steps that are taken in bfloat16. */
const narrowSteps = 5;
/**
 * Added to the diagonal of a rounded H': some times what rounding moves pᵀH'p by, in units of pᵀp. Where H' is next to singular, a rounded one may have
 * a pᵀH'p of any size, and with it a step of any length.
 */
const narrowShift = 2 ** -6;
/** Smaller tolerances mean nothing in float32, and residuals that are next to its smallest numbers no longer fall. */
const leastTolerance = 1e-12;
/** Steps that are queued before it is looked at whether any row still moves. */
const stepsTogether = 64;
/** Most steps of a row that it is expected to take, whatever was asked for. */
const expectedSteps = 100;

/** Number format of products; int8: of bfloat16 by `int8Gemm`. */
type StepsProducts = Precision | 'int8';

/**
 * What the products of the refit's steps are taken in behind ADMM. Its solution is close to the refit's, and what few steps change of it comes out the
 * same with H' and the directions in bfloat16 or integers, which many steps, or steps from a mask alone, do not (docs/algorithm.md, "Refit").
 * @param options of `onDevices`
 */
export function stepsProducts({ mixedPrecision, int8, refineIterations }: ParsedPruningOptions): StepsProducts {
  if (!mixedPrecision || refineIterations > narrowSteps) return 'float32';
  return int8 ? 'int8' : 'bfloat16';
}

/** The exact minimum over the weights on the mask: H'[S, S] b[S] = (B₀ H')[S] for each row's support S. */
function backsolve({ stream, device, base, gram }: LayerProblem, b: Tensor<'float32'>, mask: Tensor<'uint8'>): void {
  using right = device.empty('float32', base.shape, 'the backsolve’s right-hand side');
  stream.gemm(base, gram, right);
  stream.backsolve(gram, right, mask, b);
}

/**
 * Refits the kept weights: min ‖X Ŵᵀ − X Wᵀ‖² over the weights on the mask, by conjugate gradients for all outputs at once
 * (docs/algorithm.md, "Refit"). H' has a unit diagonal, so the Jacobi preconditioner is the scaling itself.
 *
 * @param b scaled weights, zero off the mask; refined in place
 */
function refine(
  problem: LayerProblem,
  b: Tensor<'float32'>,
  mask: Tensor<'uint8'>,
  options: { iterations: number; tolerance: number; steps: StepsProducts },
): Refitting {
  const { stream, device, m, n } = problem;
  const { iterations, steps } = options;
  const tolerance = Math.max(options.tolerance, leastTolerance);
  const scope = new Scope();
  let active: Tensor<'uint32'> | undefined;
  let goOn: (() => Promise<void>) | undefined;
  try {
    const difference = scope.hold(device.empty('float32', b.shape, 'the refit’s right-hand side'));
    const residual = scope.hold(device.empty('float32', b.shape, 'the refit’s residual'));
    // R = (B₀ − B) H' on the mask.
    stream.copy(problem.base, difference);
    stream.axpby(b, difference, -1, 1);
    stream.gemm(difference, problem.gram, residual, { split: true });
    const pieces = gathersSupports(problem, iterations, steps)
      ? rowPieces(m, rowOperations(keptOf(problem.segments) / m, n, iterations), productsTogether(device))
      : [];
    active = device.tensor('uint32', [Math.max(1, pieces.length), iterations]);
    if (pieces.length > 0) onSupports(problem, { b, mask, residual, tolerance, pieces, active });
    else goOn = sideBySide(problem, { b, mask, residual, direction: difference, tolerance, active }, steps, scope);
  } catch (error) {
    scope.dispose();
    active?.dispose();
    throw error;
  }
  if (!goOn) scope.dispose();
  const counts = active;
  return async (last, queued) => {
    using _ = counts;
    try {
      await goOn?.();
    } finally {
      scope.dispose();
    }
    queued?.();
    const [moved] = await together([stream.read(counts), afterwards(last)]);
    return iterationsIn(moved, iterations);
  };
}

/** Of all steps of a row that keeps so many of n weights. */
function rowOperations(kept: number, n: number, iterations: number): number {
  return Math.min(iterations, expectedSteps) * kept * 2 * n;
}

/** Bytes that the steps are counted in, at most. */
export function countBytes(m: number, n: number, iterations: number): number {
  return 4 * iterations * Math.ceil(m / rowsTogether(rowOperations(n, n, iterations), fewestTogether));
}

/** Iterations in which some row moved, of the rows that did in [pieces, iterations]. */
export function iterationsIn(moved: Uint32Array, iterations: number): number {
  const steps = new Uint8Array(iterations);
  for (let at = 0; at < moved.length; at++) if (moved[at]! > 0) steps[at % iterations] = 1;
  return steps.reduce((sum, step) => sum + step, 0);
}

interface Steps {
  b: Tensor<'float32'>;
  mask: Tensor<'uint8'>;
  residual: Tensor<'float32'>;
  tolerance: number;
  /** Rows that moved, [pieces, iterations]. */
  active: Tensor<'uint32'>;
}

/**
 * All rows side by side: a product with the whole H' for each step.
 * @returns what queues the other steps where these were many, and stops when no row moves any more; it needs what is in the scope
 */
function sideBySide(
  { stream, device, gram, m }: LayerProblem,
  { b, mask, residual, direction, tolerance, active }: Steps & { direction: Tensor<'float32'> },
  products: StepsProducts,
  scope: Scope,
): (() => Promise<void>) | undefined {
  const [rr, rr0] = [scope.hold(device.empty('float64', [m])), scope.hold(device.empty('float64', [m]))];
  const q = scope.hold(device.empty('float32', b.shape, 'the refit’s product'));
  const narrow = products !== 'float32' && {
    gram: scope.hold(device.empty('bfloat16', gram.shape, 'the refit’s Gram matrix in bfloat16')),
    direction: scope.hold(device.empty('bfloat16', b.shape, 'the refit’s direction in bfloat16')),
  };
  if (narrow) stream.copy(gram, narrow.gram);
  stream.cgStart(residual, mask, direction, rr, rr0);
  const counts = scope.hold(active.reshape(active.size));
  const queue = (from: number) => {
    const end = Math.min(from + stepsTogether, active.size);
    for (let i = from; i < end; i++) {
      if (narrow) {
        stream.copy(direction, narrow.direction);
        if (products === 'int8') stream.int8Gemm(narrow.direction, narrow.gram, q);
        else stream.gemm(narrow.direction, narrow.gram, q);
        stream.axpby(direction, q, narrowShift, 1);
      } else stream.gemm(direction, gram, q, { split: true });
      using count = counts.rows(i, i + 1);
      stream.cgStep(q, mask, b, residual, direction, rr, rr0, tolerance, count);
    }
    return end;
  };
  const first = queue(0);
  if (first === active.size) return undefined;
  return async () => {
    for (let done = first; done < active.size; done = queue(done)) {
      using last = counts.rows(done - 1, done);
      if ((await stream.read(last))[0] === 0) return;
    }
  };
}

/** Each row on its own, with H' on its support. */
function onSupports(
  { stream, gram, segments, m }: LayerProblem,
  { b, mask, residual, tolerance, active, pieces }: Steps & { pieces: [first: number, end: number][] },
): void {
  for (const [i, [first, end]] of pieces.entries()) {
    using kept = mask.rows(first, end);
    using x = b.rows(first, end);
    using r = residual.rows(first, end);
    using counts = active.rows(i, i + 1);
    const numbers = Math.round((keptOf(segments) * (end - first)) / m);
    stream.cgOnSupport(gram, kept, x, r, { tolerance, kept: numbers }, counts);
  }
}

/**
 * Whether each row on its own is faster. It is on a processor for the sparser layers: gathering H'[S, S] takes as long as a share of 4 |S| / n of
 * a row's product with the whole H', a step with it 1.6 (|S| / n)², or 2.8 where it is too large for a core's cache, one in
 * bfloat16 half of one in float32, and one of integers a quarter (docs/performance.md).
 */
function gathersSupports({ device, segments, m, n }: LayerProblem, iterations: number, steps: StepsProducts): boolean {
  if (device.name !== 'cpu') return false;
  let cost = 0;
  for (const [i, keep] of segments.keep.entries()) {
    const rows = segments.rowEnds[i]! - (segments.rowEnds[i - 1] ?? 0);
    const kept = keep / rows;
    if (kept > 1100) return false;
    cost += rows * ((4 * kept) / n + (kept > 700 ? 2.8 : 1.6) * iterations * (kept / n) ** 2);
  }
  return cost < m * iterations * { float32: 1, bfloat16: 0.5, int8: 0.25 }[steps];
}

/** Rows that one op takes up, of at most so many operations where a row does not have more. */
function rowsTogether(operationsPerRow: number, most: number): number {
  return Math.max(1, Math.floor(most / Math.max(1, operationsPerRow)));
}

/** The ranges of these. */
export function rowPieces(rows: number, operationsPerRow: number, most: number): [first: number, end: number][] {
  const together = rowsTogether(operationsPerRow, most);
  return Array.from({ length: Math.ceil(rows / together) }, (_, i) => [
    i * together,
    Math.min(rows, (i + 1) * together),
  ]);
}
