import { Scope } from '../device/tensor.js';
import { missingMoments } from './input-moments.js';
import { type LayerProblem, namesOf, nativePattern } from './layer-problem.js';
import type { ParsedPruningOptions } from './options.js';
import { isNm } from './pattern.js';
import { chooseLargest, sparseGptScores, wandaScores } from './scores.js';
import { keepOnMask, type Selection } from './selection.js';

/**
 * DSnoT: swaps a row's pruned and kept weights as long as that lessens the expected change of its output. Source: "Dynamic
 * Sparse No Training: Training-Free Fine-tuning for Sparse LLMs", ICLR 2024, and its code where the paper is silent: growing
 * by w E[x] / Var[x], pruning by Wanda's score (in N:M by the initial one, within the group), sums over a window.
 */
export async function solveDsnot(
  problem: LayerProblem,
  options: ParsedPruningOptions,
  selection: Selection,
): Promise<void> {
  const { stream, group, segments, diagonal } = problem;
  const { pattern, dsnot } = options;
  using scope = new Scope();
  const initial = scope.hold(await initialScores(problem, dsnot.initial));
  chooseLargest(stream, initial, selection.mask, { pattern, segments, byRow: true });
  const { moments } = group;
  if (!moments) throw missingMoments(namesOf(group));
  const { mean, variance, windowLength } = moments;
  const expected = Float32Array.from(mean, (value) => value * windowLength);
  const n = diagonal.length;
  const inputs = {
    expected: scope.hold(stream.upload('float32', [n], expected)),
    variance: scope.hold(stream.upload('float32', [n], Float32Array.from(variance))),
  };
  const metric = isNm(pattern) ? initial : scope.hold(wandaScores(problem));
  const { maxCycles: cycles, threshold, sameSign } = dsnot;
  stream.dsnot(group.weight, metric, inputs, selection.mask, nativePattern(pattern), { cycles, threshold, sameSign });
  keepOnMask(stream, group.weight, selection);
}

async function initialScores(problem: LayerProblem, initial: 'wanda' | 'magnitude' | 'sparsegpt') {
  if (initial === 'wanda') return wandaScores(problem);
  if (initial === 'sparsegpt') return sparseGptScores(problem);
  const scores = problem.device.tensor('float32', problem.group.weight.shape, 'magnitudes');
  problem.stream.copy(problem.group.weight, scores);
  return scores;
}
