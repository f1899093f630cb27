import { setImmediate } from 'node:timers/promises';
import { Scope } from '../device/tensor.js';
import type { DecoderModel, F32 } from '../model/decoder.js';
import { Head, rowsAtOnce } from '../model/head.js';
import { finiteLoss } from './perplexity.js';

/** Logits that are looked at without a pause: some milliseconds. */
const logitsAtOnce = 1 << 18;

/** A model and its residual stream behind the last block, float32 [tokens, hidden]. */
export interface Behind {
  model: DecoderModel;
  residual: F32;
}

/**
 * KL(dense ‖ pruned) of the next token's distribution, in nats, mean over all tokens.
 * @param dense, pruned two models with the same head; their final norms may differ
 * @throws AlpsError `NOT_FINITE`
 */
export async function meanDivergence(dense: Behind, pruned: Behind): Promise<number> {
  const { model } = pruned;
  const { stream, device, config } = model;
  const { vocabulary } = config;
  const tokens = dense.residual.shape[0]!;
  const most = rowsAtOnce(model, tokens, 2);
  using scope = new Scope();
  const head = scope.hold(await Head.load(model, most));
  const denseNorm = await dense.model.loadNorm(dense.model.architecture.finalNorm, scope);
  const first = scope.hold(stream.upload('uint32', [most], new Uint32Array(most)));
  const buffers = [0, 1].map(() => ({
    logits: scope.hold(device.tensor('float32', [most, vocabulary], 'the logits')),
    losses: scope.hold(device.tensor('float64', [most])),
  }));
  let sum = 0;
  for (let start = 0; start < tokens; start += most) {
    using piece = new Scope();
    const count = Math.min(most, tokens - start);
    const read = async ({ residual }: Behind, which: number) => {
      const { logits, losses } = buffers[which]!;
      const z = piece.hold(logits.rows(0, count));
      const loss = piece.hold(losses.rows(0, count));
      head.apply(piece.hold(residual.rows(start, start + count)), z, which === 0 ? denseNorm : undefined);
      stream.crossEntropy(z, piece.hold(first.rows(0, count)), loss); // of logit 0
      const values = await stream.read(z);
      const logSums = (await stream.read(loss)).map((value, row) => value + values[row * vocabulary]!);
      return { values, logSums };
    };
    const [p, q] = [await read(dense, 0), await read(pruned, 1)];
    for (let row = 0, since = 0; row < count; row++, since += vocabulary) {
      if (since >= logitsAtOnce) {
        since = 0;
        await setImmediate();
      }
      const logSum = p.logSums[row]!;
      sum += q.logSums[row]! - logSum;
      for (let i = row * vocabulary; i < (row + 1) * vocabulary; i++)
        sum += Math.exp(p.values[i]! - logSum) * (p.values[i]! - q.values[i]!);
    }
  }
  return finiteLoss(model, sum / tokens);
}
