import { type FileHandle, open } from 'node:fs/promises';
import { setImmediate } from 'node:timers/promises';
import {
  type AsyncBuffer,
  type FileMetaData,
  parquetMetadataAsync,
  parquetRead,
  parquetScan,
  parquetSchema,
  type RowGroup,
  type SubColumnData,
} from 'hyparquet';
import { compressors } from 'hyparquet-compressors';
import { AlpsError, fileSystemError, throwIfAborted } from '../errors.js';
import type { TextPart } from './text.js';
import { regularFileSize } from './text-file.js';

/** More than this of a row group's column, uncompressed, is refused: its bytes are read as a whole. */
const LARGEST_COLUMN_CHUNK = 2 ** 30;

/** What is decoded together at most, but for a page that has more: some milliseconds of work. */
const ROWS_AT_ONCE = 8192;
const BYTES_AT_ONCE = 2 ** 22;

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const decoding = {
  compressors,
  parsers: { stringFromBytes: (bytes: Uint8Array | undefined) => bytes && utf8.decode(bytes) },
};

interface ParquetFile {
  file: AsyncBuffer;
  metadata: FileMetaData;
}

/**
 * Reads one string column of a parquet file, some pages at a time; each value is a document, nulls are skipped, empty ones too unless `rows`.
 *
 * @throws AlpsError `INVALID_TEXT` (damaged file, no such column, a value that is not UTF-8), `FILE_SYSTEM`, `ABORTED`
 */
export function readParquet(
  path: string,
  { field: column, rows, signal }: { field: string; rows: boolean; signal?: AbortSignal },
): AsyncGenerator<TextPart> {
  return fromParquet(path, signal, async function* ({ file, metadata }) {
    checkColumn(path, column, parquetSchema(metadata).children);
    for (const group of metadata.row_groups) {
      const chunk = group.columns.find(({ meta_data }) => meta_data?.path_in_schema[0] === column)?.meta_data;
      const size = Number(chunk?.total_uncompressed_size ?? 0);
      if (size > LARGEST_COLUMN_CHUNK) {
        throw new AlpsError(
          'INVALID_TEXT',
          `${path}: column "${column}" has ${size} bytes in one row group; write it with smaller row groups`,
        );
      }
      for await (const values of pagesOf({ file, metadata }, group, { column, size })) {
        for (const value of values)
          if (typeof value === 'string' && (value !== '' || rows)) yield { text: value, end: true };
        await setImmediate();
        throwIfAborted(signal);
      }
    }
  });
}

/**
 * The rows of a parquet file as objects.
 *
 * @throws AlpsError as {@link readParquet}
 */
export function readParquetRecords(
  path: string,
  { limit, signal }: { limit: number; signal?: AbortSignal },
): AsyncGenerator<Record<string, unknown>> {
  return fromParquet(path, signal, async function* ({ file, metadata }) {
    const scan = await parquetScan({ file, metadata, ...decoding });
    const columns = parquetSchema(metadata).children.map(({ element }) => element.name);
    for (const { rowStart, rowEnd } of scan.ranges) {
      const some = Math.min(rowEnd, limit) - rowStart;
      if (some <= 0) return;
      const records: Record<string, unknown>[] = Array.from({ length: some }, () => ({}));
      for (const column of columns) {
        const values = await scan.readColumn({ column, rowStart, rowEnd: rowStart + some });
        for (const [i, record] of records.entries()) record[column] = values[i];
        await setImmediate();
        throwIfAborted(signal);
      }
      yield* records;
    }
  });
}

/** Opens a parquet file for what reads it; errors name the file. */
async function* fromParquet<T>(
  path: string,
  signal: AbortSignal | undefined,
  read: (parquet: ParquetFile) => AsyncGenerator<T>,
): AsyncGenerator<T> {
  await regularFileSize(path);
  const handle = await open(path, 'r').catch((error) => {
    throw fileSystemError('read', path, error);
  });
  try {
    const file = await parquetBytes(handle, signal);
    yield* read({ file, metadata: await parquetMetadataAsync(file) });
  } catch (error) {
    if (error instanceof AlpsError) throw error;
    if (typeof (error as { syscall?: unknown }).syscall === 'string') throw fileSystemError('read', path, error);
    throw new AlpsError('INVALID_TEXT', `${path} could not be read as parquet: ${(error as Error).message}`, {
      cause: error,
    });
  } finally {
    await handle.close();
  }
}

/** The values of a row group's column that is not nested, some pages at a time. */
async function* pagesOf(
  { file, metadata }: ParquetFile,
  group: RowGroup,
  { column, size }: { column: string; size: number },
): AsyncGenerator<Iterable<unknown>> {
  const groupOnly = { ...metadata, row_groups: [group] };
  const rows = Number(group.num_rows);
  const some = Math.min(ROWS_AT_ONCE, Math.ceil((rows * BYTES_AT_ONCE) / Math.max(1, size)));
  for (let start = 0; start < rows; ) {
    const pages: SubColumnData[] = [];
    await parquetRead({
      file,
      metadata: groupOnly,
      columns: [column],
      rowStart: start,
      rowEnd: Math.min(start + some, rows),
      useOffsetIndex: true,
      onPage: (page) => pages.push(page),
      ...decoding,
    });
    // The pages may begin before and end behind the rows that were asked for.
    const end = pages.at(-1)?.rowEnd ?? 0;
    if (end <= start) throw new Error(`its column "${column}" ends too early`);
    for (const { columnData, rowStart } of pages) yield columnData.slice(Math.max(0, start - rowStart));
    start = end;
  }
}

/** A file's bytes as hyparquet asks for them: for each of the pages of a column without an index, for the same bytes. */
async function parquetBytes(handle: FileHandle, signal?: AbortSignal): Promise<AsyncBuffer> {
  const { size: byteLength } = await handle.stat();
  const read = async (start: number, end: number) => {
    const bytes = new Uint8Array(Math.max(0, end - start));
    for (let done = 0; done < bytes.length; ) {
      const { bytesRead } = await handle.read(bytes, done, bytes.length - done, start + done);
      if (bytesRead === 0) throw new Error('the file ends too early');
      done += bytesRead;
    }
    return bytes.buffer;
  };
  let last: { start: number; end: number; bytes: Promise<ArrayBuffer> } | undefined;
  return {
    byteLength,
    slice: async (start, end = byteLength) => {
      throwIfAborted(signal);
      if (last?.start !== start || last.end !== end) last = { start, end, bytes: read(start, end) };
      return last.bytes;
    },
  };
}

const stringKinds: readonly string[] = ['STRING', 'UTF8', 'ENUM'];

function checkColumn(path: string, column: string, children: ReturnType<typeof parquetSchema>['children']): void {
  const found = children.find(({ element }) => element.name === column);
  if (found === undefined) {
    const names = children.slice(0, 50).map(({ element }) => element.name);
    throw new AlpsError('INVALID_TEXT', `${path} has no column "${column}". Its columns are: ${names.join(', ')}`);
  }
  const { type, converted_type, logical_type } = found.element;
  const kind = logical_type?.type ?? converted_type;
  if (found.children.length > 0 || type !== 'BYTE_ARRAY' || !(kind === undefined || stringKinds.includes(kind))) {
    const what = found.children.length > 0 ? 'nested values' : (kind ?? type);
    throw new AlpsError('INVALID_TEXT', `${path}: the column "${column}" does not hold strings but ${what}`);
  }
}
