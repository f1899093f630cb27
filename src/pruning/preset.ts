import type { PruneOptions } from '../prune.js';
import { oneOf } from './options.js';

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
  const name = oneOf('preset', Object.keys(presets) as Preset[], preset);
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  return { ...presets[name], ...Object.fromEntries(given) } as PruneOptions;
}
