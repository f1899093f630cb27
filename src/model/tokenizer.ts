import { setImmediate } from 'node:timers/promises';
import type { Tokenizer as Library } from '@huggingface/tokenizers';
import { AlpsError, describe, invalidArgument, throwIfAborted } from '../errors.js';
import { type Cuts, findCuts, firstCut, nextCut } from './tokenizer-cuts.js';
import { Encoder } from './tokenizer-encoder.js';
import { readTokenizerFiles, type TokenizerFiles } from './tokenizer-json.js';

/** A tokenizer.json in use. Ids never include special tokens that the text does not contain. */
export interface Tokenizer {
  /** Every id is below this. */
  readonly vocabSize: number;
  /** The token that begins a text, where the tokenizer has one. It is never added by itself. */
  readonly bosToken?: string;
  readonly bosId?: number;
  readonly eosId?: number;
  /** What the tokenizer puts before a text where special tokens are asked for: often the begin of text, or nothing. */
  readonly prefix: readonly number[];
  /** Encodes on the calling thread, about 2 MB/s. Half surrogate pairs become U+FFFD. */
  encode(text: string): Uint32Array;
  /**
   * The same ids, giving the event loop a turn every few milliseconds.
   * @param options.inside the text is a passage from inside another one: what stands before its first word's end is left out, and the ids are those
   * that the other text has there, but for some at the passage's end
   */
  encodeAsync(text: string, options?: { signal?: AbortSignal | undefined; inside?: boolean }): Promise<Uint32Array>;
  /** The ids of the parts' concatenation, as they are found; memory does not grow with the text. */
  encodeStream(
    parts: AsyncIterable<string> | Iterable<string>,
    options?: { signal?: AbortSignal },
  ): AsyncGenerator<Uint32Array>;
  decode(ids: ArrayLike<number>): string;
}

/**
 * Reads a model folder's `tokenizer.json` (byte-pair models) and `tokenizer_config.json`.
 *
 * Long texts are encoded in pieces, cut only where that changes no id; see {@link Cuts}. The one exception is a run of
 * 16 KiB (as UTF-8) without any such place (base64, say): it is cut before its last blank or, without one, at that length.
 *
 * The ids are those of the Rust library, but for characters that are newer than its Unicode tables or Node's.
 *
 * @param options.vocabSize rows of the model's embedding; an id beyond it is an error of the text, not of the device
 * @throws AlpsError `FILE_SYSTEM`, `INVALID_CHECKPOINT` (broken file), `UNSUPPORTED_MODEL` (which part is not supported)
 */
export async function loadTokenizer(folder: string, options: { vocabSize?: number } = {}): Promise<Tokenizer> {
  if (typeof folder !== 'string' || folder === '') throw invalidArgument('folder', 'a path', folder);
  const { vocabSize } = options;
  if (vocabSize !== undefined && !(Number.isSafeInteger(vocabSize) && vocabSize > 0)) {
    throw invalidArgument('vocabSize', 'a positive integer', vocabSize);
  }
  const files = await readTokenizerFiles(folder);
  return usable(folder, () => new BytePairTokenizer(folder, files, vocabSize));
}

/** What the library does with a tokenizer; should it fail, then because of what is in the files, of which it checks little. */
function usable<T>(folder: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (error instanceof AlpsError) throw error;
    const text = `${folder}: the tokenizer cannot be used: ${(error as Error).message}`;
    throw new AlpsError('UNSUPPORTED_MODEL', text, { cause: error });
  }
}

class BytePairTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosToken?: string;
  readonly bosId?: number;
  readonly eosId?: number;
  readonly prefix: readonly number[];
  readonly #folder: string;
  readonly #library: Library;
  readonly #encoder: Encoder;
  readonly #cuts: Cuts;
  readonly #cleanUp: boolean;

  constructor(folder: string, files: TokenizerFiles, vocabSize: number | undefined) {
    const encoder = new Encoder(files);
    const { library } = encoder;
    this.#folder = folder;
    this.#encoder = encoder;
    this.#library = library;
    this.vocabSize = vocabSize ?? largestId(files) + 1;
    this.bosToken = tokenText(files.config.bos_token);
    this.bosId = this.bosToken === undefined ? undefined : library.token_to_id(this.bosToken);
    const eosToken = tokenText(files.config.eos_token);
    this.eosId = eosToken === undefined ? undefined : library.token_to_id(eosToken);
    this.#cleanUp = files.config.clean_up_tokenization_spaces === true;
    this.prefix = prefixOf(library);
    this.#cuts = findCuts(files, encoder);
  }

  encode(text: string): Uint32Array {
    checkText(text);
    const pieces: Uint32Array[] = [];
    for (let start = 0; start < text.length; ) {
      const end = nextCut(text, start, true, this.#cuts)!;
      pieces.push(this.#encodePiece(text.slice(start, end), start === 0));
      start = end;
    }
    return concatenate(pieces);
  }

  async encodeAsync(
    text: string,
    { signal, inside = false }: { signal?: AbortSignal | undefined; inside?: boolean } = {},
  ): Promise<Uint32Array> {
    checkText(text);
    const pieces: Uint32Array[] = [];
    const passage = inside ? text.slice(firstCut(text, this.#cuts)) : text;
    for await (const ids of this.#encodeParts([passage], signal, !inside)) pieces.push(ids);
    return concatenate(pieces);
  }

  encodeStream(
    parts: AsyncIterable<string> | Iterable<string>,
    { signal }: { signal?: AbortSignal } = {},
  ): AsyncGenerator<Uint32Array> {
    return this.#encodeParts(parts, signal, true);
  }

  /** @param isFirst whether a text begins with the parts */
  async *#encodeParts(
    parts: AsyncIterable<string> | Iterable<string>,
    signal: AbortSignal | undefined,
    isFirst: boolean,
  ): AsyncGenerator<Uint32Array> {
    let text = '';
    let start = 0;
    for await (const part of endMarked(parts)) {
      throwIfAborted(signal);
      text = text.slice(start) + (part ?? '');
      start = 0;
      while (start < text.length) {
        const end = nextCut(text, start, part === undefined, this.#cuts);
        if (end === undefined) break;
        yield this.#encodePiece(text.slice(start, end), isFirst);
        start = end;
        isFirst = false;
        await setImmediate();
        throwIfAborted(signal);
      }
    }
  }

  decode(ids: ArrayLike<number>): string {
    const list = Array.from(ids);
    for (const id of list) this.#checkId(id);
    if (list.length === 0) return '';
    const options = { clean_up_tokenization_spaces: this.#cleanUp };
    return usable(this.#folder, () => this.#library.decode(list, options));
  }

  #encodePiece(piece: string, isFirst: boolean): Uint32Array {
    const text = piece.replace(/\p{Surrogate}/gu, '\uFFFD');
    const ids = usable(this.#folder, () => this.#encoder.encode(text, isFirst));
    for (const id of ids) this.#checkId(id);
    return Uint32Array.from(ids);
  }

  #checkId(id: unknown): void {
    if (Number.isInteger(id) && (id as number) >= 0 && (id as number) < this.vocabSize) return;
    const token = this.#library.id_to_token(id as number);
    const name = token === undefined ? '' : ` (${describe(token)})`;
    throw new AlpsError(
      'INVALID_TEXT',
      `Token id ${String(id)}${name} is outside the model's vocabulary of ${this.vocabSize}. Use the tokenizer that belongs to the model`,
    );
  }
}

/** The special ids before a text, by the tokenizer's own post-processing. */
function prefixOf(library: Library): number[] {
  const plain: number[] = library.encode('a', { add_special_tokens: false }).ids;
  const whole: number[] = library.encode('a', { add_special_tokens: true }).ids;
  const at = whole.findIndex((_, i) => plain.every((id, j) => whole[i + j] === id));
  return at > 0 ? whole.slice(0, at) : [];
}

/** The parts, then one `undefined`: the last piece can be told apart without knowing the length beforehand. */
async function* endMarked(parts: AsyncIterable<string> | Iterable<string>): AsyncGenerator<string | undefined> {
  yield* parts;
  yield undefined;
}

function checkText(text: unknown): void {
  if (typeof text !== 'string') throw invalidArgument('text', 'a string', text);
}

function tokenText(token: unknown): string | undefined {
  if (typeof token === 'string') return token;
  const content = (token as { content?: unknown } | null | undefined)?.content;
  return typeof content === 'string' ? content : undefined;
}

function largestId(files: TokenizerFiles): number {
  let largest = 0;
  for (const id of Object.values(files.tokenizer.model.vocab as Record<string, number>))
    largest = Math.max(largest, id);
  for (const { id } of files.tokenizer.added_tokens) largest = Math.max(largest, id as number);
  return largest;
}

/** One array of all ids. */
export function concatenate(arrays: readonly Uint32Array[]): Uint32Array {
  const all = new Uint32Array(arrays.reduce((sum, { length }) => sum + length, 0));
  let offset = 0;
  for (const ids of arrays) {
    all.set(ids, offset);
    offset += ids.length;
  }
  return all;
}
