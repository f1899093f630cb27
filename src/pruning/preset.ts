import type { PruneOptions } from '../prune.js';
import { oneOf, type PruningOptions } from './options.js';

/**
 * Sets of options under one name.
 * - `paper`: ALPS as published (NeurIPS 2024)
 * - `balanced`: ALPS in two thirds of the time to solve a layer (half where bfloat16 is multiplied in hardware, a third where 8-bit integers are), at
 *   errors up to some 1 % larger, 2 % with N:M
 */
export type Preset = 'paper' | 'balanced';

export const presets: Readonly<Record<Preset, Readonly<Partial<PruneOptions>>>> = {
  paper: {
    method: 'alps',
    schedule: 'alps',
    metric: 'diagonal',
    propagation: 'block',
    denseTarget: false,
    rowWeights: false,
    finalNorm: false,
  },
  balanced: { method: 'alps', schedule: 'short', refineIterations: 4, mixedPrecision: true },
};

/** The options with those of the preset that were not given otherwise. */
export function withPreset<T extends PruningOptions>(options: T): T {
  const { preset } = options;
  if (preset === undefined) return options;
  const name = oneOf('preset', Object.keys(presets) as Preset[], preset);
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
  const all = given.precision === 'float32' ? { mixedPrecision: false } : {};
  return { ...presets[name], ...all, ...given } as T;
}
