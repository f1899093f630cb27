import { invalidArgument, optionsObject } from '../errors.js';
import { isNm, type Pattern } from './pattern.js';

/**
 * How the penalty ρ of ADMM grows (docs/algorithm.md, "ρ").
 * - `alps`: as published; every 3 iterations, ρ changes according to how much the support has changed
 * - `ladder`: 28 iterations with four fixed values, or 36 with five for `sparsity` above 0.7 and for N:M; more, with larger values, only if the support
 *   has not settled by then; needs the `obs` metric
 * - `short`: the same with 22 iterations and three values
 * - `fixed`: `initialRho` for `maxIterations`; the paper compares its schedule with it
 */
export type ScheduleName = 'alps' | 'ladder' | 'short' | 'fixed';

/** Constants of the schedules `alps` and `fixed`; the defaults are the published ones. */
export interface AlpsScheduleOptions {
  /** First ρ, above 0 and up to 10⁶. Default 0.1. */
  initialRho?: number;
  /** Iterations between two checks of the support. Default 3. */
  checkEvery?: number;
  /** After this many iterations, a small change of the support ends the run. Default 30. */
  settleAfter?: number;
  /** Most iterations. Default 300. */
  maxIterations?: number;
}

/** The published constants (ALPS, NeurIPS 2024, and its code). */
export const alpsDefaults: Required<AlpsScheduleOptions> = {
  initialRho: 0.1,
  checkEvery: 3,
  settleAfter: 30,
  maxIterations: 300,
};

export type Rung = readonly [rho: number, iterations: number];

const ladders = {
  ladder: [
    [0.7, 8],
    [1, 8],
    [1.3, 8],
    [2, 4],
  ],
  /** For `ladder` where the support settles later. */
  long: [
    [0.7, 8],
    [1, 8],
    [1.3, 8],
    [2, 6],
    [3, 6],
  ],
  short: [
    [0.8, 8],
    [1.2, 8],
    [2, 6],
  ],
} as const satisfies Record<string, readonly Rung[]>;

export type Ladder = 'ladder' | 'short';

export function isLadder(schedule: ScheduleName): schedule is Ladder {
  return schedule === 'ladder' || schedule === 'short';
}

/** The values of ρ of a ladder (measured: docs/algorithm.md, "ρ"). */
export function rungsOf(schedule: Ladder, pattern: Pattern): readonly Rung[] {
  const settlesLate = isNm(pattern) || pattern.sparsity > 0.7;
  return ladders[schedule === 'ladder' && settlesLate ? 'long' : schedule];
}

const maxRho = 1e6;
/** Share of the support that changes from one look to the next where it has not settled (measured: docs/algorithm.md, "ρ"). */
const unsettledShare: Record<Ladder, number> = { ladder: 0.07, short: 0.25 };

/**
 * Whether a ladder's support has settled at a look.
 *
 * @param changed entries of the support that differ from the look before
 * @param kept k, the entries of the support
 */
export function hasSettled(schedule: Ladder, changed: number, kept: number): boolean {
  return changed <= unsettledShare[schedule] * kept;
}

/** What a ladder goes on with behind its last value of ρ where its support has not settled. */
export function furtherRung(rho: number): Rung | undefined {
  const next = 1.5 * rho;
  return next <= maxRho ? [next, 4] : undefined;
}

/** Share of the weights that decide below which the second look of a ladder finds the support frozen: ρ was too large from the start. */
const frozenShare = 0.005;
/** What the published schedule divides ρ by in that case. */
const restartDivisor = 5;
/** Share of the weights that must go for it: where fewer go a second start gains nothing (measured: docs/algorithm.md, "ρ"). */
const leastPruned = 0.3;

/**
 * The values of ρ that a ladder starts again with where its support was frozen at its second value; undefined where it was not.
 *
 * @param looks entries of the support that changed at each value of ρ
 * @param kept k, the entries of the support
 * @param weights all of them
 */
export function restartedRungs(
  rungs: readonly Rung[],
  looks: readonly number[],
  kept: number,
  weights: number,
): Rung[] | undefined {
  const pruned = weights - kept;
  if (pruned < leastPruned * weights || looks[1]! > frozenShare * Math.min(kept, pruned)) return undefined;
  return rungs.map(([rho, iterations]) => [rho / restartDivisor, iterations]);
}

/** Below this ρ the penalised system is the unpenalised one in float32; the published rule would divide by 5 for ever. */
const minRho = 1e-7;

/** Where the published schedule stands. */
export interface AlpsState {
  rho: number;
  /** Whether ρ has grown since the start; until then a quiet support means that ρ is too large, after it that ADMM is done. */
  grew: boolean;
}

export type AlpsDecision = { action: 'continue' | 'restart' | 'stop'; state: AlpsState };

/**
 * One check of the published schedule, a pure function.
 *
 * @param state before the check
 * @param iterations ADMM iterations done so far
 * @param changed entries of the support that differ from the last check
 * @param kept k, the entries of the support
 */
export function checkAlps(
  state: AlpsState,
  iterations: number,
  changed: number,
  kept: number,
  options: Required<AlpsScheduleOptions> = alpsDefaults,
): AlpsDecision {
  const share = changed / Math.max(kept, 1);
  const grow = (factor: number): AlpsState => ({ rho: Math.min(state.rho * factor, maxRho), grew: true });
  const shrunk: AlpsState = { rho: Math.max(state.rho / 5, minRho), grew: false };
  let next: AlpsDecision;
  if (share > 0.1) next = { action: 'continue', state: grow(1.3) };
  else if (share > 0.005) next = { action: 'continue', state: grow(1.2) };
  else if (state.grew) next = changed > 0 ? { action: 'continue', state: grow(1.1) } : { action: 'stop', state };
  else next = { action: changed > 0 ? 'restart' : 'continue', state: shrunk };
  if (iterations >= options.maxIterations || (iterations > options.settleAfter && share < 3e-4)) {
    return { action: 'stop', state: next.state };
  }
  return next;
}

/** Checks the schedule's options. */
export function parseAlpsSchedule(options: AlpsScheduleOptions = {}): Required<AlpsScheduleOptions> {
  optionsObject(options, alpsDefaults, 'alpsSchedule');
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  const parsed = { ...alpsDefaults, ...Object.fromEntries(given) };
  if (!(parsed.initialRho > 0 && parsed.initialRho <= maxRho)) {
    throw invalidArgument('initialRho', `a number above 0 and up to ${maxRho}`, parsed.initialRho);
  }
  for (const name of ['checkEvery', 'settleAfter', 'maxIterations'] as const) {
    if (!Number.isInteger(parsed[name]) || parsed[name] < 1) {
      throw invalidArgument(name, 'an integer of at least 1', parsed[name]);
    }
  }
  return parsed;
}
