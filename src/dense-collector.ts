import { Scope } from './device/tensor.js';
import type { Member } from './members.js';
import type { Block } from './model/block.js';
import type { Activations } from './model/block-run.js';
import type { DecoderModel, F32, Float } from './model/decoder.js';
import type { DenseInputs, DenseTarget } from './pruning/dense-target.js';

/**
 * Whether what dense targets need of a stage is summed while the dense model goes through it (its layer adds to the residual stream as
 * it is): {@link DenseCollector} then advances the dense model itself.
 */
export function addsToResidual({ config }: DecoderModel, block: Block, stage: number): boolean {
  // Behind a norm of its own, what a layer adds is not linear in its weights.
  return (stage === 1 || (stage === 3 && !block.router)) && config.normPlacement !== 'sandwich';
}

/** Sums one device's part of what dense targets need while the inputs of a stage go by, chunk by chunk. */
export class DenseCollector {
  readonly kind: DenseInputs['kind'];
  /** See {@link DenseInputs}. */
  readonly sum: F32;
  readonly #model: DecoderModel;
  readonly #pruned: Activations;
  readonly #dense: Activations;
  readonly #block: Block;
  readonly #stage: number;
  readonly #target: DenseTarget;
  #chunk = 0;

  /**
   * None without a dense model beside, nor for experts, whose tokens are others there.
   * @param scope gets the sums
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
    this.kind = addsToResidual(model, block, stage) ? 'outputs' : 'cross';
    const { inputs } = block.stages[stage]![0]![0]!;
    this.sum =
      this.kind === 'outputs'
        ? scope.hold(
            model.device.tensor('float32', [model.config.hidden, inputs], 'the dense outputs against the inputs'),
          )
        : scope.hold(model.device.tensor('float32', [inputs, inputs], 'the pruned inputs against the dense ones'));
  }

  /** @param x [tokens, inputs] of the pruned model; the chunks in their order */
  add(x: Float): void {
    const chunk = this.#chunk++;
    if (this.kind === 'outputs') this.#addOutputs(x, chunk);
    else {
      using other = this.#dense.chunkInput(this.#block, this.#stage, chunk);
      this.#model.stream.gemm(x, other, this.sum, { transposeA: true, beta: 1 });
    }
  }

  /** α Ŵx_d is what the dense model's residual stream gains on its way through the stage. */
  #addOutputs(x: Float, chunk: number): void {
    const { stream, device, precision, config } = this.#model;
    const { strength, residualStrength } = this.#target;
    using scope = new Scope();
    const before = scope.hold(this.#dense.chunkResidual(chunk));
    const wanted = scope.hold(device.tensor('float32', [x.shape[0]!, config.hidden], 'what the outputs are to be'));
    stream.copy(before, wanted);
    stream.axpby(scope.hold(this.#pruned.chunkResidual(chunk)), wanted, -residualStrength, residualStrength - strength);
    stream.enterPhase('forward');
    this.#dense.advanceChunk(this.#block, this.#stage, chunk, (after) => {
      stream.enterPhase('gram');
      stream.axpby(after, wanted, strength, 1);
      let factor: Float = wanted;
      if (precision !== 'float32') {
        factor = scope.hold(device.tensor(precision, wanted.shape, 'what the outputs are to be'));
        stream.copy(wanted, factor);
      }
      stream.gemm(factor, x, this.sum, { transposeA: true, beta: 1 });
      stream.enterPhase('forward');
    });
    stream.enterPhase('gram');
  }
}
