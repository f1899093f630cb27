import type { Device } from '../device/device.js';
import { Scope, type Tensor } from '../device/tensor.js';
import type { LayerProblem } from './layer-problem.js';
import { nativePattern } from './layer-problem.js';
import { type ParsedPruningOptions, type Precision, searchPrecision } from './options.js';
import { refit } from './refine.js';
import { checkAlps, rungsOf, type ScheduleName } from './rho-schedule.js';
import { type Solution, solutionTensors, type TracePoint } from './solution.js';

type F32 = Tensor<'float32'>;

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
    const time = { factorise: 0, admm: 0, refine: 0 };
    const began = performance.now();
    stream.enterPhase('factorise');
    let metricScale: Float32Array<ArrayBuffer> | undefined;
    if (options.metric === 'obs') {
      metricScale = await obsScale(problem, options.obsExponent);
      problem.scaleColumns(metricScale);
    }
    const iterate: Iterate = {
      b: weight,
      state: scope.hold(device.tensor('float32', [m, n], 'the ADMM state')),
      mask,
      y: scope.hold(device.tensor(precision, [m, n], 'the ADMM right-hand side')),
    };
    const admm = new Admm(problem, options, precision, iterate, scope, time);
    const run = await runs[options.schedule](admm, options);
    // The support is that of B, not of D. The scale of the metric leaves the problem before the refit.
    admm.projectB();
    scope.dispose();
    if (metricScale)
      problem.scaleColumns(
        metricScale.map((f) => 1 / f),
        weight,
      );
    await stream.sync();
    stream.enterPhase('refine');
    const searched = performance.now();
    time.admm = searched - began - time.factorise;
    const refineIterations = await refit(problem, weight, mask, options);
    problem.unscale(weight);
    await stream.sync();
    time.refine = performance.now() - searched;
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
  const inverse = scope.hold(device.tensor('float32', [n, n], 'the inverse of the Gram matrix'));
  const diagonal = scope.hold(device.tensor('float32', [n]));
  stream.copy(problem.gram, inverse);
  stream.cholesky(inverse);
  stream.choleskyInverse(inverse, { split: true });
  stream.diagonal(inverse, diagonal);
  const values = await stream.read(diagonal);
  return values.map((d) => d ** (-exponent / 2));
}

/** Floating-point operations that one op may take up with its products: on a processor it holds the device so long, on a GPU it is queued. */
const productsTogether = (device: Device) => (device.name === 'cpu' ? 2 ** 34 : 2 ** 43);

/** The iteration itself, and the operator K = ρ (H' + ρI)⁻¹ for the current ρ. */
class Admm {
  readonly #problem: LayerProblem;
  readonly #options: ParsedPruningOptions;
  readonly #iterate: Iterate;
  /** K in float32, made in place from H'. */
  readonly #exact: F32;
  /** K as the products take it. */
  readonly #operator: Tensor<Precision>;
  readonly #time: { factorise: number };
  readonly #previous: Tensor<'uint8'>;
  readonly #counts: Tensor<'uint32'>;
  /** The support at the last point of the trace. */
  readonly #traced: Tensor<'uint8'> | undefined;
  #iteration = 0;
  readonly trace: TracePoint[] = [];
  #rho = Number.NaN;
  #whole: number | undefined;

  constructor(
    problem: LayerProblem,
    options: ParsedPruningOptions,
    precision: Precision,
    iterate: Iterate,
    scope: Scope,
    time: { factorise: number },
  ) {
    const { device, n, m, segments } = problem;
    this.#problem = problem;
    this.#options = options;
    this.#iterate = iterate;
    this.#time = time;
    this.#exact = scope.hold(device.tensor('float32', [n, n], 'the ADMM operator'));
    this.#operator =
      precision === 'float32'
        ? this.#exact
        : scope.hold(device.tensor('bfloat16', [n, n], 'the ADMM operator in bfloat16'));
    this.#previous = scope.hold(device.tensor('uint8', [m, n], 'the support at the last check'));
    this.#traced =
      options.traceEvery > 0
        ? scope.hold(device.tensor('uint8', [m, n], 'the support at the last point of the trace'))
        : undefined;
    this.#counts = scope.hold(device.tensor('uint32', [segments.rowEnds.length]));
  }

  /** k of all layers together. */
  get keptTotal(): number {
    return this.#problem.segments.keep.reduce((sum, k) => sum + k, 0);
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

  /** Factorises for another ρ. The dual part of the state is U = V / ρ, so it is scaled when a run goes on (not at its start). */
  async setRho(rho: number): Promise<void> {
    if (rho === this.#rho) return;
    const { stream, gram, base } = this.#problem;
    const { state, mask, y } = this.#iterate;
    await stream.sync();
    stream.enterPhase('factorise');
    const began = performance.now();
    if (!Number.isNaN(this.#rho)) stream.admmRescale(base, state, mask, y, this.#rho / rho);
    stream.copy(gram, this.#exact);
    stream.addDiagonal(this.#exact, rho);
    stream.cholesky(this.#exact);
    stream.choleskyInverse(this.#exact, { split: true });
    stream.axpby(this.#exact, this.#exact, 0, rho);
    if (this.#operator !== this.#exact) stream.copy(this.#exact, this.#operator);
    this.#rho = rho;
    await stream.sync();
    stream.enterPhase('admm');
    this.#time.factorise += performance.now() - began;
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
      if (this.#traced && this.#iteration % traceEvery === 0)
        await this.#tracePoint(await this.#changedSince(this.#traced));
    }
  }

  #run(count: number): void {
    const { stream, device, base, segments, m, n } = this.#problem;
    const pattern = nativePattern(this.#options.pattern);
    const iterate = { base, ...this.#iterate };
    const { relaxation } = this.#options;
    // An op holds its device: large layers go one iteration at a time, small ones several.
    const together = Math.max(1, Math.floor(productsTogether(device) / (2 * m * n * n)));
    for (let done = 0; done < count; done += together) {
      const iterations = Math.min(together, count - done);
      stream.admmIterate(this.#operator, iterate, relaxation, pattern, segments, iterations);
    }
    this.#iteration += count;
  }

  /** A look of the schedule: entries of the support that changed since the last one or {@link markSupport}. */
  async look(): Promise<number> {
    const changed = await this.#changedSince(this.#previous);
    if (!this.#traced) await this.#tracePoint(changed);
    return changed;
  }

  async #tracePoint(changed: number): Promise<void> {
    const point: TracePoint = { iteration: this.#iteration, rho: this.#rho, changed };
    if (this.#options.traceErrors) point.error = await this.#error();
    this.trace.push(point);
  }

  async #changedSince(support: Tensor<'uint8'>): Promise<number> {
    const { stream, segments } = this.#problem;
    stream.maskChanges(this.#iterate.mask, support, segments, this.#counts);
    const counts = await stream.read(this.#counts);
    return counts.reduce((sum, count) => sum + count, 0);
  }

  /** tr((B₀ − P(B)) H' (B₀ − P(B))ᵀ) / tr(B₀ H' B₀ᵀ) */
  async #error(): Promise<number> {
    const { stream, device, base, gram, segments, m } = this.#problem;
    using scope = new Scope();
    const difference = scope.hold(device.tensor('float32', base.shape, 'the traced difference'));
    const mask = scope.hold(device.tensor('uint8', base.shape, 'the traced support'));
    const rows = scope.hold(device.tensor('float64', [m]));
    const objective = async () => {
      stream.quadraticForms(difference, gram, rows);
      return (await stream.read(rows)).reduce((sum, value) => sum + value, 0);
    };
    stream.copy(base, difference);
    this.#whole ??= await objective();
    stream.copy(this.#iterate.b, difference);
    stream.project(difference, mask, nativePattern(this.#options.pattern), segments);
    stream.applyMask(difference, mask);
    stream.axpby(base, difference, -1, 1);
    return this.#whole > 0 ? (await objective()) / this.#whole : 0;
  }

  /** The final mask, and B zero off it. */
  projectB(): void {
    const { stream, segments } = this.#problem;
    const { b, mask } = this.#iterate;
    stream.project(b, mask, nativePattern(this.#options.pattern), segments);
    stream.applyMask(b, mask);
  }
}

type Run = Pick<Solution, 'iterations' | 'trace' | 'capped'>;

function runOf(admm: Admm, capped: boolean): Run {
  return { iterations: admm.iterations, trace: admm.trace, capped };
}

async function runLadder(admm: Admm, rungs: ReturnType<typeof rungsOf>): Promise<Run> {
  admm.start();
  admm.markSupport();
  for (const [rho, count] of rungs) {
    await admm.setRho(rho);
    await admm.iterate(count);
    await admm.look();
  }
  return runOf(admm, false);
}

async function runFixed(admm: Admm, options: ParsedPruningOptions): Promise<Run> {
  const { initialRho, checkEvery, maxIterations } = options.alpsSchedule;
  let changed = 0;
  admm.start();
  admm.markSupport();
  await admm.setRho(initialRho);
  while (admm.iterations < maxIterations) {
    await admm.iterate(Math.min(checkEvery, maxIterations - admm.iterations));
    changed = await admm.look();
  }
  return runOf(admm, changed > 0);
}

async function runPublished(admm: Admm, options: ParsedPruningOptions): Promise<Run> {
  const { initialRho, checkEvery, maxIterations } = options.alpsSchedule;
  const kept = admm.keptTotal;
  let state = { rho: initialRho, grew: false };
  admm.start();
  admm.markSupport();
  await admm.setRho(state.rho);
  while (true) {
    await admm.iterate(Math.min(checkEvery, maxIterations - admm.iterations));
    const changed = await admm.look();
    const decision = checkAlps(state, admm.iterations, changed, kept, options.alpsSchedule);
    if (decision.action === 'stop') return runOf(admm, admm.iterations >= maxIterations && changed > 0);
    state = decision.state;
    await admm.setRho(state.rho);
    // A restart keeps the support of the last check as the one to compare with, as the published code does.
    if (decision.action === 'restart') admm.start();
  }
}

const runs: Record<ScheduleName, (admm: Admm, options: ParsedPruningOptions) => Promise<Run>> = {
  ladder: (admm, { pattern }) => runLadder(admm, rungsOf('ladder', pattern)),
  short: (admm, { pattern }) => runLadder(admm, rungsOf('short', pattern)),
  alps: runPublished,
  fixed: runFixed,
};
