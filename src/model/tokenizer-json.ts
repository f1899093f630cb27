import { join } from 'node:path';
import { readWhole } from '../checkpoint/file-io.js';
import { isObject } from '../checkpoint/json.js';
import { AlpsError, describe, isCode } from '../errors.js';
import { checkTokenizer, unsupported } from './tokenizer-check.js';

/** Any JSON object. */
export type Json = Record<string, unknown>;

/** The two files of a tokenizer as the library takes them, after {@link alignPreTokenizer}. */
export interface TokenizerFiles {
  tokenizer: Json & { added_tokens: Json[]; model: Json };
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
  const preTokenizer = splitWords(
    tokenizer,
    alignPreTokenizer(path, tokenizer.pre_tokenizer as Json | null | undefined),
  );
  return {
    tokenizer: {
      normalizer: null,
      post_processor: null,
      decoder: null,
      ...tokenizer,
      added_tokens: (tokenizer.added_tokens ?? []) as Json[],
      model: tokenizer.model as Json,
      pre_tokenizer: preTokenizer,
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

/**
 * Writes pre-tokenizers which the JavaScript library treats otherwise than the Rust one as equivalent splits.
 * Digits and ByteLevel would take `\d` and `\s` for JavaScript's; Punctuation ignores its behaviour, Metaspace its `split`.
 */
export function alignPreTokenizer(path: string, part: Json | null | undefined): Json | null {
  const parts = flatten(part, 'pretokenizers').flatMap((inner) => align(path, inner));
  return parts.length === 0 ? null : { type: 'Sequence', pretokenizers: parts };
}

function align(path: string, part: Json): Json[] {
  switch (part.type) {
    case 'Digits':
      return [isolate(part.individual_digits ? '\\p{N}' : '\\p{N}+')];
    case 'ByteLevel': {
      if (part.add_prefix_space || part.use_regex === false) return [part];
      return [isolate(GPT2_PATTERN), { ...part, use_regex: false }];
    }
    case 'Punctuation': {
      const behavior = String(part.behavior ?? 'Isolated').toLowerCase();
      if (behavior !== 'isolated' && behavior !== 'contiguous') break;
      return [isolate(behavior === 'isolated' ? PUNCTUATION : `${PUNCTUATION}+`)];
    }
    case 'Metaspace': {
      const scheme = part.prepend_scheme ?? (part.add_prefix_space === false ? 'never' : 'always');
      const mark = String(part.replacement ?? '\u2581');
      return [{ ...part, prepend_scheme: scheme }, ...((part.split ?? true) ? [isolate(`${mark}[^${mark}]*`)] : [])];
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
  if (behavior === 'removed') return { ...part, behavior: 'Removed' };
  const text = (part.pattern as { String?: string } | undefined)?.String;
  if (text !== undefined && [...text].length === 1 && !part.invert) {
    const char = `\\x{${text.codePointAt(0)!.toString(16)}}`;
    if (behavior === 'mergedwithprevious') return isolate(`[^${char}]*${char}`);
    if (behavior === 'mergedwithnext') return isolate(`${char}[^${char}]*`);
  }
  throw unsupported(path, `the pre-tokenizer "Split" with behavior ${describe(part.behavior)}`);
}

/**
 * SentencePiece-style models run BPE over the whole text as one word. Where no token of the vocabulary has the space
 * mark after another character, no merge can cross such a place, so splitting there changes no id, and words can be cached.
 */
function splitWords(tokenizer: Json, preTokenizer: Json | null): Json | null {
  const parts = flatten(preTokenizer, 'pretokenizers');
  if (parts.some((part) => part.type !== 'Metaspace')) return preTokenizer;
  const vocabulary = (tokenizer.model as Json).vocab as Json;
  if (Object.keys(vocabulary).some((token) => /[^\u2581]\u2581/u.test(token))) return preTokenizer;
  return { type: 'Sequence', pretokenizers: [...parts, isolate('\u2581+[^\u2581]*')] };
}

function isolate(pattern: string): Json {
  return { type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false };
}
