import { onAbort } from '../abort.js';
import { AlpsError, aborted } from '../errors.js';
import { type Addon, addon, type DType, type NativePattern, type NativeStream } from './addon.js';
import type { Device } from './device.js';
import { allocateArray, fromNative, native, type Tensor, type TypedArrayOf } from './tensor.js';

type F32 = Tensor<'float32'>;
/** float32, or bfloat16 where the op says so. */
type Float = Tensor<'float32' | 'bfloat16'>;
type Mask = Tensor<'uint8'>;

/** What an iteration of ADMM works on (docs/algorithm.md, "ADMM"), all [m, n]. */
export interface AdmmTensors {
  base: F32;
  b: F32;
  /** S */
  state: F32;
  mask: Mask;
  y: Float;
}

/** Layers solved as one matrix of concatenated rows: the row after each one's last, and how many weights each one keeps. */
export interface Segments {
  rowEnds: number[];
  keep: number[];
}

/**
 * A first-in-first-out queue of work on a device. Ops return at once; `await read()` and `await sync()` settle when the stream gets
 * there. A failing op makes the ops behind it no-ops until the next await, which rejects with its error.
 *
 * Shapes and dtypes of every op stand in native/core/backend.h; a call that breaks them throws `INVALID_ARGUMENT` at once.
 */
export class Stream {
  readonly device: Device;
  readonly #handle: NativeStream;
  readonly #signal: AbortSignal | undefined;
  readonly #release: () => void;
  #closed = false;

  /** @internal Use {@link Device.stream}. */
  constructor(device: Device, signal?: AbortSignal) {
    if (signal?.aborted) throw aborted(signal);
    this.device = device;
    this.#signal = signal;
    this.#release = onAbort(signal, () => addon().cancelStream(this.#handle));
    try {
      this.#handle = native(() => addon().openStream(device.handle));
    } catch (error) {
      this.#release();
      throw error;
    }
  }

  /** Lets go of the stream. What is queued still runs. */
  dispose(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#release();
    addon().closeStream(this.#handle);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Drops what is queued, waits for what runs, and lets go of the stream: their memory is free then, and arrays are no longer read. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return;
    addon().cancelStream(this.#handle);
    await this.sync().catch(() => undefined);
    this.dispose();
  }

  /** Names the phase, in a profile of the device ({@link profile}), of what is queued from here on. @internal */
  enterPhase(name: string): void {
    native(() => addon().setPhase(this.#open(), name));
  }

  /** A place behind what is queued so far: gives when the stream got there, in milliseconds of some clock, NaN until it did. @internal */
  mark(): () => number {
    const mark = native(() => addon().markStream(this.#open()));
    return () => native(() => addon().markedTime(mark));
  }

  /** Settles when all that was queued before has run; rejects with the first error among it. */
  async sync(): Promise<void> {
    await this.#settle((callback) => addon().syncStream(this.#open(), callback));
  }

  /** The tensor's values once the stream gets there, in a new typed array. */
  async read<D extends DType>(tensor: Tensor<D>): Promise<TypedArrayOf<D>> {
    const out = allocateArray(tensor.dtype, tensor.size);
    await this.#settle((callback) => addon().readTensor(this.#open(), tensor.handle, out, callback));
    return out;
  }

  /** Copies a typed array into the tensor. The array must not change until the stream gets there. */
  write<D extends DType>(tensor: Tensor<D>, data: ArrayBufferView): void {
    native(() => addon().writeTensor(this.#open(), tensor.handle, data));
  }

  /** A new tensor with a typed array's values; see {@link write}. */
  upload<D extends DType>(dtype: D, shape: readonly number[], data: TypedArrayOf<D>, label?: string): Tensor<D> {
    const tensor = this.device.empty(dtype, shape, label);
    try {
      this.write(tensor, data);
    } catch (error) {
      tensor.dispose();
      throw error;
    }
    return tensor;
  }

  #open(): NativeStream {
    if (this.#closed) throw new AlpsError('DISPOSED', 'The stream was disposed');
    return this.#handle;
  }

  #settle(start: (callback: (error: Error | null) => void) => void): Promise<void> {
    const here = new Error();
    return new Promise((resolve, reject) => {
      const callback = (error: Error | null) => {
        if (error === null) return resolve();
        let failure = fromNative(error);
        if (failure.code === 'ABORTED' && this.#signal) failure = aborted(this.#signal);
        failure.stack = `${failure.name}: ${failure.message}\n${here.stack?.split('\n').slice(2).join('\n')}`;
        reject(failure);
      };
      native(() => start(callback));
    });
  }

  #op<K extends keyof Addon>(name: K, ...args: unknown[]): void {
    native(() => (addon()[name] as (...all: unknown[]) => void)(this.#open(), ...args));
  }

  // ---- elementwise ----------------------------------------------------------------------------------------------------

  fill(out: Tensor, value: number): void {
    this.#op('fill', out.handle, value);
  }
  /** out = from in out's dtype, rounded to nearest even. */
  copy(from: Tensor, out: Tensor): void {
    this.#op('copy', from.handle, out.handle);
  }
  /** y = alpha x + beta y, both of one dtype. */
  axpby(x: Float, y: Float, alpha: number, beta: number): void {
    this.#op('axpby', x.handle, y.handle, alpha, beta);
  }
  /** x[i, j] += bias[j] */
  addBias(x: Float, bias: F32): void {
    this.#op('addBias', x.handle, bias.handle);
  }
  /** out[i, j] = a[i, j] row[i] column[j]; out may be a. */
  scaleRowsColumns(a: F32, scales: { row?: F32; column?: F32 }, out: F32): void {
    this.#op('scaleRowsColumns', a.handle, scales.row?.handle ?? null, scales.column?.handle ?? null, out.handle);
  }
  /** x = mask ? x : +0 */
  applyMask(x: F32, mask: Mask): void {
    this.#op('applyMask', x.handle, mask.handle);
  }
  /** mask = x ≠ 0 */
  nonZeroMask(x: F32, mask: Mask): void {
    this.#op('nonZeroMask', x.handle, mask.handle);
  }
  /** out[0] += number of NaN and infinite entries */
  countNonFinite(x: Tensor, out: Tensor<'uint32'>): void {
    this.#op('countNonFinite', x.handle, out.handle);
  }
  /** out[i] = Σⱼ a[i, j] b[i, j], in double */
  rowDots(a: F32, b: F32, out: Tensor<'float64'>): void {
    this.#op('rowDots', a.handle, b.handle, out.handle);
  }

  /** out[i] = aᵢᵀ s aᵢ, for a symmetric s [n, n]; dots in double */
  quadraticForms(a: F32, s: F32, out: Tensor<'float64'>): void {
    this.#op('quadraticForms', a.handle, s.handle, out.handle);
  }

  /** out[j] += Σᵢ x[i, j], or of its square, in double */
  columnSums(x: Float, out: Tensor<'float64'>, { squares = false } = {}): void {
    this.#op('columnSums', x.handle, squares, out.handle);
  }
  /** out[j] += Σᵢ (x − y)[i, j]², the differences rounded to their dtype, sums in double. y may be overwritten. */
  differenceSquares(x: Float, y: Float, out: Tensor<'float64'>): void {
    this.#op('differenceSquares', x.handle, y.handle, out.handle);
  }
  /** out = aᵀ */
  transpose<D extends DType>(a: Tensor<D>, out: Tensor<D>): void {
    this.#op('transpose', a.handle, out.handle);
  }

  // ---- Gram-matrix solves ---------------------------------------------------------------------------------------------

  /**
   * out = alpha op(a) op(b) + beta out; float32, or bfloat16 with float32 accumulation.
   * @param options `split`: float32 factors may be taken as the sum of two bfloat16 numbers each (a relative error of 2⁻¹⁷) where that is
   * faster, on GPUs; they must be finite
   */
  gemm(
    a: Float,
    b: Float,
    out: Float,
    options: { transposeA?: boolean; transposeB?: boolean; alpha?: number; beta?: number; split?: boolean } = {},
  ): void {
    const { transposeA = false, transposeB = false, alpha = 1, beta = 0, split = false } = options;
    this.#op('gemm', a.handle, b.handle, out.handle, transposeA, transposeB, alpha, beta, split);
  }
  /**
   * out = a b with b [n, n], both bfloat16, for corrections that need no more than two digits: on devices with `int8Products` the rows of a
   * and the columns of b without its diagonal are rounded to 8-bit integers, each by a scale of its own (with `isa: 'scalar'` too, for tests); elsewhere, and below 48 rows, as {@link gemm}.
   */
  int8Gemm(a: Tensor<'bfloat16'>, b: Tensor<'bfloat16'>, out: F32): void {
    this.#op('int8Gemm', a.handle, b.handle, out.handle);
  }
  /** Upper triangle of gram += xᵀx; see {@link symmetrize}. */
  gramAccumulate(x: Float, gram: F32): void {
    this.#op('gramAccumulate', x.handle, gram.handle);
  }
  /**
   * With d = y − x, rounded to their dtype, cross += xᵀd and the upper triangle of gram += dᵀd. y may be overwritten.
   * @param int8 whether 8-bit integers will do for bfloat16 x and d, on devices with `int8Products` (and with `isa: 'scalar'`, for tests): columns
   * are rounded by a scale of their own for each 512 tokens, d from what it is in float32
   */
  differenceSums(x: Float, y: Float, sums: { cross?: F32 | undefined; gram?: F32 | undefined }, int8 = false): void {
    const op = int8 ? 'differenceSumsInt8' : 'differenceSums';
    this.#op(op, x.handle, y.handle, sums.cross?.handle ?? null, sums.gram?.handle ?? null);
  }
  /** Lower triangle := upper triangle. */
  symmetrize(a: F32): void {
    this.#op('symmetrize', a.handle);
  }
  addDiagonal(a: F32, value: number): void {
    this.#op('addDiagonal', a.handle, value);
  }
  /** a[i, i] += alpha values[i] */
  addToDiagonal(a: F32, values: F32, alpha: number): void {
    this.#op('addToDiagonal', a.handle, values.handle, alpha);
  }
  diagonal(a: F32, out: F32): void {
    this.#op('diagonal', a.handle, out.handle);
  }
  /**
   * In place, a := L with a = L Lᵀ
   * @param a [n, n], or several [count, n, n], which a processor works on side by side. The next await rejects with `NOT_POSITIVE_DEFINITE` when
   * one is not positive definite; all are then undefined
   */
  cholesky(a: F32): void {
    this.#op('cholesky', a.handle);
  }
  /**
   * In place, L := (L Lᵀ)⁻¹
   * @param l as {@link cholesky} leaves it
   * @param options `split` as in {@link gemm}: the relative error stays that of the factor, but the inverse may no longer be positive definite
   */
  choleskyInverse(l: F32, { split = false } = {}): void {
    this.#op('choleskyInverse', l.handle, split);
  }
  /** In place, a := the lower L with a⁻¹ = L Lᵀ, rejecting as {@link cholesky}. */
  inverseFactor(a: F32): void {
    this.#op('inverseFactor', a.handle);
  }
  /** out := the diagonal of a⁻¹, rejecting as {@link cholesky}; a is undefined afterwards. */
  inverseDiagonal(a: F32, out: F32): void {
    this.#op('inverseDiagonal', a.handle, out.handle);
  }

  // ---- projection, ADMM, conjugate gradient -----------------------------------------------------------------------------

  /** mask := the kept weights of |scores|, ties to the lowest index. */
  project(scores: F32, mask: Mask, pattern: NativePattern, segments: Segments): void {
    this.#op('project', scores.handle, mask.handle, pattern, segments.rowEnds, segments.keep);
  }
  /** counts[s] = entries of segment s that differ; previous := mask. */
  maskChanges(mask: Mask, previous: Mask, segments: Segments, counts: Tensor<'uint32'>): void {
    this.#op('maskChanges', mask.handle, previous.handle, segments.rowEnds, counts.handle);
  }
  /** S = mask ? B₀ : 0; Y = (mask ? S : −S) − B₀ */
  admmStart(base: F32, mask: Mask, state: F32, y: Float): void {
    this.#op('admmStart', base.handle, mask.handle, state.handle, y.handle);
  }
  /**
   * b holds Y K: B = B₀ + b; S = ωB + (mask ? (1 − ω)S : S); mask = project(|S|); Y = (mask ? S : −S) − B₀; b := B.
   * @param relaxation ω, between 0 and 2; 1 is the plain iteration
   */
  admmUpdate(
    { base, b, state, mask, y }: AdmmTensors,
    relaxation: number,
    pattern: NativePattern,
    segments: Segments,
  ): void {
    this.#op(
      'admmUpdate',
      b.handle,
      base.handle,
      state.handle,
      mask.handle,
      y.handle,
      relaxation,
      pattern,
      segments.rowEnds,
      segments.keep,
    );
  }
  /**
   * `count` times { b = Y K; {@link admmUpdate} } with K the operator [n, n], of Y's dtype. Leaves B in b.
   * @param int8 whether the products are those of {@link int8Gemm}; for bfloat16
   */
  admmIterate(
    operator: Float,
    { base, b, state, mask, y }: AdmmTensors,
    relaxation: number,
    pattern: NativePattern,
    segments: Segments,
    count: number,
    int8 = false,
  ): void {
    this.#op(
      int8 ? 'admmIterateInt8' : 'admmIterate',
      operator.handle,
      base.handle,
      b.handle,
      state.handle,
      mask.handle,
      y.handle,
      relaxation,
      pattern,
      segments.rowEnds,
      segments.keep,
      count,
    );
  }
  /** New ρ: off the mask S *= factor = ρ_old / ρ_new; Y again. */
  admmRescale(base: F32, state: F32, mask: Mask, y: Float, factor: number): void {
    this.#op('admmRescale', base.handle, state.handle, mask.handle, y.handle, factor);
  }
  /** Masks the residual, direction := residual, rr = rr0 = |residual row|². */
  cgStart(residual: F32, mask: Mask, direction: F32, rr: Tensor<'float64'>, rr0: Tensor<'float64'>): void {
    this.#op('cgStart', residual.handle, mask.handle, direction.handle, rr.handle, rr0.handle);
  }
  /** One step of every row with q = direction H; rows at rr ≤ tolerance² rr0 stand still; active[0] = rows that moved. */
  cgStep(
    q: F32,
    mask: Mask,
    x: F32,
    residual: F32,
    direction: F32,
    rr: Tensor<'float64'>,
    rr0: Tensor<'float64'>,
    tolerance: number,
    active: Tensor<'uint32'>,
  ): void {
    this.#op(
      'cgStep',
      q.handle,
      mask.handle,
      x.handle,
      residual.handle,
      direction.handle,
      rr.handle,
      rr0.handle,
      tolerance,
      active.handle,
    );
  }

  /**
   * All steps of every row on its own, with H on the row's support gathered: as many as `active` has elements, [steps]. x is improved in
   * place; residual = (target − x) H on entry, of no use afterwards; active[t] = rows that moved in step t.
   * @param kept entries of the mask, or about as many: the work is cut by them
   */
  cgOnSupport(
    gram: F32,
    mask: Mask,
    x: F32,
    residual: F32,
    { tolerance, kept }: { tolerance: number; kept: number },
    active: Tensor<'uint32'>,
  ): void {
    this.#op('cgOnSupport', gram.handle, mask.handle, x.handle, residual.handle, tolerance, kept, active.handle);
  }

  /** mask := the `keep` largest |scores| of each row, ties to the lowest index. */
  projectRows(scores: F32, mask: Mask, keep: number): void {
    this.#op('projectRows', scores.handle, mask.handle, keep);
  }
  /** x[i, S] = gram[S, S]⁻¹ right[i, S] on each row's mask S, 0 off it; x may be right. */
  backsolve(gram: F32, right: F32, mask: Mask, x: F32): void {
    this.#op('backsolve', gram.handle, right.handle, mask.handle, x.handle);
  }

  // ---- the other methods ------------------------------------------------------------------------------------------------

  /** SparseGPT's sweep, in place; factor: L with (XᵀX + damping)⁻¹ = L Lᵀ. */
  sparseGpt(
    weight: F32,
    factor: F32,
    mask: Mask,
    pattern: NativePattern,
    { rowEnds, keep }: Segments,
    block: number,
  ): void {
    this.#op('sparseGpt', weight.handle, factor.handle, mask.handle, pattern, rowEnds, keep, block);
  }
  /** DSnoT's prune-and-grow on a mask, in place; see native/core/backend.h. */
  dsnot(
    weight: F32,
    metric: F32,
    inputs: { expected: F32; variance: F32 },
    mask: Mask,
    pattern: NativePattern,
    options: { cycles: number; threshold: number; sameSign: boolean },
  ): void {
    const { cycles, threshold, sameSign } = options;
    const { expected, variance } = inputs;
    this.#op(
      'dsnot',
      weight.handle,
      metric.handle,
      expected.handle,
      variance.handle,
      mask.handle,
      pattern,
      cycles,
      threshold,
      sameSign,
    );
  }

  // ---- transformer forward ----------------------------------------------------------------------------------------------

  /** out[i] = table[ids[i]] in float32 */
  embedding(table: Tensor, ids: Tensor<'uint32'>, out: F32): void {
    this.#op('embedding', table.handle, ids.handle, out.handle);
  }
  /** out = x / rms(x) (weight + offset); x may hold several norms a row. */
  rmsNorm(x: Float, weight: F32, eps: number, out: Float, offset = 0): void {
    this.#op('rmsNorm', x.handle, weight.handle, eps, offset, out.handle);
  }
  /** out = (x − mean) / std weight + bias */
  layerNorm(x: Float, weight: F32, bias: F32, eps: number, out: Float): void {
    this.#op('layerNorm', x.handle, weight.handle, bias.handle, eps, out.handle);
  }
  /** Rotary positions in place; token t of x stands at position t mod sequence. */
  rope(x: Float, cosine: F32, sine: F32, headDim: number, sequence: number): void {
    this.#op('rope', x.handle, cosine.handle, sine.handle, headDim, sequence);
  }
  /** Causal attention with grouped queries over whole windows of `sequence` tokens; window 0 is no sliding window. */
  attention(
    q: Float,
    k: Float,
    v: Float,
    out: Float,
    options: { headDim: number; sequence: number; scale: number; window?: number; softCap?: number },
  ): void {
    const { headDim, sequence, scale, window = 0, softCap = 0 } = options;
    this.#op('attention', q.handle, k.handle, v.handle, out.handle, headDim, sequence, scale, window, softCap);
  }
  /**
   * {@link attention} for one more token of each of B sequences: k and v [B, ·] become row `position` of each sequence in keys and values [B T, ·],
   * and q attends to its sequence's rows up to there.
   */
  attentionStep(
    { q, k, v, keys, values }: { q: Float; k: Float; v: Float; keys: Float; values: Float },
    out: Float,
    options: { headDim: number; position: number; scale: number; window?: number; softCap?: number },
  ): void {
    const { headDim, position, scale, window = 0, softCap = 0 } = options;
    this.#op(
      'attentionStep',
      q.handle,
      k.handle,
      v.handle,
      keys.handle,
      values.handle,
      out.handle,
      headDim,
      position,
      scale,
      window,
      softCap,
    );
  }
  /** out = activation(gate) ∘ up; out may be gate. */
  gatedActivation(gate: Float, up: Float, out: Float, activation: 'silu' | 'gelu' | 'gelu_tanh' | 'relu'): void {
    this.#op('gatedActivation', gate.handle, up.handle, out.handle, activation);
  }
  /** out = activation(x); out may be x. */
  activate(x: Float, out: Float, activation: 'silu' | 'gelu' | 'gelu_tanh' | 'relu'): void {
    this.#op('activate', x.handle, out.handle, activation);
  }
  /** x = cap tanh(x / cap) */
  softCap(x: F32, cap: number): void {
    this.#op('softCap', x.handle, cap);
  }
  /** The k largest logits of each row: their experts and softmax weights, over all experts or, with `normalise`, over the k. */
  topExperts(logits: F32, ids: Tensor<'uint32'>, weights: F32, normalise: boolean): void {
    this.#op('topExperts', logits.handle, ids.handle, weights.handle, normalise);
  }
  /** out[i] = x[ids[i]] */
  gatherRows(x: Float, ids: Tensor<'uint32'>, out: Float): void {
    this.#op('gatherRows', x.handle, ids.handle, out.handle);
  }
  /** x[ids[i]] += weights[i] y[i]; no id twice. */
  scatterAddRows(y: Float, ids: Tensor<'uint32'>, weights: F32, x: F32): void {
    this.#op('scatterAddRows', y.handle, ids.handle, weights.handle, x.handle);
  }
  /** x += y */
  addTo(y: Float, x: F32): void {
    this.#op('addTo', y.handle, x.handle);
  }
  /** out[i] = log Σ exp(logits[i]) − logits[i, targets[i]] */
  crossEntropy(logits: F32, targets: Tensor<'uint32'>, out: Tensor<'float64'>): void {
    this.#op('crossEntropy', logits.handle, targets.handle, out.handle);
  }
  /** out[i] = KL(softmax(p[i]) ‖ softmax(q[i])); NaN or infinite where logits are not finite. */
  divergence(p: F32, q: F32, out: Tensor<'float64'>): void {
    this.#op('divergence', p.handle, q.handle, out.handle);
  }
  /**
   * ids[i] drawn from softmax(logits[i] / temperature): the first up to which the probabilities sum to more than draws[i], in [0, 1).
   * Temperature 0: the largest, the first among equals.
   */
  sample(logits: F32, draws: Tensor<'float64'>, ids: Tensor<'uint32'>, temperature: number): void {
    this.#op('sample', logits.handle, draws.handle, ids.handle, temperature);
  }
}
