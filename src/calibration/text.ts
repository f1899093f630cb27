import { onAbort } from '../abort.js';
import { isObject } from '../checkpoint/json.js';
import { AlpsError, aborted, invalidArgument, throwIfAborted } from '../errors.js';
import { type Copy, listInside } from '../snapshot.js';
import { Turns } from '../turns.js';
import { readParquet } from './parquet.js';
import { badLine, readJsonValues, readLines, readPieces } from './text-file.js';

/** Source of text: the path of a file, several paths, or documents as strings: an async iterable, or an iterable as `documents`. */
export type TextSource =
  | string
  | readonly string[]
  | AsyncIterable<string>
  | { documents: Iterable<string> | AsyncIterable<string> };

/** Copies a {@link TextSource}: its lists, but not what is iterated over. */
export const textInside: Copy = (text) => {
  const list = listInside();
  const holds = typeof text === 'object' && text !== null && !Array.isArray(text) && 'documents' in text;
  return holds ? { documents: list(text.documents) } : list(text);
};

export interface TextOptions {
  /** The text field of JSON lines and parquet files. Default `text`. */
  field?: string;
  /** Whether empty documents count, and each line of a text file is one. Default false. */
  rows?: boolean;
  signal?: AbortSignal;
}

/** A piece of a document; `end` marks its last piece. */
export interface TextPart {
  text: string;
  end: boolean;
}

/** What documents are joined by. */
export const documentJoin = '\n\n';

const accepted = '.txt, .raw, .md, .jsonl, .ndjson, each also .gz, .json.gz (JSON lines), .parquet';

/**
 * Text in pieces of bounded size, however large the files and their lines are; a reader that stops early closes the files.
 * Line ends stay as they are, a byte order mark is left out, empty documents and nulls are skipped.
 *
 * @throws AlpsError `INVALID_TEXT` (no text at all, not UTF-8, a bad line with its number, damaged gzip or parquet, unknown
 * kind of file), `INVALID_ARGUMENT`, `FILE_SYSTEM`, `ABORTED`
 */
export async function* readText(source: TextSource, options: TextOptions = {}): AsyncGenerator<TextPart> {
  let isEmpty = true;
  const turns = new Turns();
  for await (const part of partsOf(source, options)) {
    if (part.text !== '') isEmpty = false;
    yield part;
    if (!turns.isDue) continue;
    await turns.take();
    throwIfAborted(options.signal);
  }
  if (isEmpty) throw new AlpsError('INVALID_TEXT', `${nameOf(source)} has no text`);
}

/** The documents' text joined by a blank line, in pieces. */
export async function* joinedText(source: TextSource, options: TextOptions = {}): AsyncGenerator<string> {
  let between = false;
  let inside = false;
  for await (const { text, end } of readText(source, options)) {
    if (text !== '') {
      if (!inside && between) yield documentJoin;
      yield text;
      inside = true;
    }
    if (end) {
      between ||= inside;
      inside = false;
    }
  }
}

function nameOf(source: TextSource): string {
  if (typeof source === 'string') return source;
  return Array.isArray(source) ? source.join(', ') : 'documents';
}

async function* partsOf(
  source: TextSource,
  { field = 'text', rows = false, signal }: TextOptions,
): AsyncGenerator<TextPart> {
  if (typeof field !== 'string' || field === '') throw invalidArgument('field', 'a name', field);
  const documents = documentsOf(source);
  if (documents) {
    for await (const text of untilAborted(documents, signal)) {
      if (typeof text !== 'string') throw invalidArgument('documents', 'strings', text);
      if (text !== '' || rows) yield { text, end: true };
    }
    return;
  }
  const paths = typeof source === 'string' ? [source] : source;
  if (!Array.isArray(paths) || paths.length === 0 || !paths.every((path) => typeof path === 'string' && path !== '')) {
    throw invalidArgument('text', 'a path, paths, {documents} or an async iterable of strings', source);
  }
  for (const path of paths) kindOf(path);
  for (const path of paths) yield* readFileText(path, { field, rows, signal });
}

/** What is iterated over, until the signal fires: also while the next one does not come, or none lets the event loop turn. */
async function* untilAborted<T>(
  items: Iterable<T> | AsyncIterable<T>,
  signal: AbortSignal | undefined,
): AsyncGenerator<T> {
  const isAsync = Symbol.asyncIterator in items;
  const iterator = isAsync ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();
  let isDone = false;
  let stop = () => {};
  const release = onAbort(signal, () => stop());
  const unlessStopped = (next: Promise<IteratorResult<T>>) =>
    new Promise<IteratorResult<T>>((resolve, reject) => {
      stop = () => reject(aborted(signal));
      next.then(resolve, reject);
    });
  try {
    for (const turns = new Turns(); ; ) {
      throwIfAborted(signal);
      const next = iterator.next();
      const { done, value } = await (isAsync ? unlessStopped(Promise.resolve(next)) : next);
      isDone = done === true;
      if (isDone) return;
      yield value as T;
      if (turns.isDue) await turns.take();
    }
  } catch (error) {
    isDone ||= !signal?.aborted; // it ended by itself
    throw error;
  } finally {
    release();
    if (!isDone) {
      const closed = (async () => iterator.return?.())();
      if (!signal?.aborted) await closed;
      else closed.catch(() => undefined); // it may never answer
    }
  }
}

function documentsOf(source: TextSource): Iterable<string> | AsyncIterable<string> | undefined {
  if (typeof source !== 'object' || source === null || Array.isArray(source)) return undefined;
  const documents = 'documents' in source ? source.documents : (source as AsyncIterable<string>);
  const iterable = documents as Partial<AsyncIterable<string> & Iterable<string>> | null | undefined;
  const isIterable =
    typeof documents !== 'string' &&
    (typeof iterable?.[Symbol.asyncIterator] === 'function' || typeof iterable?.[Symbol.iterator] === 'function');
  if (!isIterable) throw invalidArgument('text', 'a path, paths, {documents} or an async iterable of strings', source);
  return documents;
}

function kindOf(path: string): 'txt' | 'lines' | 'parquet' {
  const match = /\.(?:(?:(txt|text|md|raw)|jsonl|ndjson)(?:\.gz)?|json\.gz|(parquet))$/i.exec(path);
  if (!match) throw new AlpsError('INVALID_TEXT', `${path} has no known text format: expected ${accepted}`);
  return match[1] ? 'txt' : match[2] ? 'parquet' : 'lines';
}

async function* readFileText(path: string, options: FileOptions): AsyncGenerator<TextPart> {
  const kind = kindOf(path);
  if (kind === 'parquet') yield* readParquet(path, options);
  else if (kind === 'lines') yield* readJsonLines(path, options);
  else if (options.rows) yield* readRows(path, options.signal);
  else {
    for await (const text of readPieces(path, options.signal)) yield { text, end: false };
    yield { text: '', end: true };
  }
}

interface FileOptions {
  field: string;
  rows: boolean;
  signal?: AbortSignal;
}

/** Each line with its end is a document; one of blanks is an empty document. */
async function* readRows(path: string, signal?: AbortSignal): AsyncGenerator<TextPart> {
  for await (const lines of readLines(path, signal)) {
    for (const line of lines) {
      if (line.trim() !== '') yield { text: line, end: true };
      else if (line.endsWith('\n')) yield { text: '', end: true };
    }
  }
}

async function* readJsonLines(path: string, { field, rows, signal }: FileOptions): AsyncGenerator<TextPart> {
  for await (const { value, line } of readJsonValues(path, signal)) {
    const document = documentOf(value, path, line, field);
    if (rows ? document !== undefined : document) yield { text: document!, end: true };
  }
}

function documentOf(value: unknown, path: string, line: number, field: string): string | undefined {
  const advice = /\.json\.gz$/i.test(path) ? '; token ids are read from .json, not from .json.gz' : '';
  if (!isObject(value)) throw badLine(path, line, `not a JSON object${advice}`);
  const document: unknown = Object.hasOwn(value, field) ? value[field] : undefined;
  if (document === null) return undefined;
  if (typeof document === 'string') return document;
  const fields = Object.keys(value).slice(0, 20).join(', ');
  throw badLine(path, line, `there is no string in the field "${field}" (fields: ${fields})${advice}`);
}
