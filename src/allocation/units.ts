import type { DecoderModel } from '../model/decoder.js';
import { linearShape, titleOf } from '../model/shapes.js';
import type { LayerSparsities } from './allocation.js';

/** A layer of a block, or the corresponding layers of all experts: the layers of a unit get the same sparsity. */
export interface Unit {
  block: number;
  /** Names of the layers, as in reports. */
  layers: string[];
  /** Number of weights in all its layers. */
  weights: number;
}

/** A unit and its measured sensitivity. */
export interface UnitSensitivity extends Unit {
  /** KL(uniform model ‖ the same with this unit from the sparser model) of the next token's distribution, in nats per token. */
  divergence: number;
  /** `divergence` divided by `weights`. */
  sensitivity: number;
}

/** A block's layers in the order of the dataflow: by unit, those of all experts. @param groups by stage, then by expert */
export function byUnit<T>(groups: readonly (readonly (readonly T[])[])[]): T[][] {
  return groups.flatMap((stage) => stage[0]!.map((_, i) => stage.map((group) => group[i]!)));
}

/** All units of a model, in the order of the dataflow. */
export function unitsOf({ architecture, config }: DecoderModel): Unit[] {
  return Array.from({ length: config.layers }, (_, block) => {
    const { attention, mlp } = architecture.block(block);
    const [qkv, o] = attention;
    const stages = [[qkv], [[o]], mlp.map(([inputs]) => inputs), mlp.map(([, output]) => [output])];
    return byUnit(stages).map((specs) => ({
      block,
      layers: specs.map(titleOf),
      weights: specs.reduce((sum, spec) => sum + linearShape(config, spec).reduce((a, b) => a * b), 0),
    }));
  }).flat();
}

/** Of the model's mean: no unit counts as less sensitive. */
const floorShare = 0.01;
/** By how much a unit's sparsity may differ from the mean; for N:M, which has steps of 1 of M, more. */
const mostChange = 0.2;
const mostChangeOfSteps = 0.3;
const mostSparsity = 0.99;

/**
 * log of each unit's sensitivity, held at a hundredth of the model's, less the mean over all weights. All 0 where nothing diverges: nothing is
 * known then.
 */
export function logSensitivities(units: readonly UnitSensitivity[]): number[] {
  const weights = units.reduce((sum, unit) => sum + unit.weights, 0);
  const overall = units.reduce((sum, { divergence }) => sum + divergence, 0) / weights;
  if (!(overall > 0)) return units.map(() => 0);
  const logs = units.map(({ sensitivity }) => Math.log(Math.max(sensitivity, floorShare * overall)));
  const center = units.reduce((sum, unit, i) => sum + unit.weights * logs[i]!, 0) / weights;
  return logs.map((log) => log - center);
}

/** Each layer's sparsity: that of all, less `gain` for each e-fold of sensitivity. @param steps whether it is for N:M */
export function sparsitiesAt(
  gain: number,
  sparsity: number,
  units: readonly Unit[],
  logs: readonly number[],
  steps = false,
): LayerSparsities {
  const most = steps ? mostChangeOfSteps : mostChange;
  const clamp = (x: number, low: number, high: number) => Math.min(high, Math.max(low, x));
  return Object.fromEntries(
    units.flatMap(({ layers }, i) => {
      const moved = clamp(sparsity - gain * logs[i]!, sparsity - most, sparsity + most);
      return layers.map((name) => [name, clamp(moved, 0, Math.max(sparsity, mostSparsity))]);
    }),
  );
}

/** Gains in the order of size; the search begins with the middle one. Small ones move no layer by a step of N:M. */
const usualGains = [0.04, 0.08, 0.16];
const gainsOfSteps = [0.12, 0.24, 0.48];

/**
 * The gain to try next: the middle one, then upwards or downwards from it for as long as the loss falls.
 * @param losses of the gains that were tried, with that of gain 0, the base
 * @param steps whether it is for N:M
 * @returns undefined when the search is over
 */
export function nextGain(losses: ReadonlyMap<number, number>, steps = false): number | undefined {
  const gains = steps ? gainsOfSteps : usualGains;
  const start = gains.length >> 1;
  const at = (i: number) => losses.get(i < 0 ? 0 : gains[i]!);
  if (at(start) === undefined) return gains[start];
  const step = at(start)! < losses.get(0)! ? 1 : -1;
  for (let i = start + step; i >= 0 && i < gains.length; i += step) {
    if (at(i) === undefined) return gains[i];
    if (at(i)! >= at(i - step)!) return undefined;
  }
  return undefined;
}
