import type { PruneOptions } from '../prune.js';
import { oneOf, type PruningOptions } from './options.js';

/**
 * A set of options under one name; options given explicitly override it.
 * - `paper`: ALPS as published (NeurIPS 2024)
 * - `balanced`: ALPS in about 0.7 of the default's time for a layer (0.58 to 0.97 on a Zen 4, both with `mixedPrecision`), with errors 0.4 to 1.2 %
 *   larger, 2 % with N:M (docs/benchmarks.md)
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

/** The options, and those of the preset that were not given explicitly. */
export function withPreset<T extends PruningOptions>(options: T): T {
  const { preset } = options;
  if (preset === undefined) return options;
  const name = oneOf('preset', Object.keys(presets) as Preset[], preset);
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
  const all = given.precision === 'float32' ? { mixedPrecision: false } : {};
  return { ...presets[name], ...all, ...given } as T;
}
