import type { Stream } from './device/stream.js';
import { Scope } from './device/tensor.js';
import type { Member } from './members.js';
import type { Block } from './model/block.js';
import type { Activations } from './model/block-run.js';
import type { DecoderConfig } from './model/config.js';
import type { DecoderModel, F32, Float } from './model/decoder.js';
import { chunkRows, rowsAtOnce, type TokenCounts } from './model/memory.js';
import type { DenseInputs, DenseTarget } from './pruning/dense-target.js';
import { SquareCollector } from './pruning/input-moments.js';

/**
 * Whether dense targets sum a stage's outputs, where its layer adds to the residual stream as it is: {@link DenseCollector} then takes the dense
 * model through the stage. Not behind a norm of its own, where what a layer adds is not linear in its weights, nor for experts.
 * @param experts whether the block's MLP is one of experts
 */
export function sumsOutputs({ normPlacement }: DecoderConfig, stage: number, experts: boolean): boolean {
  return (stage === 1 || (stage === 3 && !experts)) && normPlacement !== 'sandwich';
}

/**
 * Whether the dense model makes what stages 1 and 3 see when their outputs are summed, and keeps none of it; experts' are kept. Its block has
 * copies of the layers that make it then ({@link withCopies}).
 */
export function makesOnDemand({ normPlacement }: DecoderConfig): boolean {
  return normPlacement !== 'sandwich';
}

/**
 * Whether the inputs' errors are taken by their squares alone. For the last layer of an MLP, with the most inputs, what they have in common takes most
 * of the time and made no difference beyond rounding (docs/quality.md).
 */
const areErrorsSquares = (stage: number) => stage === 3;

/** Whether a stage's inputs are still needed when a collector has seen them. */
const areNeededAfterwards = (kind: DenseInputs['kind'], stage: number) => kind === 'cross' && stage % 2 === 1;

/**
 * Bytes of a {@link DenseCollector} and of the objective made from it, for a stage of n inputs without experts.
 * @param tokens with `rows` of {@link rowsAtOnce}
 * @param number bytes of a number in the products
 */
export function collectorBytes(
  config: DecoderConfig,
  { stage, n, target }: { stage: number; n: number; target: DenseTarget },
  { rows: most, ...tokens }: TokenCounts & { rows: number },
  number: number,
): number {
  const { hidden } = config;
  const rows = chunkRows(most, tokens);
  const narrow = number === 4 ? 0 : number;
  const kind = kindOf(config, stage, false);
  const sums = kind === 'outputs' ? 4 * hidden * n + rows * hidden * (4 + narrow) : 4 * n * n;
  const difference = areNeededAfterwards(kind, stage) ? rows * n * number : 0;
  return sums + difference + (target.errorWeight > 0 ? 4 * n * n : 0);
}

function kindOf(config: DecoderConfig, stage: number, experts: boolean): DenseInputs['kind'] {
  return sumsOutputs(config, stage, experts) ? 'outputs' : 'cross';
}

/** Numbers of one chunk in float32, and in the precision of the products where that is another. */
class ChunkBuffer {
  readonly #stream: Stream;
  readonly #wide: F32;
  readonly #narrow: Float | undefined;

  constructor(
    { stream, device, precision }: DecoderModel,
    shape: readonly [rows: number, columns: number],
    scope: Scope,
  ) {
    this.#stream = stream;
    const label = 'a chunk for the dense targets';
    this.#wide = scope.hold(device.empty('float32', shape, label));
    this.#narrow = precision === 'float32' ? undefined : scope.hold(device.empty(precision, shape, label));
  }

  /** The first rows, in float32; the caller disposes them. */
  rows(count: number): F32 {
    return this.#wide.rows(0, count);
  }

  /** The same, rounded for a product; the caller disposes them. */
  rounded(count: number): Float {
    if (!this.#narrow) return this.rows(count);
    using wide = this.rows(count);
    const narrow = this.#narrow.rows(0, count) as Float;
    this.#stream.copy(wide, narrow);
    return narrow;
  }
}

interface Parts {
  model: DecoderModel;
  /** The calibration windows on their way through the pruned model. */
  pruned: Activations;
  dense: Activations;
  block: Block;
  stage: number;
  target: DenseTarget;
}

/** One device's part of what dense targets need, summed while the inputs of a stage go by, chunk by chunk. */
export class DenseCollector {
  readonly kind: DenseInputs['kind'];
  /** See {@link DenseInputs}. */
  readonly sum: F32;
  readonly #int8: boolean;
  /** Σ (x_p − x_d)(x_p − x_d)ᵀ, float32 [n, n], one triangle; undefined where it is not asked for, or by its diagonal alone. */
  readonly errors: F32 | undefined;
  /** Its diagonal, where that is all; goes with the collector. */
  readonly errorSquares: SquareCollector | undefined;
  readonly #parts: Parts;
  /** What the outputs are to be. */
  readonly #wanted: ChunkBuffer | undefined;
  /** Where the inputs' differences are made, if not in the place of the dense model's inputs. */
  readonly #difference: Float | undefined;
  readonly #scope = new Scope();
  #chunk = 0;

  /**
   * None without a dense model beside, nor for experts, whose tokens are others there.
   * @param how `int8`: whether what comes from the inputs' differences may go by 8-bit integers ({@link Stream.differenceSums}); not where the outputs
   * of attention or of an MLP's inside are multiplied by them, in which single tokens can be far larger than all others
   * @param scope gets the sums, which stay when the collector is disposed
   */
  static of(
    { model, activations: pruned, dense }: Member,
    block: Block,
    stage: number,
    { target, int8 }: { target: DenseTarget | undefined; int8: boolean },
    scope: Scope,
  ): DenseCollector | undefined {
    if (!pruned || !dense || !target || (stage >= 2 && block.router)) return undefined;
    return new DenseCollector({ model, pruned, dense, block, stage, target }, int8, scope);
  }

  private constructor(parts: Parts, int8: boolean, scope: Scope) {
    this.#parts = parts;
    this.#int8 = int8;
    const { model, dense, block, stage, target } = parts;
    const { device, precision, config } = model;
    const { inputs } = block.stages[stage]![0]![0]!;
    const rows = chunkRows(rowsAtOnce(config, device), dense);
    const sumOf = (outputs: number, label: string) => scope.hold(device.tensor('float32', [outputs, inputs], label));
    this.kind = kindOf(config, stage, block.router !== undefined);
    this.sum =
      this.kind === 'outputs'
        ? sumOf(config.hidden, 'the dense outputs against the inputs')
        : sumOf(inputs, 'the pruned inputs against their differences');
    try {
      if (this.kind === 'outputs') this.#wanted = new ChunkBuffer(model, [rows, config.hidden], this.#scope);
      if (target.errorWeight > 0) {
        if (areErrorsSquares(stage))
          this.errorSquares = this.#scope.hold(
            new SquareCollector(model.stream, inputs, 'the squares of the inputs’ errors'),
          );
        else this.errors = sumOf(inputs, 'the inputs’ errors');
      }
      if (areNeededAfterwards(this.kind, stage))
        this.#difference = this.#scope.hold(device.empty(precision, [rows, inputs], 'a chunk of the inputs’ errors'));
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** @param x [tokens, inputs] of the pruned model; the chunks in their order */
  add(x: Float): void {
    const { model, dense, block, stage } = this.#parts;
    const { stream } = model;
    const chunk = this.#chunk++;
    stream.enterPhase('forward');
    using other = dense.chunkInput(block, stage, chunk);
    stream.enterPhase('gram');
    if (this.#wanted) this.#addOutputs(x, { chunk, other }, this.#wanted);
    this.#addDifferences(x, other);
  }

  /** Ŵx_d is what the dense model's residual stream gains on its way through the layer. */
  #addOutputs(x: Float, { chunk, other }: { chunk: number; other: Float }, buffer: ChunkBuffer): void {
    const { model, pruned, dense, block, stage, target } = this.#parts;
    const { stream } = model;
    const { strength, residualStrength } = target;
    const count = x.shape[0]!;
    using wanted = buffer.rows(count);
    using before = dense.chunkResidual(chunk);
    using own = pruned.chunkResidual(chunk);
    stream.copy(before, wanted);
    stream.axpby(own, wanted, -residualStrength, residualStrength - strength);
    stream.enterPhase('forward');
    dense.advanceChunk(block, stage, chunk, other, (after) => {
      stream.enterPhase('gram');
      stream.axpby(after, wanted, strength, 1);
      using factor = buffer.rounded(count);
      stream.gemm(factor, x, this.sum, { transposeA: true, beta: 1 });
      stream.enterPhase('forward');
    });
    stream.enterPhase('gram');
  }

  #addDifferences(x: Float, dense: Float): void {
    const { stream } = this.#parts.model;
    // What is subtracted from may be overwritten.
    using other = (this.#difference ?? dense).rows(0, x.shape[0]!) as Float;
    const restore = () => this.#difference && stream.copy(dense, other);
    const sums = { cross: this.kind === 'cross' ? this.sum : undefined, gram: this.errors };
    if (sums.cross ?? sums.gram) {
      restore();
      stream.differenceSums(x, other, sums, this.#int8 && !this.#difference);
    }
    if (this.errorSquares) {
      restore();
      this.errorSquares.addDifference(x, other);
    }
  }

  dispose(): void {
    this.#scope.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
