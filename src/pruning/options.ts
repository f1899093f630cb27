import type { Device } from '../device/device.js';
import { AlpsError, invalidArgument, type Names, optionsObject } from '../errors.js';
import { isNm, type Pattern, parsePattern } from './pattern.js';
import type { Preset } from './preset.js';
import { type AlpsScheduleOptions, isLadder, parseAlpsSchedule, type ScheduleName } from './rho-schedule.js';

/** What weights are ranked by. `diagonal`: by the input's norm, as published. `obs`: by what the weight costs with the others refitted. */
export type Metric = 'diagonal' | 'obs';

export const methods = ['alps', 'magnitude', 'wanda', 'sparsegpt', 'dsnot'] as const;

/**
 * - `alps`: ADMM finds the support, conjugate gradients refit the weights (NeurIPS 2024)
 * - `magnitude` (MP): the largest weights stay as they are
 * - `wanda`: the largest |w| · ‖x‖ of each output stay as they are (ICLR 2024)
 * - `sparsegpt`: column by column, with what is lost spread over the columns after it (ICML 2023)
 * - `dsnot`: another method's mask, improved by swaps; kept weights stay as they are (ICLR 2024)
 */
export type Method = (typeof methods)[number];

/** What is done to the kept weights once the mask is found. `pcg`: conjugate gradients. `backsolve`: exact, one dense solve an output. */
export type Refit = 'none' | 'pcg' | 'backsolve';

/**
 * Number format of the matrix products of the search for the support; the refit is in float32 (but see `mixedPrecision`). On GPUs large float32
 * products of pruning take factors of 16 binary digits (docs/cuda.md).
 */
export type Precision = 'float32' | 'bfloat16';

/** DSnoT's options, with the defaults of its published code. */
export interface DsnotOptions {
  /** Whose mask is improved. Default `wanda`. */
  initial?: 'wanda' | 'magnitude' | 'sparsegpt';
  /** Swaps of a row at most. Default 50. */
  maxCycles?: number;
  /** A row stops when the expected change of its output, summed over a window, is at most this. Default 0.1. */
  threshold?: number;
  /** Whether a row also stops before that change turns its sign. Default: only for N:M. */
  sameSign?: boolean;
  /** Layers that keep the initial mask, in `prune()`. Default `none`; the published code leaves out the MLP by default. */
  skip?: 'none' | 'mlp' | 'attention';
}

/** How one layer is pruned; shared by {@link pruneLayer} and {@link prune}. Give `sparsity` or `pattern`. */
export interface PruningOptions {
  /** Options under one name; what is given beside it goes before its own. */
  preset?: Preset;
  /** Share of each matrix that becomes zero, from 0 to 1. */
  sparsity?: number;
  /** N:M: `{keep: 2, of: 4}` keeps 2 of every 4 consecutive inputs. */
  pattern?: { keep: number; of: number };
  /** Default `alps`; `mp` is another name of `magnitude`. */
  method?: Method | 'mp';
  /** Default `pcg` for `alps`, `none` for the others. */
  refit?: Refit;
  /**
   * Among which weights unstructured `magnitude` and `wanda` choose: those of the whole layer or of one output.
   * Default `layer` for `magnitude`, `row` for `wanda`.
   */
  comparisonGroup?: 'layer' | 'row';
  /** How ρ grows. Default `ladder`; `short` is faster and a little worse, `alps` the published one. */
  schedule?: ScheduleName;
  /** Default `obs` with the ladders, `diagonal` with the others. */
  metric?: Metric;
  /** Exponent γ of the `obs` metric. Default min(0.9, 1.45 √d) where a share d of the weights stays. */
  obsExponent?: number;
  /**
   * Over-relaxation ω of ADMM, above 0 and below 2. Default max(1, 1.8 − 2 d) with the ladders where a share d of the weights stays, without
   * groups; else 1, none, as published.
   */
  relaxation?: number;
  /**
   * ALPS: whether the products of the search for the support are in what the device (of several: all) multiplies fastest, 8-bit integers or bfloat16,
   * and with them those of the refit's steps, if these are at most 5, and what dense targets sum of the inputs' differences. Only corrections go
   * through them (docs/algorithm.md, "ADMM", "Refit" and "Dense targets").
   * Default: with the ladders true for a single layer, and in a run of {@link prune} that is in bfloat16; with `preset: 'balanced'` true; not where
   * `precision: 'float32'` is given. Reports say what was done (`mixedPrecision`, `int8`).
   */
  mixedPrecision?: boolean;
  /** λ₂ as a share of the mean diagonal of XᵀX (SparseGPT's damping). Default 0.01. */
  ridge?: number;
  /** Iterations of the conjugate gradient that refits the kept weights, up to 10,000; 0 leaves them. Default 10. */
  refineIterations?: number;
  /** A row stops when its residual on the support has shrunk to this share; less than 1e-12 counts as that. Default 1e-5. */
  refineTolerance?: number;
  /** Constants of the published schedule; `initialRho`, `checkEvery` and `maxIterations` also of the fixed one. */
  alpsSchedule?: AlpsScheduleOptions;
  /** Iterations between two points of the trace. Default: where the schedule looks at the support. */
  traceEvery?: number;
  /** Whether each point of the trace also has the error that stopping there would give. Default false. */
  traceErrors?: boolean;
  /** SparseGPT: columns of a block. Default 128. For N:M the next multiple of M below, at least M. */
  blockSize?: number;
  dsnot?: DsnotOptions;
  /**
   * Whether the errors of the layers' outputs are computed. Default true. Without them they are NaN (null in reports of models), and magnitude,
   * Wanda and DSnoT without a refit do not need the Gram matrix, which takes most of their time; of a `gram` that is
   * given only the diagonal is looked at then.
   */
  errors?: boolean;
}

const dsnotNames: Names<DsnotOptions> = {
  initial: true,
  maxCycles: true,
  threshold: true,
  sameSign: true,
  skip: true,
};

export const pruningNames: Names<PruningOptions> = {
  preset: true,
  sparsity: true,
  pattern: true,
  method: true,
  refit: true,
  comparisonGroup: true,
  schedule: true,
  metric: true,
  obsExponent: true,
  relaxation: true,
  mixedPrecision: true,
  ridge: true,
  refineIterations: true,
  refineTolerance: true,
  alpsSchedule: true,
  traceEvery: true,
  traceErrors: true,
  blockSize: true,
  dsnot: true,
  errors: true,
};

/** Options after their three stages: defaults, checks, interpretation. */
export interface ParsedPruningOptions {
  pattern: Pattern;
  method: Method;
  refit: Refit;
  comparisonGroup: 'layer' | 'row';
  schedule: ScheduleName;
  metric: Metric;
  obsExponent: number;
  relaxation: number;
  /** Undefined before {@link onDevices}: where it was not given. */
  mixedPrecision: boolean | undefined;
  /** Whether the products of `mixedPrecision` are those of 8-bit integers; known from {@link onDevices} on. */
  int8: boolean;
  ridge: number;
  refineIterations: number;
  refineTolerance: number;
  alpsSchedule: Required<AlpsScheduleOptions>;
  /** 0: where the schedule looks. */
  traceEvery: number;
  traceErrors: boolean;
  blockSize: number;
  dsnot: Required<DsnotOptions>;
  errors: boolean;
}

export function oneOf<T extends string>(name: string, values: readonly T[], value: unknown): T {
  if (!values.includes(value as T)) throw invalidArgument(name, values.map((v) => `"${v}"`).join(' or '), value);
  return value as T;
}

export function numberIn(name: string, value: unknown, low: number, high: number): number {
  if (typeof value !== 'number' || !(value >= low && value <= high)) {
    throw invalidArgument(name, `a number from ${low} to ${high}`, value);
  }
  return value;
}

function between(name: string, value: unknown, low: number, high: number): number {
  if (typeof value !== 'number' || !(value > low && value < high)) {
    throw invalidArgument(name, `a number above ${low} and below ${high}`, value);
  }
  return value;
}

export function integerFrom(name: string, value: unknown, low: number, high = Number.MAX_SAFE_INTEGER): number {
  if (!Number.isSafeInteger(value) || (value as number) < low)
    throw invalidArgument(name, `an integer of at least ${low}`, value);
  if ((value as number) > high) throw invalidArgument(name, `an integer of at most ${high}`, value);
  return value as number;
}

/** The number format of a layer's products. */
export function parsePrecision(precision: unknown): Precision {
  return oneOf('precision', ['float32', 'bfloat16'], precision);
}

export function flag(name: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw invalidArgument(name, 'true or false', value);
  return value;
}

/** Reads {@link PruningOptions}. */
export function parsePruningOptions(options: PruningOptions): ParsedPruningOptions {
  // Defaults.
  const method = options.method === 'mp' ? 'magnitude' : (options.method ?? 'alps');
  const {
    refit = method === 'alps' ? 'pcg' : 'none',
    comparisonGroup = method === 'wanda' || method === 'dsnot' ? 'row' : 'layer',
    schedule = usualSchedule(options.metric),
    mixedPrecision,
    ridge = 0.01,
    refineIterations = 10,
    refineTolerance = 1e-5,
    traceErrors = false,
    blockSize = 128,
    errors = true,
  } = options;
  const { metric = isLadder(schedule) ? 'obs' : 'diagonal' } = options;
  // Checks.
  const pattern = parsePattern(options);
  const { obsExponent = usualObsExponent(pattern) } = options;
  const { relaxation = isLadder(schedule) ? usualRelaxation(pattern) : 1 } = options;
  const parsed: ParsedPruningOptions = {
    pattern,
    method: oneOf('method', methods, method),
    refit: oneOf('refit', ['none', 'pcg', 'backsolve'], refit),
    comparisonGroup: oneOf('comparisonGroup', ['layer', 'row'], comparisonGroup),
    schedule: oneOf('schedule', ['alps', 'ladder', 'short', 'fixed'], schedule),
    metric: oneOf('metric', ['diagonal', 'obs'], metric),
    obsExponent: numberIn('obsExponent', obsExponent, 0, 1),
    relaxation: between('relaxation', relaxation, 0, 2),
    mixedPrecision: mixedPrecision === undefined ? undefined : flag('mixedPrecision', mixedPrecision),
    int8: false,
    ridge: numberIn('ridge', ridge, 0, 1e6),
    refineIterations: integerFrom('refineIterations', refineIterations, 0, 10_000),
    refineTolerance: numberIn('refineTolerance', refineTolerance, 0, 1),
    alpsSchedule: parseAlpsSchedule(options.alpsSchedule),
    traceEvery: options.traceEvery === undefined ? 0 : integerFrom('traceEvery', options.traceEvery, 1),
    traceErrors: flag('traceErrors', traceErrors),
    blockSize: integerFrom('blockSize', blockSize, 1),
    dsnot: parseDsnot(options.dsnot, pattern),
    errors: flag('errors', errors),
  };
  // Interpretation.
  if (isLadder(parsed.schedule) && parsed.metric === 'diagonal') {
    throw new AlpsError(
      'INVALID_ARGUMENT',
      'The ladders need the metric "obs": with "diagonal" their error is up to 16 % above the published schedule. ' +
        'Choose schedule "alps" or metric "obs"',
    );
  }
  if (parsed.method === 'dsnot' && parsed.comparisonGroup === 'layer') {
    throw new AlpsError('INVALID_ARGUMENT', 'DSnoT works on rows: comparisonGroup "layer" is not possible with it');
  }
  if ((parsed.method === 'alps' || parsed.method === 'sparsegpt') && parsed.comparisonGroup === 'row') {
    throw new AlpsError(
      'INVALID_ARGUMENT',
      `${parsed.method} chooses among all weights of a layer: comparisonGroup "row" is for magnitude and wanda`,
    );
  }
  return parsed;
}

/** The schedule where none is given. */
export function usualSchedule(metric: string | undefined): ScheduleName {
  return metric === 'diagonal' ? 'alps' : 'ladder';
}

/** Whether reduced precision is wanted where a device has it, in a run of this one: see {@link PruningOptions.mixedPrecision}. */
export function wantsMixed(parsed: ParsedPruningOptions, precision: Precision): boolean {
  const { method, schedule, mixedPrecision = precision === 'bfloat16' && isLadder(schedule) } = parsed;
  return method === 'alps' && mixedPrecision;
}

/** The options of a single layer. @param precision that was given */
export function ofLayer(parsed: ParsedPruningOptions, precision: Precision | undefined): ParsedPruningOptions {
  const { mixedPrecision = isLadder(parsed.schedule) && precision !== 'float32' } = parsed;
  return { ...parsed, mixedPrecision };
}

/**
 * The options as these devices take them, in a run of this precision. One that does not multiply a format in hardware keeps all from it: a result
 * does not depend on who does what.
 */
export function onDevices(
  parsed: ParsedPruningOptions,
  devices: readonly Device[],
  precision: Precision,
): ParsedPruningOptions & { mixedPrecision: boolean } {
  const infos = devices.map((device) => device.info());
  const wanted = wantsMixed(parsed, precision);
  const int8 = wanted && infos.every(({ int8Products }) => int8Products);
  const mixedPrecision = int8 || (wanted && infos.every(({ bf16Products }) => bf16Products));
  return { ...parsed, mixedPrecision, int8 };
}

/** Of ADMM's products. @param options of {@link onDevices} */
export function searchPrecision({ mixedPrecision }: ParsedPruningOptions, precision: Precision): Precision {
  return mixedPrecision ? 'bfloat16' : precision;
}

function keptShare(pattern: Pattern): number {
  return isNm(pattern) ? pattern.keep / pattern.of : 1 - pattern.sparsity;
}

/** Measured: the fewer weights stay, the less they make up for one another (docs/algorithm.md, "The OBS metric"). */
function usualObsExponent(pattern: Pattern): number {
  return Math.min(0.9, 1.45 * Math.sqrt(keptShare(pattern)));
}

/** Measured as well (docs/algorithm.md, "ADMM"). */
function usualRelaxation(pattern: Pattern): number {
  return isNm(pattern) ? 1 : Math.max(1, 1.8 - 2 * keptShare(pattern));
}

function parseDsnot(options: DsnotOptions = {}, pattern: Pattern): Required<DsnotOptions> {
  optionsObject(options, dsnotNames, 'dsnot');
  const { initial = 'wanda', maxCycles = 50, threshold = 0.1, sameSign = isNm(pattern), skip = 'none' } = options;
  return {
    initial: oneOf('dsnot.initial', ['wanda', 'magnitude', 'sparsegpt'], initial),
    maxCycles: integerFrom('dsnot.maxCycles', maxCycles, 0),
    threshold: numberIn('dsnot.threshold', threshold, 0, Number.MAX_VALUE),
    sameSign: flag('dsnot.sameSign', sameSign),
    skip: oneOf('dsnot.skip', ['none', 'mlp', 'attention'], skip),
  };
}

/** Whether the whole Gram matrix is needed; where not, its diagonal is enough. */
export function needsGram({ method, refit, dsnot, errors }: ParsedPruningOptions): boolean {
  const selects = method === 'magnitude' || method === 'wanda' || (method === 'dsnot' && dsnot.initial !== 'sparsegpt');
  return errors || refit !== 'none' || !selects;
}

/** Whether every row keeps as many weights. */
export function isRowwise({ method, comparisonGroup }: ParsedPruningOptions): boolean {
  return method === 'dsnot' || (comparisonGroup === 'row' && (method === 'magnitude' || method === 'wanda'));
}

/** Whether weights of different rows compete: else it does not matter how rows count. */
export function choosesAmongRows(parsed: ParsedPruningOptions): boolean {
  return !isNm(parsed.pattern) && !isRowwise(parsed);
}
