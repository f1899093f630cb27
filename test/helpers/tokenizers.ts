import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

type Json = Record<string, unknown>;

const llama3 =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const o200k =
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const split = (pattern: string) => ({
  type: 'Split',
  pattern: { Regex: pattern },
  behavior: 'Isolated',
  invert: false,
});
export const bytes = (useRegex: boolean, prefix = false) => ({
  type: 'ByteLevel',
  add_prefix_space: prefix,
  trim_offsets: true,
  use_regex: useRegex,
});
export const sequence = (...pretokenizers: Json[]) => ({ type: 'Sequence', pretokenizers });

/** Pre-tokenizers of the model families, over one small byte-pair vocabulary. */
export const byteLevelKinds: Record<string, { pre_tokenizer: Json; normalizer?: Json }> = {
  gpt2: { pre_tokenizer: bytes(true) },
  prefix: { pre_tokenizer: bytes(true, true) },
  smollm: { pre_tokenizer: sequence({ type: 'Digits', individual_digits: true }, bytes(true)) },
  llama3: { pre_tokenizer: sequence(split(llama3), bytes(false)) },
  qwen2: { pre_tokenizer: sequence(split(llama3.replace('{1,3}', '')), bytes(false)), normalizer: { type: 'NFC' } },
  o200k: { pre_tokenizer: sequence(split(o200k), bytes(false)) },
  punctuation: { pre_tokenizer: sequence({ type: 'Punctuation', behavior: 'Isolated' }, bytes(true)) },
};

/** SentencePiece-style kinds: a space mark instead of bytes, unknown characters as byte tokens. */
export const spaceMarkKinds: Record<string, { pre_tokenizer: Json | null; normalizer?: Json }> = {
  llama2: {
    pre_tokenizer: null,
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'Prepend', prepend: '\u2581' },
        { type: 'Replace', pattern: { String: ' ' }, content: '\u2581' },
      ],
    },
  },
  gemma: {
    pre_tokenizer: { type: 'Split', pattern: { String: ' ' }, behavior: 'MergedWithPrevious', invert: false },
    normalizer: { type: 'Replace', pattern: { String: ' ' }, content: '\u2581' },
  },
  metaspace: { pre_tokenizer: { type: 'Metaspace', replacement: '\u2581', prepend_scheme: 'first', split: false } },
  metaspaceSplit: {
    pre_tokenizer: { type: 'Metaspace', replacement: '\u2581', prepend_scheme: 'always', split: true },
  },
};

/** The byte alphabet of GPT-2: printable bytes stand for themselves, the others for U+0100 and up. */
function byteAlphabet(): string[] {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const isPrintable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    return String.fromCharCode(isPrintable ? byte : next++);
  });
}

const wordMerges = "t h|th e|i n|a n|an d|o n|e r|in g|1 2|1 9|. .|' s|d o|n '|o r|l d";
const byteMerges = `${wordMerges}|\u0120 the|\u0120 and|\u0120 in|\u0120 \u0120|\u010A \u010A|\u010D \u010A|. \u010A|\u00C2 \u00BD|\u0120 \u00C2|\u0120 1|\u00E4 \u00BD|\u0120 \u010A|\u00F0 \u0141`;
const spaceMerges = `${wordMerges}|\u2581 the|\u2581 and|\u2581 in|\u2581 \u2581|\u2581 1`;

/** A whole tokenizer.json of a kind. */
export function tinyTokenizer(kind: string): Json {
  const isBytes = kind in byteLevelKinds;
  const parts = (isBytes ? byteLevelKinds : spaceMarkKinds)[kind]!;
  const special = '<|end|>';
  const ascii = Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i));
  const byteTokens = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`);
  const alphabet = isBytes ? byteAlphabet() : ['<unk>', ...byteTokens, '\u2581', ...ascii.slice(1)];
  const merges = (isBytes ? byteMerges : spaceMerges).split('|').map((pair) => pair.split(' ') as [string, string]);
  const tokens = [...new Set([special, ...alphabet, ...merges.map((pair) => pair.join(''))])];
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [
      { id: 0, content: special, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true },
    ],
    normalizer: null,
    ...parts,
    post_processor: null,
    decoder: isBytes
      ? bytes(true)
      : { type: 'Metaspace', replacement: '\u2581', prepend_scheme: 'always', split: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: isBytes ? null : '<unk>',
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: !isBytes,
      byte_fallback: !isBytes,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: merges.map((pair) => pair.join(' ')),
    },
  };
}

/** A tokenizer.json with nothing but some parts, and a byte-pair model of these tokens. */
export function plainTokenizer(parts: Json, tokens: string[], merges: string[] = [], model: Json = {}): Json {
  const all = [...new Set([...tokens, ...merges.map((pair) => pair.replace(' ', ''))])];
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: null,
    ...parts,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      vocab: Object.fromEntries(all.map((token, id) => [token, id])),
      merges,
      ...model,
    },
  };
}

/** The same over bytes: each is a token, with its number as id. */
export const byteTokenizer = (parts: Json, merges?: string[]) =>
  plainTokenizer({ pre_tokenizer: bytes(true), ...parts }, byteAlphabet(), merges);

export const addedToken = (id: number, content: string, options: Json = {}): Json => ({
  id,
  content,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
  special: false,
  ...options,
});

/** A model folder with nothing but a tokenizer. */
export async function writeTokenizer(folder: string, tokenizer: unknown, config: Json = { bos_token: '<|end|>' }) {
  await mkdir(folder, { recursive: true });
  await writeFile(
    join(folder, 'tokenizer.json'),
    typeof tokenizer === 'string' ? tokenizer : JSON.stringify(tokenizer),
  );
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(config));
  return folder;
}

/** Text with what tokenizers disagree about: digits of other scripts, odd spaces, CRLF, emoji, contractions. */
export const trickyText =
  "Fellow-citizens: don't, DON'T, it's 1912 and 12\u00BD in 1\u00BD;  the  end..\r\n\r\n\tx = [\u0663\u0664, \u2167] \u00BD \u00A0nbsp\u0085nel \uFEFFbom \u2028ls\n\n\n" +
  ' \u4F60\u597D\uFF0C\u4E16\u754C\u3002\u4ECA\u5929 caf\u00E9 cafe\u0301 \u{1F600}\u{1F469}\u200D\u{1F467} <|end|> the<|end|>and   \n  \u0130stanbul \u{1D7D8}\u{1D7D9} \u0939\u093F\u0928\u094D\u0926\u0940 (a.b.c) "quoted." \u2018s \u{E000}\r x ';
