import type { Device } from '../device/device.js';
import { AlpsError, invalidArgument, type Names, optionsObject } from '../errors.js';
import { optionsInside } from '../snapshot.js';
import { isNm, type Pattern, parsePattern, patternNames } from './pattern.js';
import type { Preset } from './preset.js';
import {
  type AlpsScheduleOptions,
  alpsDefaults,
  isLadder,
  parseAlpsSchedule,
  type ScheduleName,
} from './rho-schedule.js';

/**
 * What weights are ranked by when ADMM chooses the support. `diagonal`: their size times the input's norm, as published. `obs`: the error that
 * removing the weight costs when the others are refitted.
 */
export type Metric = 'diagonal' | 'obs';

export const methods = ['alps', 'magnitude', 'wanda', 'sparsegpt', 'dsnot'] as const;

/**
 * A pruning method. All except `alps` and `sparsegpt` leave the kept weights as they are, unless `refit` is given.
 * - `alps`: ADMM finds the support, conjugate gradients refit the weights (NeurIPS 2024)
 * - `magnitude` (MP): keeps the largest weights
 * - `wanda`: keeps the largest |w| · ‖x‖ of each output (ICLR 2024)
 * - `sparsegpt`: prunes column by column and compensates the error of each column in the columns after it (ICML 2023)
 * - `dsnot`: improves another method's mask by swaps (ICLR 2024)
 */
export type Method = (typeof methods)[number];

/** How the kept weights are refitted once the mask is found. `pcg`: conjugate gradients. `backsolve`: exact, one dense solve per output. */
export type Refit = 'none' | 'pcg' | 'backsolve';

/**
 * Number format of the matrix products in the search for the support; the refit is in float32 (but see `mixedPrecision`). On GPUs, large float32
 * products of pruning use factors of 16 binary digits (docs/cuda.md).
 */
export type Precision = 'float32' | 'bfloat16';

/** DSnoT's options, with the defaults of its published code. */
export interface DsnotOptions {
  /** The method whose mask is improved. Default `wanda`. */
  initial?: 'wanda' | 'magnitude' | 'sparsegpt';
  /** Most swaps per row. Default 50. */
  maxCycles?: number;
  /** A row is done when the expected change of its output, summed over a window, is at most this. Default 0.1. */
  threshold?: number;
  /** Whether a row is also done before that change turns its sign. Default: true for N:M, else false. */
  sameSign?: boolean;
  /** Layers that keep the initial mask, in `prune()`. Default `none`; the published code skips the MLP by default. */
  skip?: 'none' | 'mlp' | 'attention';
}

/** How a layer is pruned; shared by {@link pruneLayer} and {@link prune}. Give exactly one of `sparsity` and `pattern`. */
export interface PruningOptions {
  /** A set of options under one name; options given explicitly override it. */
  preset?: Preset;
  /** Share of each matrix that becomes zero, from 0 to 1. */
  sparsity?: number;
  /** N:M: `{keep: 2, of: 4}` keeps 2 of every 4 consecutive inputs of an output. */
  pattern?: { keep: number; of: number };
  /** Default `alps`; `mp` is another name for `magnitude`. */
  method?: Method | 'mp';
  /** Default `pcg` for `alps`, `none` for the others. */
  refit?: Refit;
  /**
   * Which weights compete in unstructured `magnitude` and `wanda`: those of the whole layer, or those of each output.
   * Default `layer` for `magnitude`, `row` for `wanda`.
   */
  comparisonGroup?: 'layer' | 'row';
  /** How ρ, the penalty of ADMM, grows. Default `ladder`, or `alps` with `metric: 'diagonal'`; `short` is faster and a little worse, `alps` is as published. */
  schedule?: ScheduleName;
  /** Default `obs` with the ladders (`ladder` and `short`), which need it; else `diagonal`. */
  metric?: Metric;
  /** Exponent γ of the `obs` metric, from 0 to 1. Default min(0.9, 1.45 √d), where d is the share of the weights that is kept. */
  obsExponent?: number;
  /**
   * Over-relaxation ω of ADMM, above 0 and below 2; 1 is none, as published. Default with the ladders, unstructured: max(1, 1.8 − 2 d), where d is the
   * share of the weights that is kept; else 1.
   */
  relaxation?: number;
  /**
   * ALPS: whether products that only corrections go through are in low precision: 8-bit integers, or else bfloat16, if all devices multiply them in
   * hardware. These are the products of the search for the support, of the refit if `refineIterations` is at most 5, and of the inputs' differences
   * in dense targets (docs/algorithm.md, "ADMM", "Refit" and "Dense targets").
   * Default: with `preset: 'balanced'` true; with the ladders true in {@link pruneLayer} and in runs of {@link prune} in bfloat16; else, and always if
   * `precision: 'float32'` is given, false. Reports tell what was done (`mixedPrecision`, `int8`).
   */
  mixedPrecision?: boolean;
  /** The ridge λ₂ as a share of the mean diagonal of XᵀX (SparseGPT's damping). Default 0.01. */
  ridge?: number;
  /** Conjugate gradient iterations of the refit `pcg`, from 0 to 10,000; 0 leaves the kept weights as they are. Default 10. */
  refineIterations?: number;
  /** The refit `pcg` of a row is done when its residual on the support has shrunk to this share, at least 1e-12. Default 1e-5. */
  refineTolerance?: number;
  /** Constants of the published schedule; the fixed schedule uses `initialRho`, `checkEvery` and `maxIterations`. */
  alpsSchedule?: AlpsScheduleOptions;
  /** ADMM iterations between two points of the trace. Default: one point at each check of the schedule. */
  traceEvery?: number;
  /** Whether each point of the trace also has the error of stopping there. Default false. */
  traceErrors?: boolean;
  /** SparseGPT: columns per block. Default 128. For N:M it is rounded down to a multiple of M, at least M. */
  blockSize?: number;
  /** Options of `method: 'dsnot'`. */
  dsnot?: DsnotOptions;
  /**
   * Whether the errors of the layers' outputs are computed. Default true. With false they are NaN (null in reports of models), and magnitude, Wanda
   * and DSnoT (not from SparseGPT's mask) without a refit need no Gram matrix, which takes most of their time; they read only the diagonal of a
   * given `gram`.
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
  pattern: optionsInside('pattern', patternNames),
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
  alpsSchedule: optionsInside('alpsSchedule', alpsDefaults),
  traceEvery: true,
  traceErrors: true,
  blockSize: true,
  dsnot: optionsInside('dsnot', dsnotNames),
  errors: true,
};

/** {@link PruningOptions} with defaults, checked. */
export interface ParsedPruningOptions {
  pattern: Pattern;
  method: Method;
  refit: Refit;
  comparisonGroup: 'layer' | 'row';
  schedule: ScheduleName;
  metric: Metric;
  obsExponent: number;
  relaxation: number;
  /** Undefined if it was not given, until {@link onDevices}. */
  mixedPrecision: boolean | undefined;
  /** Whether the products of `mixedPrecision` are in 8-bit integers; set by {@link onDevices}. */
  int8: boolean;
  ridge: number;
  refineIterations: number;
  refineTolerance: number;
  alpsSchedule: Required<AlpsScheduleOptions>;
  /** 0: at each check of the schedule. */
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
  const { method: named = 'alps' } = options;
  const method = named === 'mp' ? 'magnitude' : named;
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
