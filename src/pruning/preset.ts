import { invalidArgument } from '../errors.js';
import type { PruneOptions } from '../prune.js';

/** Sets of options under one name. `paper`: ALPS as published (NeurIPS 2024). */
export type Preset = 'paper';

export const presets: Readonly<Record<Preset, Readonly<Partial<PruneOptions>>>> = {
  paper: {
    method: 'alps',
    schedule: 'alps',
    metric: 'diagonal',
    propagation: 'block',
    denseTarget: false,
    rowWeights: false,
  },
};

/** The options with those of the preset that were not given otherwise. */
export function withPreset(options: PruneOptions): PruneOptions {
  const { preset } = options;
  if (preset === undefined) return options;
  if (!Object.hasOwn(presets, preset))
    throw invalidArgument(
      'preset',
      Object.keys(presets)
        .map((name) => `"${name}"`)
        .join(' or '),
      preset,
    );
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  return { ...presets[preset], ...Object.fromEntries(given) } as PruneOptions;
}
