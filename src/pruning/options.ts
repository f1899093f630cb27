import { AlpsError, invalidArgument } from '../errors.js';
import { type Pattern, parsePattern } from './pattern.js';
import { type AlpsScheduleOptions, parseAlpsSchedule, type ScheduleName } from './rho-schedule.js';

/** What weights are ranked by. `diagonal`: by the input's norm, as published. `obs`: by what the weight costs with the others refitted. */
export type Metric = 'diagonal' | 'obs';

/** `alps`: ADMM and conjugate gradient. `magnitude`: the largest weights stay as they are. */
export type Method = 'alps' | 'magnitude';

/** Number format of the matrix products of the search for the support; the refit is always in float32. */
export type Precision = 'float32' | 'bfloat16';

/** How one layer is pruned; shared by {@link pruneLayer} and {@link prune}. Give `sparsity` or `pattern`. */
export interface PruningOptions {
  /** Share of each matrix that becomes zero, from 0 to 1. */
  sparsity?: number;
  /** N:M: `{keep: 2, of: 4}` keeps 2 of every 4 consecutive inputs. */
  pattern?: { keep: number; of: number };
  /** Default `alps`. */
  method?: Method;
  /** How ρ grows. Default `ladder`; `alps` is the published one. */
  schedule?: ScheduleName;
  /** Default `obs` with the ladder, `diagonal` with the published schedule. */
  metric?: Metric;
  /** Exponent γ of the `obs` metric. Default 0.75. */
  obsExponent?: number;
  /** λ₂ as a share of the mean diagonal of XᵀX. Default 0.01. */
  ridge?: number;
  /** Iterations of the conjugate gradient that refits the kept weights; 0 leaves them as ADMM has them. Default 10. */
  refineIterations?: number;
  /** A row stops when its residual on the support has shrunk to this share. Default 1e-5. */
  refineTolerance?: number;
  /** Constants of the published schedule. */
  alpsSchedule?: AlpsScheduleOptions;
}

/** Options after their three stages: defaults, checks, interpretation. */
export interface ParsedPruningOptions {
  pattern: Pattern;
  method: Method;
  schedule: ScheduleName;
  metric: Metric;
  obsExponent: number;
  ridge: number;
  refineIterations: number;
  refineTolerance: number;
  alpsSchedule: Required<AlpsScheduleOptions>;
}

function oneOf<T extends string>(name: string, values: readonly T[], value: unknown): T {
  if (!values.includes(value as T)) throw invalidArgument(name, values.map((v) => `"${v}"`).join(' or '), value);
  return value as T;
}

function numberIn(name: string, value: unknown, low: number, high: number): number {
  if (typeof value !== 'number' || !(value >= low && value <= high)) {
    throw invalidArgument(name, `a number from ${low} to ${high}`, value);
  }
  return value;
}

/** Reads {@link PruningOptions}. */
export function parsePruningOptions(options: PruningOptions): ParsedPruningOptions {
  // Defaults.
  const {
    method = 'alps',
    schedule = options.metric === 'diagonal' ? 'alps' : 'ladder',
    obsExponent = 0.75,
    ridge = 0.01,
    refineIterations = 10,
    refineTolerance = 1e-5,
  } = options;
  const { metric = schedule === 'ladder' ? 'obs' : 'diagonal' } = options;
  // Checks.
  const parsed: ParsedPruningOptions = {
    pattern: parsePattern(options),
    method: oneOf('method', ['alps', 'magnitude'], method),
    schedule: oneOf('schedule', ['alps', 'ladder'], schedule),
    metric: oneOf('metric', ['diagonal', 'obs'], metric),
    obsExponent: numberIn('obsExponent', obsExponent, 0, 1),
    ridge: numberIn('ridge', ridge, 0, 1e6),
    refineIterations: numberIn('refineIterations', refineIterations, 0, 1e6),
    refineTolerance: numberIn('refineTolerance', refineTolerance, 0, 1),
    alpsSchedule: parseAlpsSchedule(options.alpsSchedule),
  };
  if (!Number.isInteger(parsed.refineIterations)) {
    throw invalidArgument('refineIterations', 'an integer', refineIterations);
  }
  // Interpretation.
  if (parsed.schedule === 'ladder' && parsed.metric === 'diagonal') {
    throw new AlpsError(
      'INVALID_ARGUMENT',
      'The ladder needs the metric "obs": with "diagonal" its error is up to 16 % above the published schedule. ' +
        'Choose schedule "alps" or metric "obs"',
    );
  }
  return parsed;
}
