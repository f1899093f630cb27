import { type LayerProblem, nativePattern } from './layer-problem.js';
import type { ParsedPruningOptions } from './options.js';
import { isNm, type Pattern } from './pattern.js';
import { inverseFactor } from './scores.js';
import type { Selection } from './selection.js';

/**
 * SparseGPT: a sweep over blocks of columns. Its scores and updates do not depend on a scaling of the inputs, so it runs in
 * the scaled variables, where H' has a unit diagonal. Source: "SparseGPT: Massive Language Models Can Be Accurately Pruned
 * in One-Shot", ICML 2023. Each block keeps its share of k and the whole exactly k; the published code keeps one fewer a block.
 */
export function solveSparseGpt(problem: LayerProblem, options: ParsedPruningOptions, selection: Selection): void {
  const { stream, base, segments } = problem;
  const { weight, mask } = selection;
  using factor = inverseFactor(problem);
  stream.copy(base, weight);
  const block = wholeGroups(options.pattern, options.blockSize);
  stream.sparseGpt(weight, factor, mask, nativePattern(options.pattern), segments, block);
  problem.unscale(weight);
}

/** The block size for whole groups: the multiple of M at or below the one asked for, at least M. */
function wholeGroups(pattern: Pattern, blockSize: number): number {
  return isNm(pattern) ? Math.max(1, Math.floor(blockSize / pattern.of)) * pattern.of : blockSize;
}
