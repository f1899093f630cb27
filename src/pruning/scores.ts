import type { Segments, Stream } from '../device/stream.js';
import type { Tensor } from '../device/tensor.js';
import { keptOf, type LayerProblem, nativePattern } from './layer-problem.js';
import { isNm, type Pattern } from './pattern.js';

type F32 = Tensor<'float32'>;

/**
 * The mask of the largest |scores|: of each N:M group, each row, or each layer; ties to the lowest index.
 * @param byRow unstructured: whether each row has its own budget
 */
export function chooseLargest(
  stream: Stream,
  scores: F32,
  mask: Tensor<'uint8'>,
  options: { pattern: Pattern; segments: Segments; byRow: boolean },
): void {
  const { pattern, segments, byRow } = options;
  if (byRow && !isNm(pattern)) {
    const kept = keptOf(segments);
    stream.projectRows(scores, mask, kept / scores.shape[0]!);
  } else stream.project(scores, mask, nativePattern(pattern), segments);
}

/** Wanda's score |w| √(XᵀX)ⱼⱼ, up to a factor ("A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024). */
export function wandaScores(problem: LayerProblem): F32 {
  const { stream, device, group, diagonal } = problem;
  using norms = stream.upload('float32', [diagonal.length], diagonal.map(Math.sqrt));
  const scores = device.empty('float32', group.weight.shape, 'Wanda’s scores');
  try {
    stream.scaleRowsColumns(group.weight, { column: norms }, scores);
    problem.watch(scores);
    return scores;
  } catch (error) {
    scores.dispose();
    throw error;
  }
}

/** L with H'⁻¹ = L Lᵀ, float32 [n, n]. The next await rejects with `NOT_POSITIVE_DEFINITE` where H' cannot be factorised. */
export function inverseFactor({ stream, device, gram, n }: LayerProblem): F32 {
  const factor = device.empty('float32', [n, n], 'the factor of the inverse Gram matrix');
  stream.copy(gram, factor);
  stream.inverseFactor(factor);
  return factor;
}

/** SparseGPT's score w / Lⱼⱼ before anything was pruned (its square is what it ranks by). */
export async function sparseGptScores(problem: LayerProblem): Promise<F32> {
  const { stream, device, base, n } = problem;
  using factor = inverseFactor(problem);
  using diagonal = device.tensor('float32', [n]);
  stream.diagonal(factor, diagonal);
  const values = await stream.read(diagonal);
  using inverse = stream.upload(
    'float32',
    [n],
    values.map((d) => 1 / d),
  );
  const scores = device.empty('float32', base.shape, 'SparseGPT’s scores');
  stream.scaleRowsColumns(base, { column: inverse }, scores);
  return scores;
}
