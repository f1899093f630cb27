import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { createGunzip } from 'node:zlib';
import { AlpsError, fileSystemError, throwIfAborted } from '../errors.js';
import { decodeUtf8 } from './utf8.js';

const longestLine = 64 << 20;
const chunkSize = 256 * 1024;

/** The size of a file that has an end: a pipe or device is refused, as is a folder. */
export async function regularFileSize(path: string): Promise<number> {
  try {
    const info = await stat(path);
    if (!info.isFile()) throw new AlpsError('INVALID_TEXT', `${path} is not a regular file`);
    return info.size;
  } catch (cause) {
    throw fileSystemError('read', path, cause);
  }
}

/**
 * A file's text in pieces of bounded size, unzipped where its name ends with .gz.
 * @throws AlpsError `INVALID_TEXT` (not UTF-8, not a whole gzip file, shortened meanwhile, not a regular file), `FILE_SYSTEM`, `ABORTED`
 */
export function readPieces(path: string, signal?: AbortSignal): AsyncGenerator<string> {
  return decodeUtf8(readBytes(path, signal), path);
}

async function* readBytes(path: string, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
  const size = await regularFileSize(path);
  const file = createReadStream(path, { highWaterMark: chunkSize });
  const gunzip = path.toLowerCase().endsWith('.gz') ? file.pipe(createGunzip({ chunkSize })) : undefined;
  if (gunzip) file.on('error', (error) => gunzip.destroy(error));
  try {
    for await (const chunk of (gunzip ?? file) as AsyncIterable<Uint8Array>) {
      throwIfAborted(signal);
      yield chunk;
    }
    const read = gunzip ? await endOfPadding(path, gunzip.bytesWritten, signal) : file.bytesRead;
    if (read < size) throw new AlpsError('INVALID_TEXT', `${path} was shortened while it was read`);
  } catch (cause) {
    if ((cause as { code?: string }).code?.startsWith('Z_')) {
      throw new AlpsError('INVALID_TEXT', `${path} is not a whole gzip file: ${(cause as Error).message}`, { cause });
    }
    throw fileSystemError('read', path, cause);
  } finally {
    gunzip?.destroy();
    file.destroy();
  }
}

/** Node takes a zero byte behind a member for the end of a gzip file: what follows may be nothing but zeros. */
async function endOfPadding(path: string, start: number, signal?: AbortSignal): Promise<number> {
  let end = start;
  for await (const chunk of createReadStream(path, { start, highWaterMark: chunkSize }) as AsyncIterable<Uint8Array>) {
    throwIfAborted(signal);
    if (chunk.some((byte) => byte !== 0)) {
      throw new AlpsError('INVALID_TEXT', `${path} has more behind the zeros at byte ${start}; compress it anew`);
    }
    end += chunk.length;
  }
  return end;
}

/** The lines of a text file with their ends, some at a time. */
export async function* readLines(path: string, signal?: AbortSignal): AsyncGenerator<string[]> {
  let number = 1;
  let parts: string[] = [];
  let length = 0;
  const add = (part: string): void => {
    length += part.length;
    if (length > longestLine) throw badLine(path, number, `more than ${longestLine} characters`);
    parts.push(part);
  };
  for await (const text of readPieces(path, signal)) {
    const lines: string[] = [];
    let start = 0;
    for (let end = text.indexOf('\n') + 1; end > 0; end = text.indexOf('\n', start) + 1) {
      add(text.slice(start, end));
      start = end;
      lines.push(parts.join(''));
      parts = [];
      length = 0;
      number++;
    }
    yield lines;
    if (start < text.length) add(text.slice(start));
  }
  if (parts.length > 0) yield [parts.join('')];
}

/** The values of JSON lines; blank lines are skipped. */
export async function* readJsonValues(
  path: string,
  signal?: AbortSignal,
): AsyncGenerator<{ value: unknown; line: number }> {
  let line = 0;
  for await (const lines of readLines(path, signal)) {
    for (const text of lines) {
      line++;
      if (text.trim() !== '') yield { value: parseLine(text, path, line), line };
    }
  }
}

function parseLine(text: string, path: string, line: number): unknown {
  try {
    return JSON.parse(text.endsWith('\n') ? text.slice(0, -1) : text); // with its end, an error may be said to be in line 2
  } catch (error) {
    throw badLine(path, line, `not JSON (one object a line is expected): ${(error as Error).message}`, error);
  }
}

export function badLine(path: string, line: number, what: string, cause?: unknown): AlpsError {
  return new AlpsError('INVALID_TEXT', `${path}, line ${line}: ${what}`, { cause });
}
