import { join } from 'node:path';
import { readWhole } from '../checkpoint/file-io.js';
import { isObject } from '../checkpoint/json.js';
import { AlpsError, describe, isCode } from '../errors.js';
import { checkTokenizer, unsupported } from './tokenizer-check.js';

/** Any JSON object. */
export type Json = Record<string, unknown>;

/** The two files of a tokenizer as the library takes them, after {@link alignNormalizer} and {@link alignPreTokenizer}. */
export interface TokenizerFiles {
  tokenizer: Json & { added_tokens: Json[]; model: Json };
  /** What takes the parts' places inside a text, where nothing is put before it. */
  inside: { normalizer: Json | null; pre_tokenizer: Json | null };
  config: Json;
}

const LARGEST_FILE = 256 * 2 ** 20;

/** GPT-2's pattern. `\s` means Unicode White_Space here, as in the Rust library; in a JavaScript regex it would not. */
const GPT2_PATTERN = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const PUNCTUATION = '[\\p{P}!-/:-@\\[-`{-~]';

/** Reads and checks `tokenizer.json` and, where there is one, `tokenizer_config.json`. */
export async function readTokenizerFiles(folder: string): Promise<TokenizerFiles> {
  const path = join(folder, 'tokenizer.json');
  const tokenizer = await readJson(path);
  if (tokenizer === undefined) {
    throw new AlpsError(
      'FILE_SYSTEM',
      `Could not read ${path}: ENOENT. Save the tokenizer in the "fast" format (tokenizer.json), or pass token ids instead of text`,
    );
  }
  const config = (await readJson(join(folder, 'tokenizer_config.json'))) ?? {};
  checkTokenizer(path, tokenizer);
  const normalizers = alignNormalizer(tokenizer.normalizer as Json | null | undefined);
  const parts = splitWords(
    tokenizer,
    alignPreTokenizer(path, tokenizer.pre_tokenizer as Json | null | undefined, replacedCharacter(normalizers)),
  );
  const normalizer = sequence(normalizers, 'normalizers');
  return {
    tokenizer: {
      post_processor: null,
      decoder: null,
      ...tokenizer,
      added_tokens: (tokenizer.added_tokens ?? []) as Json[],
      model: { ...(tokenizer.model as Json), type: 'BPE' },
      normalizer,
      pre_tokenizer: sequence(parts, 'pretokenizers'),
    },
    inside: {
      normalizer: sequence(
        normalizers.filter(({ type }) => type !== 'Prepend'),
        'normalizers',
      ),
      pre_tokenizer: sequence(withoutPrefix(parts), 'pretokenizers'),
    },
    config,
  };
}

async function readJson(path: string): Promise<Json | undefined> {
  let bytes: Uint8Array;
  try {
    bytes = await readWhole(path, LARGEST_FILE);
  } catch (error) {
    if (isCode((error as Error).cause, 'ENOENT')) return undefined;
    throw error;
  }
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(bytes)); // a byte order mark is left out
  } catch (error) {
    throw new AlpsError('INVALID_CHECKPOINT', `${path} is not JSON: ${(error as Error).message}`, { cause: error });
  }
  if (!isObject(value)) throw new AlpsError('INVALID_CHECKPOINT', `${path} is not a JSON object`);
  return value;
}

/** The parts of a (nested) Sequence in order; `key` is where the file keeps them. */
export function flatten(part: Json | null | undefined, key: 'normalizers' | 'pretokenizers'): Json[] {
  if (!part) return [];
  return part.type === 'Sequence' ? ((part[key] ?? []) as Json[]).flatMap((inner) => flatten(inner, key)) : [part];
}

function sequence(parts: Json[], key: 'normalizers' | 'pretokenizers'): Json | null {
  return parts.length === 0 ? null : { type: 'Sequence', [key]: parts };
}

/** Writes normalizers which the JavaScript library treats otherwise than the Rust one as equivalent ones. */
export function alignNormalizer(part: Json | null | undefined): Json[] {
  return flatten(part, 'normalizers').flatMap((inner) => {
    // `$` has a meaning in what JavaScript puts in a match's place.
    if (inner.type === 'Replace') return [{ ...inner, content: String(inner.content ?? '').replaceAll('$', '$$$$') }];
    // JavaScript has another small sigma at the end of a word.
    if (inner.type === 'Lowercase')
      return [{ type: 'Replace', pattern: { String: '\u03A3' }, content: '\u03C3' }, inner];
    return [inner];
  });
}

/** The character that no text has after normalization. */
function replacedCharacter(normalizers: Json[]): string | undefined {
  const last = normalizers.at(-1);
  if (last?.type !== 'Replace') return undefined;
  const text = (last.pattern as { String?: string }).String;
  return text?.length === 1 && !(last.content as string).includes(text) ? text : undefined;
}

/**
 * Writes pre-tokenizers which the JavaScript library treats otherwise than the Rust one as equivalent splits.
 * Digits and ByteLevel would take `\d` and `\s` for JavaScript's; Punctuation ignores its behaviour, Metaspace its `split`.
 * @param absent a character that no text has
 */
export function alignPreTokenizer(path: string, part: Json | null | undefined, absent?: string): Json[] {
  return flatten(part, 'pretokenizers').flatMap((inner, index) => {
    if (inner.type === 'Metaspace' && inner.prepend_scheme === 'first' && index > 0) {
      throw unsupported(path, 'the pre-tokenizer "Metaspace" with prepend_scheme "first" behind another one');
    }
    const isIdle = inner.type === 'Split' && !inner.invert && splitText(inner) === absent;
    return isIdle && absent !== undefined ? [] : align(path, inner);
  });
}

function align(path: string, part: Json): Json[] {
  switch (part.type) {
    case 'Digits':
      return [isolate(part.individual_digits ? '\\p{N}' : '\\p{N}+')];
    case 'ByteLevel': {
      const prefix = { type: 'Replace', pattern: { Regex: ' ([\\s\\S]*)|([\\s\\S]+)' }, content: ' $1$2' };
      return [
        ...(part.add_prefix_space ? [prefix] : []),
        ...(part.use_regex === false ? [] : [isolate(GPT2_PATTERN)]),
        { ...part, add_prefix_space: false, use_regex: false },
      ];
    }
    case 'Punctuation': {
      const behavior = String(part.behavior ?? 'Isolated').toLowerCase();
      if (behavior !== 'isolated' && behavior !== 'contiguous') break;
      return [isolate(behavior === 'isolated' ? PUNCTUATION : `${PUNCTUATION}+`)];
    }
    case 'Metaspace': {
      const scheme = part.prepend_scheme ?? (part.add_prefix_space === false ? 'never' : 'always');
      const mark = String(part.replacement ?? '\u2581');
      const char = escaped(mark);
      return [{ ...part, prepend_scheme: scheme }, ...((part.split ?? true) ? [isolate(`${char}[^${char}]*`)] : [])];
    }
    case 'Split':
      return [alignSplit(path, part)];
    case 'WhitespaceSplit':
      return [{ type: 'Split', pattern: { Regex: '\\s+' }, behavior: 'Removed', invert: false }];
  }
  throw unsupported(
    path,
    `the pre-tokenizer ${describe(part.type)}${part.behavior ? ` with behavior ${describe(part.behavior)}` : ''}`,
  );
}

function alignSplit(path: string, part: Json): Json {
  const behavior = String(part.behavior ?? '').toLowerCase();
  if (behavior === 'isolated') return { ...part, behavior: 'Isolated', invert: false };
  const text = splitText(part);
  if (behavior === 'removed') {
    // JavaScript's `split` gives back what groups have taken.
    const regex = (part.pattern as { Regex?: string }).Regex;
    if (regex !== undefined && !part.invert && hasGroups(regex)) {
      throw unsupported(
        path,
        `the pre-tokenizer "Split" with behavior ${describe(part.behavior)} and groups in its pattern`,
      );
    }
    return { ...part, pattern: { Regex: regex ?? escaped(text!) }, behavior: 'Removed' };
  }
  if (text !== undefined && [...text].length === 1 && !part.invert) {
    const char = escaped(text);
    if (behavior === 'mergedwithprevious') return isolate(`[^${char}]+${char}?|${char}`);
    if (behavior === 'mergedwithnext') return isolate(`${char}[^${char}]*`);
  }
  throw unsupported(path, `the pre-tokenizer "Split" with behavior ${describe(part.behavior)}`);
}

/** A Split's pattern where it is no regular expression. */
function splitText(part: Json): string | undefined {
  return (part.pattern as { String?: string } | undefined)?.String;
}

/** A regular expression for the text itself. */
function escaped(text: string): string {
  return [...text].map((char) => `\\x{${char.codePointAt(0)!.toString(16)}}`).join('');
}

/** Whether a regular expression may have groups that capture. */
function hasGroups(regex: string): boolean {
  return /\((?!\?)|\(\?(?:<(?![=!])|')/.test(regex.replace(/\\./gs, ''));
}

/** The parts without the one that puts something before a text. */
function withoutPrefix(parts: Json[]): Json[] {
  const [first, ...others] = parts;
  if (first?.type === 'Metaspace') return [{ ...first, prepend_scheme: 'never' }, ...others];
  return first?.type === 'Replace' ? others : parts;
}

/**
 * SentencePiece-style models run BPE over the whole text as one word. Where no token of the vocabulary has the space
 * mark after another character, no merge can cross such a place, so splitting there changes no id, and words can be cached.
 */
function splitWords(tokenizer: Json, parts: Json[]): Json[] {
  if (parts.some((part) => part.type !== 'Metaspace')) return parts;
  const vocabulary = (tokenizer.model as Json).vocab as Json;
  if (!Object.hasOwn(vocabulary, '\u2581')) return parts;
  if (Object.keys(vocabulary).some((token) => /[^\u2581]\u2581/u.test(token))) return parts;
  return [...parts, isolate('\u2581+[^\u2581]*')];
}

function isolate(pattern: string): Json {
  return { type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false };
}
