import type { PruneOptions } from '../prune.js';
import { type DsnotOptions, type Method, type Metric, type Refit, usualSchedule } from '../pruning/options.js';
import { type Preset, presets } from '../pruning/preset.js';
import { type AlpsScheduleOptions, isLadder, type ScheduleName } from '../pruning/rho-schedule.js';
import type { Propagation } from '../traversal.js';
import {
  calibrationOptions,
  device,
  deviceOptions,
  devices,
  list,
  number,
  numbers,
  pattern,
  string,
  UsageError,
  type Values,
} from './arguments.js';

/** Options that say how a model is pruned. */
export const pruningOptions = {
  sparsity: { type: 'string' },
  pattern: { type: 'string' },
  ...calibrationOptions,
  method: { type: 'string' },
  refit: { type: 'string' },
  'comparison-group': { type: 'string' },
  'dsnot-initial': { type: 'string' },
  'dsnot-skip': { type: 'string' },
  'dsnot-cycles': { type: 'string' },
  'dsnot-threshold': { type: 'string' },
  schedule: { type: 'string' },
  rho: { type: 'string' },
  'max-iterations': { type: 'string' },
  metric: { type: 'string' },
  relaxation: { type: 'string' },
  'mixed-precision': { type: 'string' },
  propagation: { type: 'string' },
  'dense-target': { type: 'string' },
  preset: { type: 'string' },
  'row-weights': { type: 'string' },
  'final-norm': { type: 'string' },
  ridge: { type: 'string' },
  'refine-iterations': { type: 'string' },
  errors: { type: 'string' },
  ...deviceOptions,
} as const;

/** The same as the library takes them. */
export function pruningOptionsOf(values: Values) {
  const files = list(values, 'calibration');
  if (files.length === 0 && values['own-windows'] !== undefined)
    throw new UsageError('--own-windows go on from the windows of a --calibration');
  return {
    sparsity: number(values, 'sparsity'),
    pattern: pattern(values),
    method: string(values, 'method') as Method | undefined,
    refit: string(values, 'refit') as Refit | undefined,
    comparisonGroup: string(values, 'comparison-group') as 'layer' | 'row' | undefined,
    dsnot: dsnotOptions(values),
    schedule: string(values, 'schedule') as ScheduleName | undefined,
    alpsSchedule: scheduleOptions(values),
    metric: string(values, 'metric') as Metric | undefined,
    relaxation: number(values, 'relaxation'),
    mixedPrecision: onOff(values, 'mixed-precision'),
    propagation: string(values, 'propagation') as Propagation | undefined,
    denseTarget: denseTargetOption(values),
    preset: string(values, 'preset') as Preset | undefined,
    rowWeights: onOff(values, 'row-weights'),
    finalNorm: onOff(values, 'final-norm'),
    ridge: number(values, 'ridge'),
    refineIterations: number(values, 'refine-iterations'),
    errors: onOff(values, 'errors'),
    ...(files.length > 0
      ? {
          calibration: {
            text: files,
            shares: numbers(values, 'shares'),
            field: string(values, 'field'),
            windows: number(values, 'windows'),
            length: number(values, 'length'),
            seed: number(values, 'seed'),
            ownWindows: number(values, 'own-windows'),
          },
        }
      : {}),
    ...device(values),
    device: devices(values),
  } satisfies Partial<PruneOptions>;
}

function scheduleOptions(values: Values): AlpsScheduleOptions | undefined {
  const given = { initialRho: number(values, 'rho'), maxIterations: number(values, 'max-iterations') };
  const set = Object.entries(given).filter(([, value]) => value !== undefined);
  if (set.length === 0) return undefined;
  const preset = string(values, 'preset');
  const ofPreset =
    preset !== undefined && Object.hasOwn(presets, preset) ? presets[preset as Preset].schedule : undefined;
  const usual = usualSchedule(string(values, 'metric'));
  if (isLadder((string(values, 'schedule') ?? ofPreset ?? usual) as ScheduleName))
    throw new UsageError('--rho and --max-iterations are for --schedule alps or fixed: the ladders have their own');
  return Object.fromEntries(set);
}

function denseTargetOption(values: Values): PruneOptions['denseTarget'] {
  const text = string(values, 'dense-target');
  if (text === undefined) return undefined;
  if (text === 'none') return false;
  const [strength, residualStrength, errorWeight, ...rest] = text.split(',').map(Number);
  if (rest.length > 0 || ![strength, residualStrength ?? 0, errorWeight ?? 0].every(Number.isFinite))
    throw new UsageError(`Expected --dense-target none or up to three numbers such as 0.5,0.5,1 but received ${text}`);
  return {
    strength,
    ...(residualStrength === undefined ? {} : { residualStrength }),
    ...(errorWeight === undefined ? {} : { errorWeight }),
  };
}

function onOff(values: Values, name: string): boolean | undefined {
  const text = string(values, name);
  if (text !== undefined && text !== 'on' && text !== 'off')
    throw new UsageError(`Expected on or off for --${name} but received "${text}"`);
  return text === undefined ? undefined : text === 'on';
}

function dsnotOptions(values: Values): DsnotOptions {
  const given = {
    initial: string(values, 'dsnot-initial') as DsnotOptions['initial'],
    skip: string(values, 'dsnot-skip') as DsnotOptions['skip'],
    maxCycles: number(values, 'dsnot-cycles'),
    threshold: number(values, 'dsnot-threshold'),
  };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
}
