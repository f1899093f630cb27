import type { Stream } from '../device/stream.js';
import type { Tensor } from '../device/tensor.js';
import { AlpsError } from '../errors.js';

/** What DSnoT needs to know of a layer's inputs beside their Gram matrix. */
export interface InputMoments {
  /** Mean of each input over all tokens, [n]. */
  mean: Float64Array;
  /** Variance of each input within a window, mean over the windows, as the published code has it. */
  variance: Float64Array;
  /** Tokens of a window: DSnoT's threshold is on sums over one. */
  windowLength: number;
}

/** The error of a layer that DSnoT cannot prune. */
export function missingMoments(names: string): AlpsError {
  return new AlpsError(
    'INVALID_ARGUMENT',
    `DSnoT needs the means of the inputs of ${names}: give activations, or inputMean and inputVariance beside the Gram matrix`,
  );
}

/** Sums the squares of each input: the diagonal of XᵀX. */
export class SquareCollector {
  readonly #stream: Stream;
  readonly #sums: Tensor<'float64'>;

  constructor(stream: Stream, inputs: number, label = 'sums of squared inputs') {
    this.#stream = stream;
    this.#sums = stream.device.tensor('float64', [inputs], label);
  }

  /** The sums of this device, float32 [n], without waiting for them; the caller disposes them. */
  rounded(): Tensor<'float32'> {
    const values = this.#stream.device.tensor('float32', this.#sums.shape, 'sums of squares');
    this.#stream.copy(this.#sums, values);
    return values;
  }

  /** @param x [tokens, n] */
  add(x: Tensor<'float32' | 'bfloat16'>): void {
    this.#stream.columnSums(x, this.#sums, { squares: true });
  }

  /** Adds those of x − y, which may overwrite y. */
  addDifference(x: Tensor<'float32' | 'bfloat16'>, y: Tensor<'float32' | 'bfloat16'>): void {
    this.#stream.differenceSquares(x, y, this.#sums);
  }

  /** @param others what was collected of further windows, on other devices */
  async finish(others: readonly SquareCollector[] = []): Promise<Float32Array<ArrayBuffer>> {
    return Float32Array.from(await this.sums(others));
  }

  /** {@link finish} in float64: in float32 there are no digits left for the variance of inputs whose mean is large. */
  async sums(others: readonly SquareCollector[] = []): Promise<Float64Array> {
    const total = new Float64Array(this.#sums.shape[0]!);
    for (const collector of [this, ...others]) {
      const values = await collector.#stream.read(collector.#sums);
      for (let j = 0; j < total.length; j++) total[j]! += values[j]!;
    }
    return total;
  }

  dispose(): void {
    this.#sums.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Collects {@link InputMoments} while the inputs go by, window by window. */
export class MomentCollector {
  readonly #stream: Stream;
  readonly #windowLength: number;
  readonly #sums: { tokens: number; sum: Tensor<'float64'> }[] = [];
  #squares: SquareCollector | undefined;

  constructor(stream: Stream, windowLength: number) {
    this.#stream = stream;
    this.#windowLength = windowLength;
  }

  /** @param x [tokens, n]; cut into windows, the last of which may be shorter */
  add(x: Tensor<'float32' | 'bfloat16'>): void {
    const [tokens = 0, n = 0] = x.shape;
    this.#squares ??= new SquareCollector(this.#stream, n);
    this.#squares.add(x);
    for (let start = 0; start < tokens; start += this.#windowLength) {
      const end = Math.min(tokens, start + this.#windowLength);
      const sum = this.#stream.device.tensor('float64', [n], 'sums of inputs');
      this.#sums.push({ tokens: end - start, sum });
      using window = x.rows(start, end);
      this.#stream.columnSums(window, sum);
    }
  }

  /**
   * @param n inputs
   * @param others what was collected of further windows, on other devices
   */
  async finish(n: number, others: readonly MomentCollector[] = []): Promise<InputMoments> {
    const mean = new Float64Array(n);
    const [first, ...rest] = [this, ...others].flatMap((collector) => collector.#squares ?? []);
    const variance = first ? await first.sums(rest) : new Float64Array(n);
    let total = 0;
    for (const collector of [this, ...others]) {
      for (const { tokens, sum } of collector.#sums) {
        const values = await collector.#stream.read(sum);
        total += tokens;
        for (let j = 0; j < n; j++) {
          mean[j]! += values[j]!;
          variance[j]! -= values[j]! ** 2 / tokens;
        }
      }
    }
    for (let j = 0; j < n; j++) {
      mean[j]! /= total;
      variance[j] = Math.max(variance[j]! / total, 0);
    }
    return { mean, variance, windowLength: this.#windowLength };
  }

  dispose(): void {
    for (const { sum } of this.#sums.splice(0)) sum.dispose();
    this.#squares?.dispose();
    this.#squares = undefined;
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
