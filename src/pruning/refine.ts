import { Scope, type Tensor } from '../device/tensor.js';
import type { LayerProblem } from './layer-problem.js';
import type { ParsedPruningOptions } from './options.js';

/**
 * Refits the kept weights in the way that was asked for.
 * @param b scaled weights, zero off the mask; refitted in place
 * @returns waits for what is queued so far, and gives the iterations of the conjugate gradient
 */
export function refit(
  problem: LayerProblem,
  b: Tensor<'float32'>,
  mask: Tensor<'uint8'>,
  options: Pick<ParsedPruningOptions, 'refit' | 'refineIterations' | 'refineTolerance'>,
): () => Promise<number> {
  const { refit, refineIterations: iterations, refineTolerance: tolerance } = options;
  if (refit === 'pcg' && iterations > 0) return refine(problem, b, mask, { iterations, tolerance });
  if (refit === 'backsolve') backsolve(problem, b, mask);
  return async () => {
    await problem.stream.sync();
    return 0;
  };
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
 * @returns gives the iterations in which some row moved
 */
function refine(
  problem: LayerProblem,
  b: Tensor<'float32'>,
  mask: Tensor<'uint8'>,
  options: { iterations: number; tolerance: number },
): () => Promise<number> {
  const { stream, device, m } = problem;
  const { iterations, tolerance } = options;
  using scope = new Scope();
  const shape = b.shape;
  const difference = scope.hold(device.empty('float32', shape, 'the refit’s right-hand side'));
  const residual = scope.hold(device.empty('float32', shape, 'the refit’s residual'));
  const rr = scope.hold(device.tensor('float64', [m]));
  const rr0 = scope.hold(device.tensor('float64', [m]));
  // R = (B₀ − B) H' on the mask; the difference's memory serves as direction afterwards, q has its own.
  stream.copy(problem.base, difference);
  stream.axpby(b, difference, -1, 1);
  stream.gemm(difference, problem.gram, residual, { split: true });
  const direction = difference;
  stream.cgStart(residual, mask, direction, rr, rr0);
  const q = scope.hold(device.empty('float32', shape, 'the refit’s product'));
  const active = device.tensor('uint32', [iterations]);
  try {
    for (let i = 0; i < iterations; i++) {
      stream.gemm(direction, problem.gram, q, { split: true });
      using count = active.rows(i, i + 1);
      stream.cgStep(q, mask, b, residual, direction, rr, rr0, tolerance, count);
    }
  } catch (error) {
    active.dispose();
    throw error;
  }
  return async () => {
    using _ = active;
    const moved = await stream.read(active);
    return moved.filter((rows) => rows > 0).length;
  };
}
