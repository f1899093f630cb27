import { setImmediate } from 'node:timers/promises';
import { Scope } from '../../device/tensor.js';
import { AlpsError } from '../../errors.js';
import { Activations } from '../../model/block-run.js';
import type { DecoderModel } from '../../model/decoder.js';
import { eachLogits } from '../../model/head.js';
import type { Tokenizer } from '../../model/tokenizer.js';
import { finiteLoss } from '../perplexity.js';

/** A context and a continuation as token ids. */
export interface TokenPair {
  ids: Uint32Array;
  /** How many of the last ids are scored. */
  scored: number;
}

export interface Likelihood {
  /** Log-likelihood of the continuation after the context, in nats. */
  logLikelihood: number;
  /** Whether each of its tokens is the likeliest one at its place. */
  greedy: boolean;
}

/**
 * Token ids of a pair, as lm-evaluation-harness splits it: spaces at the context's end belong to the continuation, both are encoded as
 * one text, and what is longer than the model takes is cut from the left. An empty context is the token that begins a text, or else the one that ends it;
 * where the continuation begins with that token it is not put there twice.
 */
export function encodePair(
  tokenizer: Tokenizer,
  { context, continuation }: { context: string; continuation: string },
  maxPositions: number,
): TokenPair {
  const trimmed = context.trimEnd();
  const text = tokenizer.encode(context + continuation);
  const beginning = context === '' ? (tokenizer.bosId ?? tokenizer.eosId) : undefined;
  const alone = beginning === undefined ? tokenizer.prefix : beginning === text[0] ? [] : [beginning];
  const whole = [...alone, ...text];
  const before = beginning === undefined ? alone.length + tokenizer.encode(trimmed).length : 1;
  const scored = whole.length - before;
  if (scored < 1) throw new AlpsError('INVALID_TEXT', 'a continuation has no tokens of its own');
  if (before < 1) throw new AlpsError('INVALID_TEXT', 'a context has no tokens');
  const ids = Uint32Array.from(whole.slice(-(maxPositions + 1)));
  return { ids, scored: Math.min(scored, ids.length - 1) };
}

/** Padded tokens that go through the model at once. */
const tokensAtOnce = 1 << 16;

/**
 * Log-likelihoods of continuations. Pairs of like length go through the model together, padded behind, which a causal model does not see.
 */
export async function likelihoods(
  model: DecoderModel,
  pairs: readonly TokenPair[],
  options: { onProgress?: (share: number) => void } = {},
): Promise<Likelihood[]> {
  const order = pairs.map((_, i) => i).sort((a, b) => pairs[b]!.ids.length - pairs[a]!.ids.length || a - b);
  const results = new Array<Likelihood>(pairs.length);
  const total = pairs.reduce((sum, { ids }) => sum + ids.length, 0);
  let done = 0;
  for (let start = 0; start < order.length; ) {
    // The last id is only scored, never fed.
    const length = pairs[order[start]!]!.ids.length - 1;
    let end = start + 1;
    const fits = (i: number) =>
      (i - start + 1) * length <= tokensAtOnce && pairs[order[i]!]!.ids.length - 1 > 0.7 * length;
    while (end < order.length && fits(end)) end++;
    const some = order.slice(start, end);
    const scored = await batchLikelihoods(
      model,
      some.map((i) => pairs[i]!),
      length,
    );
    for (const [j, i] of some.entries()) results[i] = scored[j]!;
    done += some.reduce((sum, i) => sum + pairs[i]!.ids.length, 0);
    options.onProgress?.(done / total);
    start = end;
    await setImmediate();
  }
  return results;
}

async function batchLikelihoods(model: DecoderModel, pairs: TokenPair[], length: number): Promise<Likelihood[]> {
  const { stream, device } = model;
  const tokens = new Uint32Array(pairs.length * length);
  const rows: number[] = [];
  const targets: number[] = [];
  for (const [i, { ids, scored }] of pairs.entries()) {
    tokens.set(ids.subarray(0, ids.length - 1), i * length);
    for (let at = ids.length - scored; at < ids.length; at++) {
      rows.push(i * length + at - 1);
      targets.push(ids[at]!);
    }
  }
  using scope = new Scope();
  const activations = scope.hold(await Activations.create(model, { tokens, windows: pairs.length, length }));
  await activations.runAll();
  const ids = scope.hold(stream.upload('uint32', [targets.length], Uint32Array.from(targets)));
  const losses = scope.hold(device.tensor('float64', [targets.length]));
  const likeliest = scope.hold(device.tensor('uint32', [targets.length, 1]));
  const weights = scope.hold(device.tensor('float32', [targets.length, 1]));
  await eachLogits(
    model,
    activations,
    (logits, first) => {
      using piece = new Scope();
      const end = first + logits.shape[0]!;
      stream.crossEntropy(logits, piece.hold(ids.rows(first, end)), piece.hold(losses.rows(first, end)));
      stream.topExperts(logits, piece.hold(likeliest.rows(first, end)), piece.hold(weights.rows(first, end)), true);
    },
    Uint32Array.from(rows),
  );
  const [nll, best] = await Promise.all([stream.read(losses), stream.read(likeliest)]);
  let at = 0;
  const scores = pairs.map(({ scored }) => {
    let [logLikelihood, greedy] = [0, true];
    for (let j = 0; j < scored; j++, at++) {
      logLikelihood -= nll[at]!;
      greedy &&= best[at] === targets[at];
    }
    return { logLikelihood, greedy };
  });
  await finiteLoss(
    model,
    scores.reduce((sum, { logLikelihood }) => sum + logLikelihood, 0),
  );
  return scores;
}
