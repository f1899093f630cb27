import type { PruneOptions } from '../prune.js';
import {
  type DsnotOptions,
  type Method,
  type Metric,
  type ParsedPruningOptions,
  parsePruningOptions,
  type Refit,
} from '../pruning/options.js';
import { type Preset, withPreset } from '../pruning/preset.js';
import { isLadder, type ScheduleName } from '../pruning/rho-schedule.js';
import type { Propagation } from '../traversal.js';
import {
  calibrationOptions,
  device,
  deviceOptions,
  devices,
  list,
  number,
  numbers,
  onlyWith,
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
  const options = {
    sparsity: number(values, 'sparsity'),
    pattern: pattern(values),
    method: string(values, 'method') as Method | undefined,
    refit: string(values, 'refit') as Refit | undefined,
    comparisonGroup: string(values, 'comparison-group') as 'layer' | 'row' | undefined,
    dsnot: given({
      initial: string(values, 'dsnot-initial') as DsnotOptions['initial'],
      skip: string(values, 'dsnot-skip') as DsnotOptions['skip'],
      maxCycles: number(values, 'dsnot-cycles'),
      threshold: number(values, 'dsnot-threshold'),
    }),
    schedule: string(values, 'schedule') as ScheduleName | undefined,
    alpsSchedule: given({ initialRho: number(values, 'rho'), maxIterations: number(values, 'max-iterations') }),
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
  refuseIdle(values, parsePruningOptions(withPreset(options)));
  return options;
}

/** Refuses options that have no effect with the others. */
function refuseIdle(values: Values, { method, refit, schedule }: ParsedPruningOptions): void {
  const { calibration: _, field, ...windows } = calibrationOptions;
  if (list(values, 'calibration').length === 0) {
    onlyWith(values, Object.keys(windows), 'a --calibration');
    if (list(values, 'evaluation').length === 0) onlyWith(values, ['field'], 'a --calibration');
  }
  const rhos = ['rho', 'max-iterations'];
  if (method !== 'alps')
    onlyWith(values, [...rhos, 'schedule', 'metric', 'relaxation', 'mixed-precision'], '--method alps');
  if (isLadder(schedule)) onlyWith(values, rhos, '--schedule alps or fixed; a ladder sets its own rho and iterations');
  if (method !== 'dsnot')
    onlyWith(values, ['dsnot-initial', 'dsnot-skip', 'dsnot-cycles', 'dsnot-threshold'], '--method dsnot');
  if (refit !== 'pcg') onlyWith(values, ['refine-iterations'], '--refit pcg');
}

function denseTargetOption(values: Values): PruneOptions['denseTarget'] {
  const text = string(values, 'dense-target');
  if (text === undefined) return undefined;
  if (text === 'none') return false;
  const [strength, residualStrength, errorWeight, ...rest] = numbers(values, 'dense-target')!;
  if (rest.length > 0)
    throw new UsageError(
      `Expected --dense-target none or up to three numbers such as 0.5,0.5,1 but received "${text}"`,
    );
  return given({ strength, residualStrength, errorWeight });
}

/** Those of some options that were given; undefined where none was. */
function given<T extends object>(options: T): T | undefined {
  const set = Object.entries(options).filter(([, value]) => value !== undefined);
  return set.length === 0 ? undefined : (Object.fromEntries(set) as T);
}

function onOff(values: Values, name: string): boolean | undefined {
  const text = string(values, name);
  if (text !== undefined && text !== 'on' && text !== 'off')
    throw new UsageError(`Expected on or off for --${name} but received "${text}"`);
  return text === undefined ? undefined : text === 'on';
}
