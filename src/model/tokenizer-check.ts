import { isObject } from '../checkpoint/json.js';
import { AlpsError, describe } from '../errors.js';
import { byteAlphabet, utf8Alphabet } from './byte-alphabet.js';
import { flatten, type Json } from './tokenizer-json.js';

/** Sequences inside sequences, at most. */
const deepest = 16;

/**
 * Checks a tokenizer.json. Byte-pair models only: what the decoders that this package prunes use, and what was compared with the Rust
 * library.
 */
export function checkTokenizer(path: string, tokenizer: Json): void {
  checkParts(path, 'normalizer', 'normalizers', tokenizer.normalizer);
  checkParts(path, 'pre_tokenizer', 'pretokenizers', tokenizer.pre_tokenizer);
  const model = tokenizer.model;
  if (!isObject(model)) throw new AlpsError('INVALID_CHECKPOINT', `${path} has no "model"`);
  const type = model.type ?? ('merges' in model ? 'BPE' : undefined);
  if (type !== 'BPE') throw unsupported(path, `a model of type ${describe(type)}, only "BPE" is`);
  if (typeof model.dropout === 'number' && model.dropout > 0)
    throw unsupported(path, 'BPE dropout: its ids are random');
  if (!isObject(model.vocab)) throw new AlpsError('INVALID_CHECKPOINT', `${path}: model.vocab is not an object`);
  for (const [token, id] of Object.entries(model.vocab)) {
    if (!isId(id))
      throw new AlpsError('INVALID_CHECKPOINT', `${path}: the id of ${describe(token)} is ${describe(id)}`);
  }
  checkMerges(path, model);
  const added = tokenizer.added_tokens ?? [];
  if (
    !Array.isArray(added) ||
    !added.every((token) => isObject(token) && typeof token.content === 'string' && isId(token.id))
  ) {
    throw new AlpsError('INVALID_CHECKPOINT', `${path}: added_tokens is not a list of {id, content}`);
  }
  const word = (added as Json[]).find((token) => token.single_word === true);
  if (word) throw unsupported(path, `the added token ${describe(word.content)}, which is taken in whole words only`);
  checkAddedIds(path, added as AddedToken[], model.vocab);
  checkUnknown(path, tokenizer as Json & { model: Json });
  for (const normalizer of flatten(tokenizer.normalizer as Json | null, 'normalizers')) {
    if (['Strip', 'StripAccents', 'Precompiled', 'BertNormalizer'].includes(String(normalizer.type))) {
      throw unsupported(path, `the normalizer ${describe(normalizer.type)} with a BPE model`);
    }
  }
}

function checkMerges(path: string, { vocab, merges, continuing_subword_prefix: prefix }: Json): void {
  const invalid = (what: string) => new AlpsError('INVALID_CHECKPOINT', `${path}: model.merges ${what}`);
  if (prefix) throw unsupported(path, `model.continuing_subword_prefix ${describe(prefix)}`);
  if (!Array.isArray(merges)) throw invalid('is not a list of pairs');
  const isText = typeof merges[0] === 'string';
  for (const merge of merges as unknown[]) {
    if (isText && typeof merge === 'string' && merge.startsWith('#version')) continue;
    const pair = isText && typeof merge === 'string' ? merge.split(' ') : isText ? undefined : merge;
    const isPair = Array.isArray(pair) && pair.length === 2 && pair.every((part) => typeof part === 'string');
    if (!isPair) throw invalid(`is not a list of pairs, all written alike: it has ${describe(merge)}`);
    const absent = [...pair, pair.join('')].find((token) => !Object.hasOwn(vocab as Json, token));
    if (absent !== undefined) throw invalid(`has ${describe(merge)}, but model.vocab no ${describe(absent)}`);
  }
}

interface AddedToken {
  id: number;
  content: string;
}

/** The Rust library numbers the tokens that are not in the vocabulary itself, and takes the ids of the others from there. */
function checkAddedIds(path: string, added: AddedToken[], vocab: Json): void {
  const size = Object.keys(vocab).length;
  const ids = new Map<string, number>();
  let largest = -1;
  for (const { id, content } of added) {
    if (content === '') continue;
    const own = Object.hasOwn(vocab, content) ? (vocab[content] as number) : ids.get(content);
    const expected = own ?? Math.max(size, largest + 1);
    if (id !== expected) {
      const text = `${path}: added_tokens gives ${describe(content)} the id ${id}, but it is ${expected} by model.vocab and the tokens before it`;
      throw new AlpsError('INVALID_CHECKPOINT', text);
    }
    ids.set(content, id);
    largest = Math.max(largest, id);
  }
}

function checkUnknown(path: string, tokenizer: Json & { model: Json }): void {
  if (knowsAll(tokenizer)) return;
  const { unk_token: unknown, vocab, byte_fallback, end_of_word_suffix: suffix } = tokenizer.model;
  if (typeof unknown === 'string') {
    if (Object.hasOwn(vocab as Json, unknown)) return;
    const text = `${path}: model.unk_token is ${describe(unknown)}, which model.vocab has not`;
    throw new AlpsError('INVALID_CHECKPOINT', text);
  }
  if (suffix) throw unsupported(path, `model.end_of_word_suffix ${describe(suffix)} without a model.unk_token`);
  if (byte_fallback)
    throw unsupported(path, 'model.byte_fallback with less than 256 byte tokens and without a model.unk_token');
}

/** Whether every character of every text is in the vocabulary, if only as bytes. */
export function knowsAll({ model, pre_tokenizer }: Json & { model: Json }): boolean {
  const vocab = model.vocab as Json;
  const isByte = (_: string, byte: number) =>
    Object.hasOwn(vocab, `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`);
  if (model.byte_fallback === true) return byteAlphabet.every(isByte);
  const types = flatten(pre_tokenizer as Json | null, 'pretokenizers').map(({ type }) => type);
  if (!types.includes('ByteLevel') || types.includes('Metaspace')) return false;
  return utf8Alphabet.every((char) => Object.hasOwn(vocab, char));
}

function isId(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 24;
}

/** A normalizer or pre-tokenizer: nothing, one part, or a Sequence of parts. */
function checkParts(path: string, name: string, list: string, part: unknown, depth = 0): void {
  if (part === null || (part === undefined && depth === 0)) return;
  const invalid = (what: string) => new AlpsError('INVALID_CHECKPOINT', `${path}: ${name} ${what}`);
  if (!isObject(part) || typeof part.type !== 'string') throw invalid(`has the part ${describe(part)}`);
  if (depth > deepest) throw invalid(`has more than ${deepest} sequences inside each other`);
  if (part.type === 'Sequence') {
    const parts = part[list] ?? [];
    if (!Array.isArray(parts)) throw invalid(`has a sequence of ${describe(parts)}`);
    for (const inner of parts) checkParts(path, name, list, inner, depth + 1);
  } else if (part.type === 'Split' || part.type === 'Replace') {
    const { String: text, Regex: regex } = isObject(part.pattern) ? part.pattern : {};
    if (typeof (text ?? regex) !== 'string') throw invalid(`has the pattern ${describe(part.pattern)}`);
  }
}

export function unsupported(path: string, what: string): AlpsError {
  return new AlpsError('UNSUPPORTED_MODEL', `${path}: not supported: ${what}. Pass token ids instead of text`);
}
