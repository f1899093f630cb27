import type { Device } from '../device/device.js';
import { PhaseClock } from '../device/phase-clock.js';
import { Scope, type Tensor } from '../device/tensor.js';
import { together } from '../together.js';
import type { LayerProblem } from './layer-problem.js';
import { keptOf, nativePattern, productsTogether } from './layer-problem.js';
import { type ParsedPruningOptions, type Precision, searchPrecision } from './options.js';
import type { Pattern } from './pattern.js';
import { refit, stepsProducts } from './refine.js';
import {
  checkAlps,
  furtherRung,
  hasSettled,
  isLadder,
  type Ladder,
  type Rung,
  restartedRungs,
  rungsOf,
  type ScheduleName,
} from './rho-schedule.js';
import { type Solution, solutionTensors, type TracePoint } from './solution.js';

type F32 = Tensor<'float32'>;
type Phase = keyof Solution['time'];

/** The state of ADMM: S with its mask is all there is (docs/algorithm.md, "ADMM"). */
interface Iterate {
  b: F32;
  state: F32;
  mask: Tensor<'uint8'>;
  y: Tensor<Precision>;
}

/**
 * ALPS on one group of layers: ADMM finds the support, the conjugate gradient refits the weights on it.
 * Source: "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models", NeurIPS 2024.
 */
export async function solveAlps(
  problem: LayerProblem,
  options: ParsedPruningOptions,
  ofRun: Precision,
): Promise<Solution> {
  const { stream, device, m, n } = problem;
  const precision = searchPrecision(options, ofRun);
  const scope = new Scope();
  const { weight, mask } = solutionTensors(device, [m, n]);
  try {
    const clock = new PhaseClock<Phase>(stream);
    clock.enter('factorise');
    let metricScale: Float32Array<ArrayBuffer> | undefined;
    if (options.metric === 'obs') {
      metricScale = await obsScale(problem, options.obsExponent);
      problem.scaleColumns(metricScale);
    }
    const iterate: Iterate = {
      b: weight,
      state: scope.hold(device.empty('float32', [m, n], 'the ADMM state')),
      mask,
      y: scope.hold(device.empty(precision, [m, n], 'the ADMM right-hand side')),
    };
    const admm = new Admm(problem, options, precision, iterate, scope, clock);
    const run = await runs[options.schedule](admm, options);
    // The support is that of B, not of D. The scale of the metric leaves the problem before the refit.
    admm.projectB();
    const inOwnUnits = async () => {
      scope.dispose();
      if (metricScale)
        problem.scaleColumns(
          metricScale.map((f) => 1 / f),
          weight,
        );
      clock.enter('refine');
    };
    // When it settles, ADMM's memory is free for the refit.
    await together([admm.settle(), inOwnUnits()]);
    const refitted = refit(problem, weight, mask, options, stepsProducts(options));
    const refineIterations = await refitted(
      () => problem.unscale(weight),
      () => clock.leave(),
    );
    const time = { factorise: clock.spent('factorise'), admm: clock.spent('admm'), refine: clock.spent('refine') };
    return { weight, mask, refineIterations, time, ...run };
  } catch (error) {
    scope.dispose();
    weight.dispose();
    mask.dispose();
    throw error;
  }
}

/** c^(γ/2) with c = 1 / diag(H'⁻¹): in variables multiplied by it, |b|² is what losing a weight costs with the others refitted. */
async function obsScale(problem: LayerProblem, exponent: number): Promise<Float32Array<ArrayBuffer>> {
  const { stream, device, n } = problem;
  using scope = new Scope();
  const copy = scope.hold(device.empty('float32', [n, n], 'the Gram matrix to invert'));
  const diagonal = scope.hold(device.tensor('float32', [n]));
  stream.copy(problem.gram, copy);
  stream.inverseDiagonal(copy, diagonal);
  // Something to do while the host is at it.
  const scaled = async () => problem.base;
  const [values] = await together([stream.read(diagonal), scaled()]);
  const most = mostOfMedian * medianOf(values);
  return values.map((d) => Math.min(d, most) ** (-exponent / 2));
}

/**
 * Of inputs that nearly copy one another each costs next to nothing to lose while the others are there, and all of them would go. So what others
 * make up for counts up to this many times what it is for the median input (measured: docs/algorithm.md, "The OBS metric").
 */
const mostOfMedian = 8;

function medianOf(values: Float32Array): number {
  return values.slice().sort()[values.length >> 1]!;
}

/** The iteration itself, and the operator K = ρ (H' + ρI)⁻¹ for the current ρ. */
class Admm {
  readonly #problem: LayerProblem;
  readonly #options: ParsedPruningOptions;
  readonly #iterate: Iterate;
  /** K in float32, made in place from H', of one or two values of ρ: [1 or 2, n, n]. */
  readonly #exact: F32;
  /** Each of them, [n, n]. */
  readonly #operators: F32[];
  /** Their ρ. */
  #factorised: number[] = [];
  /** K as the products take it, where that is not float32. */
  readonly #narrow: Tensor<'bfloat16'> | undefined;
  readonly #clock: PhaseClock<Phase>;
  readonly #previous: Tensor<'uint8'>;
  /** The support at the last point of the trace. */
  readonly #traced: Tensor<'uint8'> | undefined;
  #iteration = 0;
  readonly trace: TracePoint[] = [];
  /** Looks whose counts are still on the device, by layer. */
  #unread: { look: TracePoint; counts: Tensor<'uint32'> }[] = [];
  readonly #scope: Scope;
  #rho = Number.NaN;
  #whole: number | undefined;

  constructor(
    problem: LayerProblem,
    options: ParsedPruningOptions,
    precision: Precision,
    iterate: Iterate,
    scope: Scope,
    clock: PhaseClock<Phase>,
  ) {
    const { device, n, m } = problem;
    this.#problem = problem;
    this.#options = options;
    this.#iterate = iterate;
    this.#clock = clock;
    this.#scope = scope;
    const values = factorisesPairs(n, options, device) ? 2 : 1;
    this.#exact = scope.hold(device.empty('float32', [values, n, n], 'the ADMM operator'));
    this.#operators = Array.from({ length: values }, (_, i) => {
      using one = this.#exact.rows(i, i + 1);
      return scope.hold(one.reshape(n, n));
    });
    if (precision === 'bfloat16')
      this.#narrow = scope.hold(device.empty('bfloat16', [n, n], 'the ADMM operator in bfloat16'));
    this.#previous = scope.hold(device.empty('uint8', [m, n], 'the support at the last check'));
    this.#traced =
      options.traceEvery > 0
        ? scope.hold(device.empty('uint8', [m, n], 'the support at the last point of the trace'))
        : undefined;
  }

  /** k of all layers together. */
  get keptTotal(): number {
    return keptOf(this.#problem.segments);
  }

  /** All of them, of all layers together. */
  get weights(): number {
    return this.#problem.m * this.#problem.n;
  }

  /** Back to the start: D = project(B₀), V = 0. */
  start(): void {
    const { stream, base } = this.#problem;
    const { state, mask, y } = this.#iterate;
    stream.project(base, mask, nativePattern(this.#options.pattern), this.#problem.segments);
    stream.admmStart(base, mask, state, y);
  }

  /** Makes the current support the one that the next {@link changed}, and the trace, compare with. */
  markSupport(): void {
    this.#problem.stream.copy(this.#iterate.mask, this.#previous);
    if (this.#traced) this.#problem.stream.copy(this.#iterate.mask, this.#traced);
  }

  /** Iterations done. */
  get iterations(): number {
    return this.#iteration;
  }

  /**
   * Goes on with another ρ. The dual part of the state is U = V / ρ, so it is scaled when a run goes on (not at its start).
   * @param next the ρ after it, where that is known: a processor factorises for both side by side
   */
  setRho(rho: number, next?: number): void {
    if (rho === this.#rho) return;
    const { stream, base } = this.#problem;
    const { state, mask, y } = this.#iterate;
    this.#clock.enter('factorise');
    if (!Number.isNaN(this.#rho)) stream.admmRescale(base, state, mask, y, this.#rho / rho);
    this.#rho = rho;
    if (!this.#factorised.includes(rho)) this.#factorise(next === undefined ? [rho] : [rho, next]);
    if (this.#narrow) stream.copy(this.#operator, this.#narrow);
    this.#clock.enter('admm');
  }

  /** Makes K for the first of these values of ρ, and for as many more as there is memory for. */
  #factorise(rhos: number[]): void {
    const { stream, gram } = this.#problem;
    this.#factorised = rhos.slice(0, this.#operators.length);
    using operators = this.#exact.rows(0, this.#factorised.length);
    for (const [i, rho] of this.#factorised.entries()) {
      stream.copy(gram, this.#operators[i]!);
      stream.addDiagonal(this.#operators[i]!, rho);
    }
    stream.cholesky(operators);
    stream.choleskyInverse(operators, { split: true });
    for (const [i, rho] of this.#factorised.entries()) stream.axpby(this.#operators[i]!, this.#operators[i]!, 0, rho);
  }

  /** K of the current ρ in float32, [n, n]. */
  get #operator(): F32 {
    return this.#operators[this.#factorised.indexOf(this.#rho)]!;
  }

  /** Iterates, with the points of the trace that were asked for on the way. */
  async iterate(count: number): Promise<void> {
    const { traceEvery } = this.#options;
    if (traceEvery === 0) {
      this.#run(count);
      return;
    }
    for (let i = 0; i < count; i++) {
      this.#run(1);
      if (this.#traced && this.#iteration % traceEvery === 0) await this.#trace(this.#changesSince(this.#traced));
    }
  }

  #run(count: number): void {
    const { stream, device, base, segments, m, n } = this.#problem;
    const pattern = nativePattern(this.#options.pattern);
    const iterate = { base, ...this.#iterate };
    const { relaxation, int8 } = this.#options;
    const operator = this.#narrow ?? this.#operator;
    // An op holds its device: large layers go few iterations at a time, small ones several.
    const narrow = operator.dtype === 'bfloat16' && device.info().bf16Products;
    const operations = productsTogether(device) * (int8 ? 4 : narrow ? 2 : 1);
    const together = Math.max(1, Math.floor(operations / (2 * m * n * n)));
    for (let done = 0; done < count; done += together) {
      const iterations = Math.min(together, count - done);
      stream.admmIterate(operator, iterate, relaxation, pattern, segments, iterations, int8);
    }
    this.#iteration += count;
  }

  /** A look of the schedule: the entries of the support that changed since the last one or {@link markSupport}, known after {@link settle}. */
  async look(): Promise<TracePoint> {
    const look = this.#changesSince(this.#previous);
    if (!this.#traced) await this.#trace(look);
    return look;
  }

  async #trace(look: TracePoint): Promise<void> {
    if (this.#options.traceErrors) look.error = await this.#error();
    this.trace.push(look);
  }

  #changesSince(support: Tensor<'uint8'>): TracePoint {
    const { stream, device, segments } = this.#problem;
    const counts = this.#scope.hold(device.tensor('uint32', [segments.rowEnds.length]));
    stream.maskChanges(this.#iterate.mask, support, segments, counts);
    const look = { iteration: this.#iteration, rho: this.#rho, changed: Number.NaN };
    this.#unread.push({ look, counts });
    return look;
  }

  /** Waits for what was queued, and fills in what all looks so far counted. */
  async settle(): Promise<void> {
    const { stream } = this.#problem;
    const unread = this.#unread;
    this.#unread = [];
    const read = await together([...unread.map(({ counts }) => stream.read(counts)), stream.sync()]);
    for (const [i, { look, counts }] of unread.entries()) {
      look.changed = (read[i] as Uint32Array).reduce((sum, count) => sum + count, 0);
      counts.dispose();
    }
  }

  /** tr((B₀ − P(B)) H' (B₀ − P(B))ᵀ) / tr(B₀ H' B₀ᵀ) */
  async #error(): Promise<number> {
    const { stream, device, base, gram, segments, m } = this.#problem;
    using scope = new Scope();
    const difference = scope.hold(device.empty('float32', base.shape, 'the traced difference'));
    const mask = scope.hold(device.empty('uint8', base.shape, 'the traced support'));
    const rows = scope.hold(device.tensor('float64', [m]));
    const objective = async () => {
      stream.quadraticForms(difference, gram, rows);
      return (await stream.read(rows)).reduce((sum, value) => sum + value, 0);
    };
    if (this.#whole === undefined) {
      stream.copy(base, difference);
      this.#whole = await objective();
    }
    if (!(this.#whole > 0)) return 0;
    stream.copy(this.#iterate.b, difference);
    stream.project(difference, mask, nativePattern(this.#options.pattern), segments);
    stream.applyMask(difference, mask);
    stream.axpby(base, difference, -1, 1);
    return (await objective()) / this.#whole;
  }

  /** The final mask, and B zero off it. */
  projectB(): void {
    const { stream, segments } = this.#problem;
    const { b, mask } = this.#iterate;
    stream.project(b, mask, nativePattern(this.#options.pattern), segments);
    stream.applyMask(b, mask);
  }
}

/** Widest layers of which two values of ρ are factorised side by side: beyond, it gains nothing (two threads). */
const widestPair = 1536;

/** Whether a device, a processor where none is given, factorises for two values of ρ at once: of a ladder, which knows the next. */
export function factorisesPairs(
  n: number,
  { schedule }: Pick<ParsedPruningOptions, 'schedule'>,
  { name }: Pick<Device, 'name'> = { name: 'cpu' },
): boolean {
  return name === 'cpu' && isLadder(schedule) && n <= widestPair;
}

type Run = Pick<Solution, 'iterations' | 'trace' | 'capped'>;

function runOf(admm: Admm, capped: boolean): Run {
  return { iterations: admm.iterations, trace: admm.trace, capped };
}

async function runLadder(admm: Admm, schedule: Ladder, pattern: Pattern): Promise<Run> {
  const kept = admm.keptTotal;
  const rungs = rungsOf(schedule, pattern);
  admm.start();
  admm.markSupport();
  let { looks, rho } = await climb(admm, rungs);
  const restarted = restartedRungs(rungs, looks, kept, admm.weights);
  if (restarted) {
    admm.setRho(restarted[0]![0]);
    admm.start();
    ({ looks, rho } = await climb(admm, restarted));
  }
  // Values of ρ that small need not settle the support of `short`, or of few weights that go.
  const settled = (changed: number) =>
    restarted
      ? hasSettled('ladder', changed, Math.min(kept, admm.weights - kept))
      : hasSettled(schedule, changed, kept);
  while (!settled(looks.at(-1)!)) {
    const next = furtherRung(rho);
    if (!next) return runOf(admm, true);
    ({ looks, rho } = await climb(admm, [next]));
  }
  return runOf(admm, false);
}

/** Iterates at each value of ρ in turn. Gives how many entries of the support changed at each, and the last value. */
async function climb(admm: Admm, rungs: readonly Rung[]): Promise<{ looks: number[]; rho: number }> {
  const looks: TracePoint[] = [];
  let rho = Number.NaN;
  for (const [i, rung] of rungs.entries()) {
    rho = rung[0];
    admm.setRho(rho, rungs[i + 1]?.[0]);
    await admm.iterate(rung[1]);
    looks.push(await admm.look());
  }
  await admm.settle();
  return { looks: looks.map(({ changed }) => changed), rho };
}

async function runFixed(admm: Admm, options: ParsedPruningOptions): Promise<Run> {
  const { initialRho, checkEvery, maxIterations } = options.alpsSchedule;
  let last: TracePoint | undefined;
  admm.start();
  admm.markSupport();
  admm.setRho(initialRho);
  while (admm.iterations < maxIterations) {
    await admm.iterate(Math.min(checkEvery, maxIterations - admm.iterations));
    last = await admm.look();
    await admm.settle();
  }
  return runOf(admm, last!.changed > 0);
}

async function runPublished(admm: Admm, options: ParsedPruningOptions): Promise<Run> {
  const { initialRho, checkEvery, maxIterations } = options.alpsSchedule;
  const kept = admm.keptTotal;
  let state = { rho: initialRho, grew: false };
  admm.start();
  admm.markSupport();
  admm.setRho(state.rho);
  while (true) {
    await admm.iterate(Math.min(checkEvery, maxIterations - admm.iterations));
    const look = await admm.look();
    await admm.settle();
    const { changed } = look;
    const decision = checkAlps(state, admm.iterations, changed, kept, options.alpsSchedule);
    if (decision.action === 'stop') return runOf(admm, admm.iterations >= maxIterations && changed > 0);
    state = decision.state;
    admm.setRho(state.rho);
    // A restart keeps the support of the last check as the one to compare with, as the published code does.
    if (decision.action === 'restart') admm.start();
  }
}

const runs: Record<ScheduleName, (admm: Admm, options: ParsedPruningOptions) => Promise<Run>> = {
  ladder: (admm, { pattern }) => runLadder(admm, 'ladder', pattern),
  short: (admm, { pattern }) => runLadder(admm, 'short', pattern),
  alps: runPublished,
  fixed: runFixed,
};
