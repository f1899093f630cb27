import type { LayerProblem } from './layer-problem.js';
import { isRowwise, type ParsedPruningOptions } from './options.js';
import { chooseLargest, wandaScores } from './scores.js';
import { keepOnMask, type Selection } from './selection.js';

/** Wanda: the largest |w| ‖x‖ of each row (or layer) stay as they are. */
export function solveWanda(problem: LayerProblem, options: ParsedPruningOptions, selection: Selection): void {
  const { stream, group, segments } = problem;
  using scores = wandaScores(problem);
  chooseLargest(stream, scores, selection.mask, { pattern: options.pattern, segments, byRow: isRowwise(options) });
  keepOnMask(stream, group.weight, selection);
}
