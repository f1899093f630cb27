import { decodeBytes } from './byte-alphabet.js';
import type { Encoder } from './tokenizer-encoder.js';
import { flatten, type Json, type TokenizerFiles } from './tokenizer-json.js';

/** Pieces have about this many bytes as UTF-8: a few milliseconds of work each. */
const PIECE = 8 * 1024;
/**
 * Without any safe place in this many bytes the text is cut anyway, so that memory and time stay bounded: one word of this length is some 100 ms of
 * work.
 */
const LONGEST_PIECE = 16 * 1024;

/** Characters that may follow a letter or digit at a cut. */
const CANDIDATES = ' \n\r\t.,;:!?\u3001\u3002\uFF01\uFF0C\uFF1A\uFF1B\uFF1F';

/** Where a text may be cut so that encoding the pieces gives the ids of the whole. */
export interface Cuts {
  /** A letter or digit, at the end of what is before the cut. */
  before: RegExp;
  /** Characters after the cut; empty when no place is known to be safe. */
  after: string;
}

const none: Cuts = { before: /(?!)/, after: '' };

/**
 * Finds the safe cuts of a tokenizer.
 *
 * Why that is exact: no token of the vocabulary has such a character behind a letter or digit, so no merge crosses the cut. The splitting patterns
 * of GPT-2, Llama 3, Qwen and o200k have no alternative that takes both, none looks behind, and the only look-ahead, `\s+(?!\S)`, ends in white
 * space: what stands on either side is split as in the whole. Of other patterns, a trial with `encoder` tells.
 */
export function findCuts(files: TokenizerFiles, encoder: Encoder): Cuts {
  const normalizers = flatten(files.tokenizer.normalizer as Json | null, 'normalizers');
  const splits = flatten(files.tokenizer.pre_tokenizer as Json | null, 'pretokenizers');
  const replaced = (pattern: unknown) => (pattern as { String?: string }).String ?? '';
  const harmless = ({ type, pattern }: Json) =>
    ['NFC', 'NFD', 'NFKC', 'NFKD', 'Lowercase', 'Prepend'].includes(String(type)) ||
    (type === 'Replace' && (replaced(pattern) === '\u03A3' || /^[^\p{L}\p{N}]$/u.test(replaced(pattern))));
  if (!normalizers.every(harmless) || splits.some(looksAround)) return none;

  const added = files.tokenizer.added_tokens.map(
    (token) => ({ ...token, content: String(token.content) }) as Json & { content: string },
  );
  // Behind such a token a text begins anew, or has lost its white space.
  const isPrefixed =
    normalizers.some(({ type }) => type === 'Prepend') ||
    splits.some(({ type }) => type === 'Metaspace' || type === 'Replace');
  const ends = added
    .filter(({ content, rstrip }) => (rstrip || isPrefixed) && /[\p{L}\p{Nd}]$/u.test(content))
    .map(({ content }) => [...content].at(-1)!);
  if (ends.length > 0 && normalizers.some(({ type }) => String(type).startsWith('NFK'))) return none;
  // The first two letters are "L\u00B7" where a normalizer takes them apart.
  const not = ['\u013F', '\u0140', ...ends.flatMap((char) => [char, char.toLowerCase(), char.toUpperCase()])].join('');
  const before = new RegExp(`(?![${not}])[\\p{L}\\p{Nd}]$`, 'u');

  const letter = normalizers.length === 0 ? /[\p{L}\p{Nd}\uFFFD]$/u : /[\p{L}\p{Nd}\p{M}\uFFFD]$/u;
  const isBytes = splits.some(({ type }) => type === 'ByteLevel');
  // U+FFFD: a token that begins within a character, which could be a letter.
  const isLeft = (token: string) => letter.test(isBytes ? decodeBytes(token.slice(-4)) : token.slice(-2));
  const tokens = Object.keys(files.tokenizer.model.vocab as Json);
  const after = [...CANDIDATES].filter((char) => {
    const inAdded = ({ content }: { content: string }) =>
      content.match(/[\p{L}\p{N}][^\p{L}\p{N}]/gu)?.some((pair) => pair.endsWith(char));
    return !added.some(inAdded) && !isCrossed(tokens, encoder.written(char), isLeft) && trial(char, encoder);
  });
  return { before, after: after.join('') };
}

/** Whether a Split's pattern may ask what is before a match, or for the text's ends. */
function looksAround({ type, pattern }: Json): boolean {
  if (type !== 'Split') return false;
  const regex = (pattern as { Regex?: string }).Regex ?? '';
  return /\\[AzZG]|[$^]|\(\?<[=!]/.test(regex.replace(/\[(?:\\.|[^\]\\])*\]/gs, '').replace(/\\[$^]/g, ''));
}

/** Whether a token has the character, or its first bytes, behind a letter or digit. */
function isCrossed(tokens: string[], char: string, isLeft: (token: string) => boolean): boolean {
  if (char === '') return false;
  return tokens.some((token) => {
    for (let at = token.indexOf(char, 1); at > 0; at = token.indexOf(char, at + 1)) {
      if (isLeft(token.slice(0, at))) return true;
    }
    for (let length = 1; length < char.length; length++) {
      if (token.length > length && token.endsWith(char.slice(0, length)) && isLeft(token.slice(0, -length)))
        return true;
    }
    return false;
  });
}

function trial(char: string, encoder: Encoder): boolean {
  const before = ['word', " Don't", '1a', ' 12', '\n\u5B57', 'x \u00E9'];
  const after = ['word', ' word', `${char}Word`, '1', "'s", '\n\nx', '\u5B57', ''];
  return before.every((left) =>
    after.every((right) => {
      const whole = encoder.encode(left + char + right);
      const parts = [...encoder.encode(left), ...encoder.encode(char + right, false)];
      return whole.length === parts.length && whole.every((id, index) => id === parts[index]);
    }),
  );
}

/**
 * The end of the piece that starts at `start`, or undefined while more text is needed to tell.
 * It depends on the text after `start` alone, not on how the text arrived.
 */
export function nextCut(text: string, start: number, isLast: boolean, cuts: Cuts): number | undefined {
  if (!isLast && text.length - start < LONGEST_PIECE + 2) return undefined;
  const usual = within(text, start, PIECE);
  if (usual === text.length) return usual;
  for (let end = usual; end > start; end--) if (isCut(text, end, cuts)) return end;
  const limit = within(text, start, LONGEST_PIECE);
  for (let end = usual + 1; end < limit; end++) if (isCut(text, end, cuts)) return end;
  if (limit === text.length) return limit;
  for (let end = limit; end > usual; end--) if (/^\S\s$/u.test(text.slice(end - 1, end + 1))) return end;
  return limit;
}

/** Where whole characters from `start` on have as many bytes, at most. */
function within(text: string, start: number, bytes: number): number {
  let end = start;
  for (let size = 0; end < text.length; end++) {
    const unit = text.charCodeAt(end);
    size += unit < 0x80 ? 1 : unit < 0x800 || (unit >= 0xd800 && unit < 0xe000) ? 2 : 3;
    if (size > bytes) break;
  }
  return isLowSurrogate(text, end) ? end - 1 : end;
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

function isCut(text: string, at: number, { before, after }: Cuts): boolean {
  return after.includes(text.charAt(at)) && before.test(text.slice(Math.max(0, at - 2), at));
}
