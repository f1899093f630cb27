import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { createGunzip } from 'node:zlib';
import { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } from 'hyparquet';
import { compressors } from 'hyparquet-compressors';
import { AlpsError, fileSystemError, invalidArgument, throwIfAborted } from '../errors.js';

/** Where text comes from: a file, several files, or strings (each a document). */
export type TextSource = string | readonly string[] | { documents: Iterable<string> | AsyncIterable<string> };

export interface TextOptions {
  /** The text field of .jsonl and .parquet files. Default `text`. */
  field?: string;
  signal?: AbortSignal;
}

/** A piece of a document; `end` marks its last piece. */
export interface TextPart {
  text: string;
  end: boolean;
}

/** What documents are joined by. */
export const documentJoin = '\n\n';

const longestLine = 64 << 20;
const accepted = '.txt, .jsonl, .txt.gz, .jsonl.gz, .parquet';

/**
 * Text in pieces of bounded size, however large the files and their lines are.
 * @throws AlpsError `INVALID_TEXT` naming the file and line, `FILE_SYSTEM`
 */
export async function* readText(source: TextSource, options: TextOptions = {}): AsyncGenerator<TextPart> {
  if (typeof source === 'object' && source !== null && 'documents' in source) {
    for await (const text of source.documents) {
      throwIfAborted(options.signal);
      if (typeof text !== 'string') throw invalidArgument('documents', 'strings', text);
      yield { text, end: true };
    }
    return;
  }
  const paths = typeof source === 'string' ? [source] : source;
  if (!Array.isArray(paths) || paths.length === 0 || !paths.every((path) => typeof path === 'string')) {
    throw invalidArgument('text', 'a path, paths, or {documents}', source);
  }
  for (const path of paths) yield* readFileText(path, options);
}

/** The documents' text joined by a blank line, in pieces. */
export async function* joinedText(source: TextSource, options: TextOptions = {}): AsyncGenerator<string> {
  let between = false;
  let inside = false;
  for await (const { text, end } of readText(source, options)) {
    if (text !== '' && !inside && between) yield documentJoin;
    if (text !== '') {
      yield text;
      inside = true;
    }
    if (end) {
      between ||= inside;
      inside = false;
    }
  }
}

async function* readFileText(path: string, options: TextOptions): AsyncGenerator<TextPart> {
  try {
    const info = await stat(path);
    if (!info.isFile()) throw new AlpsError('INVALID_TEXT', `${path} is not a regular file`);
  } catch (cause) {
    throw fileSystemError('read the text file', path, cause);
  }
  const name = path.toLowerCase().replace(/\.gz$/, '');
  if (name.endsWith('.parquet')) yield* readParquet(path, options);
  else if (name.endsWith('.jsonl') || name.endsWith('.ndjson')) yield* readJsonLines(path, options);
  else if (name.endsWith('.txt') || name.endsWith('.text') || name.endsWith('.md')) {
    for await (const text of decoded(path, options.signal)) yield { text, end: false };
    yield { text: '', end: true };
  } else throw new AlpsError('INVALID_TEXT', `${path} has no known text format: expected ${accepted}`);
}

/** The file's characters, unzipped where it ends with .gz. Invalid UTF-8 is refused, a byte order mark dropped, CRLF kept. */
async function* decoded(path: string, signal?: AbortSignal): AsyncGenerator<string> {
  const file = createReadStream(path, { highWaterMark: 1 << 18 });
  const bytes = path.toLowerCase().endsWith('.gz') ? file.pipe(createGunzip()) : file;
  if (bytes !== file) file.on('error', (error) => bytes.destroy(error));
  const decoder = new TextDecoder('utf-8', { fatal: true });
  let position = 0;
  try {
    for await (const chunk of bytes as AsyncIterable<Buffer>) {
      throwIfAborted(signal);
      const text = decode(decoder, chunk, true, path, position);
      position += chunk.length;
      if (text !== '') yield text;
    }
    const rest = decode(decoder, undefined, false, path, position);
    if (rest !== '') yield rest;
  } catch (cause) {
    if (cause instanceof AlpsError) throw cause;
    const code = (cause as { code?: string }).code ?? '';
    if (code.startsWith('Z_'))
      throw new AlpsError('INVALID_TEXT', `${path} is not a whole gzip file: ${(cause as Error).message}`, { cause });
    throw fileSystemError('read', path, cause);
  } finally {
    file.destroy();
    if (bytes !== file) bytes.destroy();
  }
}

function decode(
  decoder: InstanceType<typeof TextDecoder>,
  chunk: Buffer | undefined,
  stream: boolean,
  path: string,
  position: number,
): string {
  try {
    return chunk ? decoder.decode(chunk, { stream }) : decoder.decode();
  } catch (cause) {
    throw new AlpsError('INVALID_TEXT', `${path} is not UTF-8 after byte ${position}`, { cause });
  }
}

async function* readJsonLines(path: string, { field = 'text', signal }: TextOptions): AsyncGenerator<TextPart> {
  let rest = '';
  let line = 0;
  const document = (text: string): TextPart | undefined => {
    line++;
    if (text.trim() === '') return undefined;
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (cause) {
      throw new AlpsError('INVALID_TEXT', `${path}, line ${line} is not JSON: ${(cause as Error).message}`, { cause });
    }
    const content = (value as Record<string, unknown> | null)?.[field];
    if (typeof content !== 'string')
      throw new AlpsError('INVALID_TEXT', `${path}, line ${line} has no string field "${field}"`);
    return { text: content, end: true };
  };
  for await (const chunk of decoded(path, signal)) {
    const lines = (rest + chunk).split('\n');
    rest = lines.pop()!;
    for (const text of lines) {
      const part = document(text);
      if (part) yield part;
    }
    if (rest.length > longestLine)
      throw new AlpsError('INVALID_TEXT', `${path}, line ${line + 1} has more than ${longestLine} characters`);
  }
  const part = document(rest);
  if (part) yield part;
}

async function* readParquet(path: string, { field = 'text', signal }: TextOptions): AsyncGenerator<TextPart> {
  try {
    const file = await asyncBufferFromFile(path);
    const metadata = await parquetMetadataAsync(file);
    const columns = metadata.schema.slice(1).map(({ name }) => name);
    if (!columns.includes(field)) {
      throw new AlpsError('INVALID_TEXT', `${path} has no column "${field}"; it has ${columns.join(', ')}`);
    }
    let start = 0;
    for (const group of metadata.row_groups) {
      throwIfAborted(signal);
      const end = start + Number(group.num_rows);
      const rows = await parquetReadObjects({
        file,
        metadata,
        columns: [field],
        rowStart: start,
        rowEnd: end,
        compressors,
      });
      for (const row of rows) {
        const text = row[field];
        if (text === null || text === undefined) continue;
        if (typeof text !== 'string')
          throw new AlpsError('INVALID_TEXT', `${path}: column "${field}" does not hold text`);
        yield { text, end: true };
      }
      start = end;
    }
  } catch (cause) {
    if (cause instanceof AlpsError) throw cause;
    throw new AlpsError('INVALID_TEXT', `${path} cannot be read as parquet: ${(cause as Error).message}`, { cause });
  }
}
