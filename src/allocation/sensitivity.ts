import type { Stream } from '../device/stream.js';
import { Scope } from '../device/tensor.js';
import { meanDivergences, runBehind } from '../evaluation/divergence.js';
import { Activations, type Windows } from '../model/block-run.js';
import type { DecoderModel, F32, Float } from '../model/decoder.js';
import { byUnit } from './units.js';

/**
 * KL(base ‖ base with one unit's layers taken from `next`), in nats a token, block after block: by unit, for each block from `first` on. The
 * residual stream in front of a block is kept, so only the blocks from it on are run; each of these is read once for all units.
 * @param base, next on one stream
 */
export async function* unitDivergences(
  base: DecoderModel,
  next: DecoderModel,
  windows: Windows,
  first: number,
): AsyncGenerator<number[]> {
  const { stream, device, config } = base;
  using scope = new Scope();
  const reference = await runBehind(base, windows);
  scope.hold(reference.residual);
  const activations = scope.hold(await Activations.create(base, windows));
  const { residual } = activations;
  const copyIn = (owner: Scope) =>
    owner.hold(device.tensor('float32', residual.shape, 'the residual stream of one unit'));
  const front = copyIn(scope);
  for (let layer = 0; layer < config.layers; layer++) {
    using copies = new Scope();
    const behind: F32[] = [];
    {
      using blocks = new Scope();
      const block = blocks.hold(await base.loadBlock(layer));
      if (layer < first) {
        await activations.run(block);
        continue;
      }
      const other = blocks.hold(await next.loadBlock(layer));
      stream.copy(residual, front);
      const [units, others] = [byUnit(block.stages), byUnit(other.stages)];
      for (const [unit, linears] of units.entries()) {
        const swap = () => {
          for (const [i, { weight }] of linears.entries()) exchange(stream, weight, others[unit]![i]!.weight);
        };
        swap();
        stream.copy(front, residual);
        await activations.run(block);
        const copy = copyIn(copies);
        stream.copy(residual, copy);
        behind.push(copy);
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
    const divergences = await meanDivergences(reference, base, behind);
    stream.copy(front, residual);
    yield divergences;
  }
}

function exchange(stream: Stream, a: Float, b: Float): void {
  using held = stream.device.tensor(a.dtype, a.shape, 'the weights of one layer');
  stream.copy(a, held);
  stream.copy(b, a);
  stream.copy(held, b);
}
