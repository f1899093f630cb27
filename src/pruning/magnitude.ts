import type { LayerGroup, LayerProblem } from './layer-problem.js';
import { isRowwise, type ParsedPruningOptions } from './options.js';
import { chooseLargest } from './scores.js';
import { keepOnMask, type Selection } from './selection.js';

/** Magnitude pruning (MP): the largest weights of each layer, or row, stay as they are. */
export function solveMagnitude(
  { stream, group, segments }: Pick<LayerProblem, 'stream' | 'segments'> & { group: Pick<LayerGroup, 'weight'> },
  options: ParsedPruningOptions,
  selection: Selection,
): void {
  const { pattern } = options;
  chooseLargest(stream, group.weight, selection.mask, { pattern, segments, byRow: isRowwise(options) });
  keepOnMask(stream, group.weight, selection);
}
