import { createHash } from 'node:crypto';
import { AlpsError, invalidArgument } from '../errors.js';
import type { Windows } from '../model/block-run.js';

/** Windows of tokens and where they come from. */
export interface TokenWindows extends Windows {
  /** SHA-256 of the token ids, little-endian 32-bit, hexadecimal. */
  hash: string;
  /** Whether they were given as token ids, so that no protocol made them. */
  given?: true;
  /** What differs from what was asked for, in words. */
  note?: string;
}

/** The largest seed. */
export const mostSeed = 2 ** 32 - 1;

/** Uniform numbers in [0, 1), the same for the same seed (mulberry32). */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Windows shorter than this teach nothing about a layer. */
const shortestWindow = 16;

/**
 * Chooses `windows` of the consecutive windows of a token stream, each equally likely (reservoir sampling), in the stream's order. The same
 * stream and seed give the same windows; memory is that of the chosen ones.
 *
 * @param maxTokens the stream is not read further
 * @throws AlpsError `INVALID_TEXT` when there are fewer than 16 tokens
 */
export async function sampleWindows(
  ids: AsyncIterable<Uint32Array>,
  options: { windows: number; length: number; seed: number; maxTokens: number },
): Promise<TokenWindows> {
  const { windows, length, seed, maxTokens } = options;
  const random = randomNumbers(seed);
  const chosen: { index: number; tokens: Uint32Array }[] = [];
  let seen = 0;
  let window = new Uint32Array(length);
  let filled = 0;
  for await (const piece of ids) {
    for (let at = 0; at < piece.length; ) {
      const count = Math.min(length - filled, piece.length - at);
      window.set(piece.subarray(at, at + count), filled);
      filled += count;
      at += count;
      if (filled < length) continue;
      if (chosen.length < windows) chosen.push({ index: seen, tokens: window });
      else {
        const place = Math.floor(random() * (seen + 1));
        if (place < windows) chosen[place] = { index: seen, tokens: window };
      }
      seen++;
      window = new Uint32Array(length);
      filled = 0;
    }
    if ((seen + 1) * length > maxTokens) break;
  }
  if (seen > 0) {
    chosen.sort((a, b) => a.index - b.index);
    const note = seen < windows ? `the text gives ${seen} windows of ${length} tokens, not ${windows}` : undefined;
    return join(
      chosen.map(({ tokens }) => tokens),
      length,
      note,
    );
  }
  if (filled < shortestWindow) {
    throw new AlpsError(
      'INVALID_TEXT',
      `The calibration text has ${filled} tokens; at least ${shortestWindow} are needed, and ${length} for one window`,
    );
  }
  return join(
    [window.slice(0, filled)],
    filled,
    `the text gives one window of ${filled} tokens, not ${windows} of ${length}`,
  );
}

/** All consecutive windows of a token stream, at most `windows`. */
export async function consecutiveWindows(
  ids: AsyncIterable<Uint32Array>,
  options: { length: number; windows?: number; maxTokens: number },
): Promise<TokenWindows> {
  const pieces: Uint32Array[] = [];
  let total = 0;
  for await (const piece of ids) {
    pieces.push(piece);
    total += piece.length;
    if (options.windows !== undefined && total >= options.windows * options.length) break;
    if (total > options.maxTokens) {
      throw new AlpsError(
        'INVALID_TEXT',
        `The text has more than ${options.maxTokens} tokens; ask for a number of windows`,
      );
    }
  }
  if (total < 2)
    throw new AlpsError('INVALID_TEXT', `The text has ${total} tokens; at least 2 are needed to score one`);
  const length = Math.min(options.length, total);
  const note = length < options.length ? `the text has only ${total} tokens: one window of ${length}` : undefined;
  const count = Math.min(Math.floor(total / length), options.windows ?? Number.POSITIVE_INFINITY);
  const all = new Uint32Array(total);
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return join(eachWindow({ tokens: all, windows: count, length }), length, note);
}

/** Windows of `length` ids each, one behind the other. */
export function join(parts: readonly Uint32Array[], length: number, note?: string): TokenWindows {
  const tokens = new Uint32Array(parts.length * length);
  for (const [i, part] of parts.entries()) tokens.set(part, i * length);
  const hash = createHash('sha256').update(new Uint8Array(tokens.buffer)).digest('hex');
  return { tokens, windows: parts.length, length, hash, ...(note ? { note } : {}) };
}

/** The ids of each window, in place. */
export function eachWindow({ tokens, windows, length }: Windows): Uint32Array<ArrayBuffer>[] {
  return Array.from({ length: windows }, (_, i) => tokens.subarray(i * length, (i + 1) * length));
}

/** Windows of one length from several texts, one behind the other. */
export function joinWindows(parts: readonly TokenWindows[]): TokenWindows {
  const [{ length }] = parts as [TokenWindows];
  const notes = [...new Set(parts.flatMap(({ note }) => note ?? []))];
  return join(parts.flatMap(eachWindow), length, notes.length > 0 ? notes.join('; ') : undefined);
}

/**
 * Windows of those that were given as token ids, at most as many as are asked for: the first, or those behind the first `behind`. Where not even
 * `least` are behind these, the first after all.
 * @param name of them, for the note
 */
export function firstWindows(
  all: TokenWindows,
  count: number,
  name: string,
  { behind = 0, least = 1 }: { behind?: number | undefined; least?: number } = {},
): TokenWindows {
  const left = Math.max(0, all.windows - behind);
  const again = behind > 0 && left < least;
  const windows = eachWindow(all)
    .slice(again ? 0 : behind)
    .slice(0, count);
  const has = `${name} has ${again || behind === 0 ? all.windows : left} windows`;
  const besides = 'besides those that the model is pruned with';
  const fewer = behind === 0 ? `${has}, not ${count}` : `${has} ${besides}, not ${count}`;
  const reused = `${name} has ${left === 0 ? 'no' : 'too few'} windows ${besides}, so these measure the candidates as well`;
  const note = again ? reused : windows.length < count ? fewer : undefined;
  return { ...join(windows, all.length, note), given: true };
}

/** The first tokens of each window, at most `length`. */
export function shortened(all: TokenWindows, length: number): TokenWindows {
  if (all.length <= length) return all;
  const parts = eachWindow(all).map((window) => window.subarray(0, length));
  return join(parts, length, all.note);
}

/** The length of windows given as token ids: that of all of them. */
export function lengthOfWindows(ids: unknown, name: string): number {
  if (!Array.isArray(ids) || ids.length === 0) throw invalidArgument(name, 'a list of windows of token ids', ids);
  const lengthOf = (window: unknown) =>
    Array.isArray(window) || ArrayBuffer.isView(window) ? (window as { length?: number }).length : undefined;
  const length = lengthOf(ids[0]) ?? 0;
  for (const [i, window] of ids.entries()) {
    const own = lengthOf(window);
    if (own === length && length >= 2) continue;
    throw new AlpsError(
      'INVALID_TEXT',
      `${name}: window ${i} has ${own ?? 'no'} token ids; all windows must have the same number, at least 2`,
    );
  }
  return length;
}

/** Windows given as token ids: all of one length, every id below the vocabulary. */
export function windowsOfIds(ids: unknown, vocabulary: number, name: string): TokenWindows {
  const length = lengthOfWindows(ids, name);
  const parts = (ids as ArrayLike<number>[]).map((window, i) => {
    const list = Array.from(window);
    for (const id of list) {
      if (!Number.isInteger(id) || id < 0 || id >= vocabulary) {
        throw new AlpsError(
          'INVALID_TEXT',
          `${name}: window ${i} has the token id ${id}; the model's vocabulary has ${vocabulary}`,
        );
      }
    }
    return Uint32Array.from(list);
  });
  return { ...join(parts, length), given: true };
}
