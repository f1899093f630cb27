import { Scope } from '../device/tensor.js';
import { Activations, type Windows } from '../model/block-run.js';
import type { DecoderModel, F32 } from '../model/decoder.js';
import { Head, rowsAtOnce } from '../model/head.js';
import { finiteLoss } from './perplexity.js';

/** A model and its residual stream behind the last block, float32 [tokens, hidden]. */
export interface Behind {
  model: DecoderModel;
  residual: F32;
}

/** Runs a model; the residual is the caller's to dispose. */
export async function runBehind(model: DecoderModel, windows: Windows): Promise<Behind> {
  using activations = await Activations.create(model, windows);
  await activations.runAll();
  const { device, stream } = model;
  const residual = device.tensor('float32', activations.residual.shape, 'a residual stream behind the last block');
  try {
    stream.copy(activations.residual, residual);
    await stream.sync();
  } catch (error) {
    residual.dispose();
    throw error;
  }
  return { model, residual };
}

/**
 * KL(reference ‖ model) of the next token's distribution, in nats, mean over all tokens, for each of several residual streams behind the last block.
 * @param reference, model two models with the same head; their final norms may differ
 * @throws AlpsError `NOT_FINITE`
 */
export async function meanDivergences(
  reference: Behind,
  model: DecoderModel,
  residuals: readonly F32[],
): Promise<number[]> {
  const read = await tokenDivergences(reference, model, residuals);
  const means = read.map((values) => values.reduce((sum, value) => sum + value, 0) / values.length);
  return await Promise.all(means.map((mean) => finiteLoss(model, mean)));
}

/** The same for each token. */
export async function tokenDivergences(
  reference: Behind,
  model: DecoderModel,
  residuals: readonly F32[],
): Promise<Float64Array[]> {
  const { stream, device, config } = model;
  const tokens = reference.residual.shape[0]!;
  const most = rowsAtOnce(model, tokens, 2);
  using scope = new Scope();
  const head = scope.hold(await Head.load(model, most));
  const referenceNorm = await reference.model.loadNorm(reference.model.architecture.finalNorm, scope);
  const logits = () => scope.hold(device.tensor('float32', [most, config.vocabulary], 'the logits'));
  const [p, q] = [logits(), logits()];
  const divergences = residuals.map(() => scope.hold(device.tensor('float64', [tokens])));
  for (let start = 0; start < tokens; start += most) {
    using piece = new Scope();
    const end = Math.min(start + most, tokens);
    const [a, b] = [piece.hold(p.rows(0, end - start)), piece.hold(q.rows(0, end - start))];
    head.apply(piece.hold(reference.residual.rows(start, end)), a, referenceNorm);
    for (const [i, residual] of residuals.entries()) {
      head.apply(piece.hold(residual.rows(start, end)), b);
      stream.divergence(a, b, piece.hold(divergences[i]!.rows(start, end)));
    }
    await stream.sync();
  }
  return await Promise.all(divergences.map((one) => stream.read(one)));
}
