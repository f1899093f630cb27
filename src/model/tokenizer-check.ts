import { isObject } from '../checkpoint/json.js';
import { AlpsError, describe } from '../errors.js';
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
  const merges = model.merges;
  const isMerge = (merge: unknown) =>
    typeof merge === 'string' ||
    (Array.isArray(merge) && merge.length === 2 && merge.every((part) => typeof part === 'string'));
  if (!Array.isArray(merges) || !merges.every(isMerge)) {
    throw new AlpsError('INVALID_CHECKPOINT', `${path}: model.merges is not a list of pairs`);
  }
  const added = tokenizer.added_tokens ?? [];
  if (
    !Array.isArray(added) ||
    !added.every((token) => isObject(token) && typeof token.content === 'string' && isId(token.id))
  ) {
    throw new AlpsError('INVALID_CHECKPOINT', `${path}: added_tokens is not a list of {id, content}`);
  }
  const word = (added as Json[]).find((token) => token.single_word === true);
  if (word) throw unsupported(path, `the added token ${describe(word.content)}, which is taken in whole words only`);
  for (const normalizer of flatten(tokenizer.normalizer as Json | null, 'normalizers')) {
    if (['Strip', 'StripAccents', 'Precompiled', 'BertNormalizer'].includes(String(normalizer.type))) {
      throw unsupported(path, `the normalizer ${describe(normalizer.type)} with a BPE model`);
    }
  }
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
