import { flatten, type Json, type TokenizerFiles } from './tokenizer-json.js';

/** Pieces have about this many UTF-16 units: a few milliseconds of work each. */
const PIECE = 8 * 1024;
/** Without any safe place in this many units the text is cut anyway, so that memory and time stay bounded. */
export const LONGEST_PIECE = 16 * 1024;

/** Characters that may follow a letter or digit at a cut: none of them stands in one word with it. */
const CANDIDATES = ' \n\r\t.,;:!?\u3001\u3002\uFF01\uFF0C\uFF1A\uFF1B\uFF1F';

/**
 * Where a text may be cut so that encoding the pieces gives the ids of the whole: between a letter or digit and one of `chars`.
 *
 * Why that is exact: the splitting patterns of GPT-2, Llama 3, Qwen and o200k have no alternative that takes a letter
 * or digit and such a character after it, none looks behind, and the only look-ahead, `\s+(?!\S)`, ends in white space. So a
 * match always ends at the cut, the next one starts there, and byte pairs are merged within matches only.
 */
export interface Cuts {
  /** Characters after the cut; empty when no place is known to be safe. */
  chars: string;
  /** The tokenizer puts a space before every text, so the space after the cut is left out of the next piece. */
  dropSpace: boolean;
  /** Then no cut where one of these follows the space: an added token may start there, and no space is put before those. */
  kept: string;
}

/** Finds the safe cuts of a tokenizer; every candidate must also pass a trial with `encode`. */
export function findCuts(files: TokenizerFiles, encode: (text: string) => number[]): Cuts {
  const normalizers = flatten(files.tokenizer.normalizer as Json | null, 'normalizers');
  const splits = flatten(files.tokenizer.pre_tokenizer as Json | null, 'pretokenizers');
  const prepends = normalizers.some(({ type }) => type === 'Prepend');
  const metaspace = splits.some(({ type }) => type === 'Metaspace');
  const none = { chars: '', dropSpace: prepends, kept: '' };

  const prefixed = splits.some(({ type, add_prefix_space }) => type === 'ByteLevel' && add_prefix_space === true);
  if (!splits.some(({ type, use_regex }) => type === 'Split' || (type === 'ByteLevel' && use_regex !== false)))
    return none;
  const harmless = ({ type, pattern }: Json) =>
    ['NFC', 'NFD', 'NFKC', 'NFKD', 'Lowercase', 'Prepend'].includes(String(type)) ||
    (type === 'Replace' && (pattern as { String?: string }).String?.length === 1);
  if (!normalizers.every(harmless)) return none;

  const added = files.tokenizer.added_tokens.map(
    (token) => ({ ...token, content: String(token.content) }) as Json & { content: string },
  );
  if (added.some(({ content, rstrip }) => rstrip && /[\p{L}\p{N}]$/u.test(content))) return none;

  const spaceOnly = prepends || prefixed || metaspace;
  const chars = [...(spaceOnly ? ' ' : CANDIDATES)].filter(
    (char) =>
      !added.some(({ content }) => content.match(/[\p{L}\p{N}][^\p{L}\p{N}]/gu)?.some((pair) => pair.endsWith(char))) &&
      trial(char, prepends, encode),
  );
  const kept = prepends ? added.map(({ content }) => content.charAt(0).replace('\u2581', ' \u2581')).join('') : '';
  return { chars: chars.join(''), dropSpace: prepends, kept };
}

function trial(char: string, dropSpace: boolean, encode: (text: string) => number[]): boolean {
  const before = ['word', " Don't", '1a', ' 12', '\n\u5B57', 'x \u00E9'];
  const after = dropSpace
    ? ['word', '12', "a's", '\u5B57', ' word', '   1', '\nx']
    : ['word', ' word', `${char}Word`, '1', "'s", '\n\nx', '\u5B57', ''];
  return before.every((left) =>
    after.every((right) => {
      const whole = encode(left + char + right);
      const parts = [...encode(left), ...encode(dropSpace ? right : char + right)];
      return whole.length === parts.length && whole.every((id, index) => id === parts[index]);
    }),
  );
}

/**
 * The end of the piece that starts at `start`, or undefined while more text is needed to tell.
 * It depends on the text after `start` alone, not on how the text arrived.
 */
export function nextCut(text: string, start: number, isLast: boolean, cuts: Cuts): number | undefined {
  const rest = text.length - start;
  if (!isLast && rest < LONGEST_PIECE + 2) return undefined;
  if (rest <= PIECE) return text.length;
  for (let end = start + PIECE; end > start; end--) if (isCut(text, end, cuts)) return end;
  const limit = Math.min(start + LONGEST_PIECE, text.length);
  for (let end = start + PIECE + 1; end < limit; end++) if (isCut(text, end, cuts)) return end;
  if (limit === text.length) return limit;
  return isLowSurrogate(text, limit) ? limit - 1 : limit;
}

/** How far the first cut is looked for. */
const FIRST_CUT = 256;

/**
 * Where the ids of a passage from inside a text begin to be those that the text has there: at its first cut, when there is one near. Otherwise at
 * its first whole character.
 */
export function firstCut(passage: string, cuts: Cuts): number {
  const limit = Math.min(FIRST_CUT, passage.length);
  for (let at = 1; at < limit; at++) if (isCut(passage, at, cuts)) return at;
  return isLowSurrogate(passage, 0) ? 1 : 0;
}

/** Whether the second half of a surrogate pair stands there. */
function isLowSurrogate(text: string, at: number): boolean {
  const unit = text.charCodeAt(at);
  return unit >= 0xdc00 && unit < 0xe000;
}

function isCut(text: string, at: number, { chars, dropSpace, kept }: Cuts): boolean {
  if (!chars.includes(text.charAt(at)) || !/[\p{L}\p{N}]$/u.test(text.slice(Math.max(0, at - 2), at))) return false;
  return !dropSpace || (at + 1 < text.length && !kept.includes(text.charAt(at + 1)));
}
