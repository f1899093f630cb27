import type { Stream } from '../device/stream.js';
import { Scope } from '../device/tensor.js';
import { stageCount } from '../model/block.js';
import { Activations } from '../model/block-run.js';
import type { DecoderModel, Float } from '../model/decoder.js';
import type { WindowLoss } from './search-windows.js';

/**
 * The loss of `base` with one unit's layers taken from `next`, block after block: by stage, for each block from `first` on. The residual stream in
 * front of a block is kept, so only the blocks from it on are run; each of these is read once for all stages.
 * @param base, next on one stream
 */
export async function* unitLosses(
  base: DecoderModel,
  next: DecoderModel,
  loss: WindowLoss,
  first: number,
): AsyncGenerator<number[]> {
  const { stream, device, config } = base;
  using scope = new Scope();
  const activations = scope.hold(await Activations.create(base, loss.windows));
  const { residual } = activations;
  const copyOf = () => scope.hold(device.tensor('float32', residual.shape, 'the residual stream of one unit'));
  const front = copyOf();
  const behind = Array.from({ length: stageCount }, copyOf);
  for (let layer = 0; layer < config.layers; layer++) {
    {
      using blocks = new Scope();
      const block = blocks.hold(await base.loadBlock(layer));
      if (layer < first) {
        await activations.run(block);
        continue;
      }
      const other = blocks.hold(await next.loadBlock(layer));
      stream.copy(residual, front);
      for (const [stage, groups] of block.stages.entries()) {
        const swap = () => {
          const from = other.stages[stage]!.flat();
          for (const [i, { weight }] of groups.flat().entries()) exchange(stream, weight, from[i]!.weight);
        };
        swap();
        stream.copy(front, residual);
        await activations.run(block);
        stream.copy(residual, behind[stage]!);
        swap();
      }
      stream.copy(front, residual);
      await activations.run(block);
      stream.copy(residual, front);
    }
    for (let later = layer + 1; later < config.layers; later++) {
      using blocks = new Scope();
      const block = blocks.hold(await base.loadBlock(later));
      for (const h of behind) {
        stream.copy(h, residual);
        await activations.run(block);
        stream.copy(residual, h);
      }
    }
    const losses: number[] = [];
    for (const h of behind) {
      stream.copy(h, residual);
      losses.push(await loss.behind(activations));
    }
    stream.copy(front, residual);
    yield losses;
  }
}

function exchange(stream: Stream, a: Float, b: Float): void {
  using held = stream.device.tensor(a.dtype, a.shape, 'the weights of one layer');
  stream.copy(a, held);
  stream.copy(b, a);
  stream.copy(held, b);
}
