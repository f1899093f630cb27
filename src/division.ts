/** Layers of a block that share their input. */
export interface Group {
  /** Its place in the block: `block.stages[stage][group]`. */
  stage: number;
  group: number;
  layers: readonly { outputs: number; inputs: number }[];
}

/** Layers of one group that one device solves together. */
export interface Task {
  stage: number;
  group: number;
  /** Their places in the group, ascending. */
  layers: number[];
}

/**
 * Products of a matrix [outputs, n] with one [n, n] that ALPS on the ladder makes, for each factorisation with inverse of the latter:
 * 28 iterations, 10 of the refit and a few more, to 5; 36 to 6.
 */
const productsPerFactorisation = 8;

/**
 * Divides groups that do not depend on each other over devices: the dearest first, each to the device that is done first with it. Whole
 * groups are given out, since each device that has a part of one factorises its Gram matrix; where there are fewer groups than devices,
 * layers are.
 *
 * @param whole whether the layers of a group must stay together
 * @returns for each device its tasks, in the order of the dataflow
 */
export function divide(groups: readonly Group[], devices: number, whole: boolean): Task[][] {
  const pieces = groups.flatMap(({ stage, group, layers }, order) => {
    const n = layers[0]!.inputs;
    const fixed = n ** 3 / productsPerFactorisation;
    const cost = (places: number[]) => places.reduce((sum, i) => sum + layers[i]!.outputs * n ** 2, 0);
    const all = layers.map((_, i) => i);
    const cuts = whole || groups.length >= devices ? [all] : all.map((i) => [i]);
    return cuts.map((places) => ({ stage, group, order, layers: places, fixed, cost: cost(places) }));
  });
  const loads = new Float64Array(devices);
  const shares: Map<number, Task>[] = Array.from({ length: devices }, () => new Map());
  for (const { stage, group, order, layers, fixed, cost } of pieces.sort((a, b) => b.cost - a.cost)) {
    const after = Array.from(loads, (load, i) => load + cost + (shares[i]!.has(order) ? 0 : fixed));
    const device = after.indexOf(Math.min(...after));
    loads[device] = after[device]!;
    const task = shares[device]!.get(order) ?? { stage, group, layers: [] };
    task.layers.push(...layers);
    shares[device]!.set(order, task);
  }
  return shares.map((share) =>
    [...share].sort(([a], [b]) => a - b).map(([, task]) => ({ ...task, layers: task.layers.sort((a, b) => a - b) })),
  );
}
