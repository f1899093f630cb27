import { Scope } from './device/tensor.js';
import type { Member } from './members.js';
import type { Block } from './model/block.js';
import type { Activations } from './model/block-run.js';
import type { DecoderModel, F32, Float } from './model/decoder.js';
import { chunkRows } from './model/memory.js';
import type { DenseInputs, DenseTarget } from './pruning/dense-target.js';

/**
 * Whether dense targets sum a stage's outputs, where its layer adds to the residual stream as it is: {@link DenseCollector} then takes the dense
 * model through the stage. Not behind a norm of its own, where what a layer adds is not linear in its weights, nor for experts.
 */
export function sumsOutputs({ config }: DecoderModel, block: Block, stage: number): boolean {
  return (stage === 1 || (stage === 3 && !block.router)) && config.normPlacement !== 'sandwich';
}

/** Sums one device's part of what dense targets need while the inputs of a stage go by, chunk by chunk. */
export class DenseCollector {
  readonly seen: DenseInputs;
  readonly #model: DecoderModel;
  readonly #pruned: Activations;
  readonly #dense: Activations;
  readonly #block: Block;
  readonly #stage: number;
  readonly #target: DenseTarget;
  /** What the outputs of a chunk are to be; once more in the products' precision, where that is another. */
  readonly #wanted: F32 | undefined;
  readonly #factor: Float | undefined;
  readonly #scope = new Scope();
  #chunk = 0;

  /**
   * None without a dense model beside, nor for experts, whose tokens are others there.
   * @param scope gets the sum, which stays when the collector is disposed
   */
  static of(
    { model, activations, dense }: Member,
    block: Block,
    stage: number,
    target: DenseTarget | undefined,
    scope: Scope,
  ): DenseCollector | undefined {
    if (!activations || !dense || !target || (stage >= 2 && block.router)) return undefined;
    return new DenseCollector({ model, pruned: activations, dense }, block, stage, target, scope);
  }

  private constructor(
    { model, pruned, dense }: { model: DecoderModel; pruned: Activations; dense: Activations },
    block: Block,
    stage: number,
    target: DenseTarget,
    scope: Scope,
  ) {
    this.#model = model;
    this.#pruned = pruned;
    this.#dense = dense;
    this.#block = block;
    this.#stage = stage;
    this.#target = target;
    const { device, precision, config } = model;
    const { inputs } = block.stages[stage]![0]![0]!;
    const { strength } = target;
    const sumOf = (rows: number, label: string) => scope.hold(device.tensor('float32', [rows, inputs], label));
    if (!sumsOutputs(model, block, stage)) {
      this.seen = { kind: 'cross', sum: sumOf(inputs, 'the pruned inputs against the dense ones'), strength };
      return;
    }
    this.seen = { kind: 'outputs', sum: sumOf(config.hidden, 'the dense outputs against the inputs'), strength };
    try {
      const shape = [chunkRows(dense), config.hidden];
      this.#wanted = this.#scope.hold(device.tensor('float32', shape, 'what the outputs are to be'));
      this.#factor =
        precision === 'float32'
          ? this.#wanted
          : this.#scope.hold(device.tensor(precision, shape, 'what the outputs are to be'));
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** @param x [tokens, inputs] of the pruned model; the chunks in their order */
  add(x: Float): void {
    const chunk = this.#chunk++;
    if (this.#wanted && this.#factor) {
      using wanted = this.#wanted.rows(0, x.shape[0]!);
      using factor = this.#factor.rows(0, x.shape[0]!) as Float;
      this.#addOutputs(x, chunk, wanted, factor);
    } else {
      using other = this.#dense.chunkInput(this.#block, this.#stage, chunk);
      this.#model.stream.gemm(x, other, this.seen.sum, { transposeA: true, beta: 1 });
    }
  }

  /** Ŵx_d is what the dense model's residual stream gains on its way through the layer. */
  #addOutputs(x: Float, chunk: number, wanted: F32, factor: Float): void {
    const { stream } = this.#model;
    const { strength, residualStrength } = this.#target;
    using before = this.#dense.chunkResidual(chunk);
    using pruned = this.#pruned.chunkResidual(chunk);
    stream.copy(before, wanted);
    stream.axpby(pruned, wanted, -residualStrength, residualStrength - strength);
    stream.enterPhase('forward');
    this.#dense.advanceChunk(this.#block, this.#stage, chunk, (after) => {
      stream.enterPhase('gram');
      stream.axpby(after, wanted, strength, 1);
      if (this.#factor !== this.#wanted) stream.copy(wanted, factor);
      stream.gemm(factor, x, this.seen.sum, { transposeA: true, beta: 1 });
      stream.enterPhase('forward');
    });
    stream.enterPhase('gram');
  }

  dispose(): void {
    this.#scope.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
