import { AlpsError, invalidArgument } from '../errors.js';
import { numberIn } from '../pruning/options.js';
import { isNm, keptPerRow, keptWeights, type Pattern } from '../pruning/pattern.js';

/** One matrix that is pruned. */
export interface LayerShape {
  /** Tensor name without ".weight", as reports have it. */
  name: string;
  outputs: number;
  inputs: number;
}

/** A sparsity from 0 to 1 for every layer, by the layer's name; rescaled to a run's total (see `allocation` of `PruneOptions`). */
export type LayerSparsities = Readonly<Record<string, number>>;

/** What one layer keeps. */
export interface LayerBudget {
  pattern: Pattern;
  /** Weights. */
  keep: number;
}

/** Checks {@link LayerSparsities} as they come from outside; the names are checked by {@link allocate}. */
export function parseLayerSparsities(value: unknown): LayerSparsities | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw invalidArgument('allocation', 'an object of sparsities by layer', value);
  for (const [name, sparsity] of Object.entries(value)) numberIn(`allocation["${name}"]`, sparsity, 0, 1);
  return value as LayerSparsities;
}

/**
 * Divides one budget over all layers: each gets the sparsity asked for it, moved so that all layers together keep exactly what `pattern` keeps of
 * them, to the weight. Where that is less than what was asked for, each layer keeps the same fraction of it, so none is emptied (but an N
 * that rounds to 0); where it is more, all sparsities are lowered by one amount (and bounded by 0). Where a layer can only have whole steps (an N of
 * its own for N:M, as many in each row), together they keep at most as much, less by no more than what the next step of a layer takes.
 * @param wanted a sparsity for every layer
 * @param byRow whether every row of a layer keeps as many
 * @throws AlpsError `INVALID_ARGUMENT` where a layer has none, or a name is no layer's
 */
export function allocate(
  layers: readonly LayerShape[],
  pattern: Pattern,
  wanted: LayerSparsities,
  byRow = false,
): Map<string, LayerBudget> {
  checkNames(layers, wanted);
  const sizes = layers.map(({ outputs, inputs }) => outputs * inputs);
  const keptOf = ({ name, outputs, inputs }: LayerShape) =>
    byRow && !isNm(pattern) ? outputs * keptPerRow(pattern, inputs) : keptWeights(pattern, outputs, inputs, name);
  const budget = layers.reduce((sum, layer) => sum + keptOf(layer), 0);
  const density = layers.map(({ name }) => 1 - wanted[name]!);
  const asked = sizes.reduce((sum, size, i) => sum + size * density[i]!, 0);
  const share = asked > budget ? density.map((d) => (d * budget) / asked) : raised(density, sizes, budget);
  // The step of a layer, in weights: one, one of each M, or one of each row.
  const step = ({ outputs }: LayerShape, size: number) => (isNm(pattern) ? size / pattern.of : byRow ? outputs : 1);
  const unit = layers.map((layer, i) => step(layer, sizes[i]!));
  const exact = sizes.map((size, i) => (size * share[i]!) / unit[i]!);
  const count = exact.map(Math.floor);
  let left = budget - count.reduce((sum, c, i) => sum + c * unit[i]!, 0);
  const byRemainder = [...count.keys()].sort((a, b) => exact[b]! - count[b]! - (exact[a]! - count[a]!) || a - b);
  for (let before = -1; left > 0 && left !== before; ) {
    before = left;
    for (const i of byRemainder) {
      if (unit[i]! > left || count[i]! * unit[i]! >= sizes[i]!) continue;
      count[i]!++;
      left -= unit[i]!;
    }
  }
  return new Map(
    layers.map(({ name }, i) => {
      const keep = count[i]! * unit[i]!;
      return [
        name,
        { keep, pattern: isNm(pattern) ? { keep: count[i]!, of: pattern.of } : { sparsity: 1 - keep / sizes[i]! } },
      ];
    }),
  );
}

const clamp = (share: number) => Math.min(1, Math.max(0, share));

/** All densities raised by one amount, found by bisection, so that `budget` weights are kept. */
function raised(density: readonly number[], sizes: readonly number[], budget: number): number[] {
  const kept = (shift: number) => sizes.reduce((sum, size, i) => sum + size * clamp(density[i]! + shift), 0);
  let [low, high] = [0, 1];
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (kept(middle) > budget) high = middle;
    else low = middle;
  }
  return density.map((d) => clamp(d + low));
}

function checkNames(layers: readonly LayerShape[], wanted: LayerSparsities): void {
  const names = new Set(layers.map(({ name }) => name));
  const missing = layers.find(({ name }) => !Object.hasOwn(wanted, name));
  const unknown = Object.keys(wanted).find((name) => !names.has(name));
  if (missing) throw new AlpsError('INVALID_ARGUMENT', `The allocation has no sparsity for ${missing.name}`);
  if (unknown !== undefined)
    throw new AlpsError('INVALID_ARGUMENT', `The allocation names "${unknown}", which is no layer of the model`);
}
