import { Scope } from '../device/tensor.js';
import { AlpsError } from '../errors.js';
import { Activations, type Windows } from '../model/block-run.js';
import type { DecoderModel } from '../model/decoder.js';
import { eachLogits } from '../model/head.js';

export interface Perplexity {
  /** exp of the mean negative log-likelihood of the scored tokens. */
  perplexity: number;
  /** Mean negative log-likelihood, in nats per token. */
  meanNll: number;
  windows: number;
  /** Tokens per window; all except the first are scored. */
  length: number;
  scoredTokens: number;
}

/**
 * Perplexity of token windows that do not overlap: length − 1 tokens are scored in each.
 * Blocks are read one after the other, so memory is one block, the residual stream and a piece of the logits.
 *
 * @param onBlock called after each block with the share of the work done
 * @throws AlpsError `NOT_FINITE` when the model's outputs are
 */
export async function perplexity(
  model: DecoderModel,
  input: Windows,
  options: { onBlock?: (share: number) => void } = {},
): Promise<Perplexity> {
  const steps = model.config.layers + 1;
  using activations = await Activations.create(model, input);
  await activations.runAll((layer) => options.onBlock?.((layer + 1) / steps));
  const meanNll = await meanTokenLoss(activations, input);
  options.onBlock?.(1);
  const { windows, length } = input;
  return { perplexity: Math.exp(meanNll), meanNll, windows, length, scoredTokens: windows * (length - 1) };
}

/**
 * Mean negative log-likelihood, in nats, of all tokens of the windows but each one's first.
 * @param activations behind the last block
 * @throws AlpsError `NOT_FINITE`
 */
export async function meanTokenLoss(activations: Activations, input: Windows): Promise<number> {
  const nll = await tokenLosses(activations, input);
  let sum = 0;
  for (let i = 0; i < nll.length; i++) if ((i + 1) % input.length !== 0) sum += nll[i]!;
  return finiteLoss(activations.model, sum / (input.windows * (input.length - 1)));
}

/** @throws AlpsError `NOT_FINITE` when the model's outputs are, as a sum or mean of losses shows */
export async function finiteLoss({ stream, checkpoint }: DecoderModel, mean: number): Promise<number> {
  if (Number.isFinite(mean)) return mean;
  await stream.sync();
  throw new AlpsError('NOT_FINITE', `The model in ${checkpoint.folder} gives NaN or infinite outputs`);
}

/** The token after each one; the last of a window has none and gets any. */
function shiftedTargets({ tokens }: Windows): Uint32Array<ArrayBuffer> {
  const targets = new Uint32Array(tokens.length);
  targets.set(tokens.subarray(1));
  return targets;
}

/**
 * The negative log-likelihood, in nats, of the token behind each one; at the last one of a window it is of any token.
 * @param activations behind the last block
 */
export async function tokenLosses(activations: Activations, input: Windows): Promise<Float64Array> {
  const { model } = activations;
  const targets = shiftedTargets(input);
  const { stream, device } = model;
  using scope = new Scope();
  const ids = scope.hold(stream.upload('uint32', [targets.length], targets));
  const losses = scope.hold(device.tensor('float64', [targets.length]));
  await eachLogits(model, activations, (logits, first) => {
    const end = first + logits.shape[0]!;
    using target = ids.rows(first, end);
    using out = losses.rows(first, end);
    stream.crossEntropy(logits, target, out);
  });
  return await stream.read(losses);
}
