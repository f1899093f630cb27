import { Scope } from './device/tensor.js';
import type { Member } from './members.js';
import type { Block } from './model/block.js';
import type { F32, Float } from './model/decoder.js';

export const crossLabel = 'the pruned inputs against the dense ones';
export const residualLabel = 'the inputs against the residual’s difference';

/** Sums one device's part of what dense targets need while the inputs of a stage go by, chunk by chunk. */
export class DenseCollector {
  /** X_pᵀ X_d */
  readonly cross: F32;
  /** X_pᵀ (h_d − h_p) where the stage's outputs are added to the residual stream as they are. */
  readonly residual: F32 | undefined;
  readonly #member: Member;
  readonly #block: Block;
  readonly #stage: number;
  #chunk = 0;

  /**
   * None without a dense model beside, nor for experts, whose tokens are others there.
   * @param scope gets the sums
   */
  static of(member: Member, block: Block, stage: number, scope: Scope): DenseCollector | undefined {
    if (!member.dense || (stage >= 2 && block.router)) return undefined;
    return new DenseCollector(member, block, stage, scope);
  }

  private constructor(member: Member, block: Block, stage: number, scope: Scope) {
    this.#member = member;
    this.#block = block;
    this.#stage = stage;
    const { device, config } = member.model;
    const { inputs } = block.stages[stage]![0]![0]!;
    this.cross = scope.hold(device.tensor('float32', [inputs, inputs], crossLabel));
    // Behind a norm of its own, what a layer adds to the residual stream is not linear in its weights.
    const adds = (stage === 1 || stage === 3) && config.normPlacement !== 'sandwich';
    this.residual = adds ? scope.hold(device.tensor('float32', [inputs, config.hidden], residualLabel)) : undefined;
  }

  /** @param x [tokens, inputs] of the pruned model; the chunks in their order */
  add(x: Float): void {
    const { model, activations, dense } = this.#member;
    const { stream, device, precision } = model;
    const chunk = this.#chunk++;
    using piece = new Scope();
    const other = piece.hold(dense!.chunkInput(this.#block, this.#stage, chunk));
    stream.gemm(x, other, this.cross, { transposeA: true, beta: 1 });
    if (!this.residual) return;
    const h = piece.hold(dense!.chunkResidual(chunk));
    const difference = piece.hold(device.tensor('float32', h.shape, 'the residual’s difference'));
    stream.copy(h, difference);
    stream.axpby(piece.hold(activations!.chunkResidual(chunk)), difference, -1, 1);
    let factor: Float = difference;
    if (precision !== 'float32') {
      factor = piece.hold(device.tensor(precision, h.shape, 'the residual’s difference'));
      stream.copy(difference, factor);
    }
    stream.gemm(x, factor, this.residual, { transposeA: true, beta: 1 });
  }
}
