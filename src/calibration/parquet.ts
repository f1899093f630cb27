import { type FileHandle, open } from 'node:fs/promises';
import { type AsyncBuffer, parquetMetadataAsync, parquetScan, parquetSchema } from 'hyparquet';
import { compressors } from 'hyparquet-compressors';
import { AlpsError, fileSystemError, throwIfAborted } from '../errors.js';
import type { TextPart } from './text.js';

/** A row group's column is decoded as a whole; more than this, uncompressed, is refused. */
const LARGEST_COLUMN_CHUNK = 2 ** 30;

/**
 * Reads one string column of a parquet file, row group by row group; each value is a document, nulls are skipped, empty ones too unless `rows`.
 *
 * @throws AlpsError `INVALID_TEXT` (damaged file, no such column, a value that is not UTF-8), `FILE_SYSTEM`
 */
export async function* readParquet(
  path: string,
  { field: column, rows, signal }: { field: string; rows: boolean; signal?: AbortSignal },
): AsyncGenerator<TextPart> {
  const handle = await open(path, 'r').catch((error) => {
    throw fileSystemError('read', path, error);
  });
  try {
    const file = await parquetBytes(handle, signal);
    const metadata = await parquetMetadataAsync(file);
    checkColumn(path, column, parquetSchema(metadata).children);
    const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
    const scan = await parquetScan({
      file,
      metadata,
      columns: [column],
      compressors,
      parsers: { stringFromBytes: (bytes: Uint8Array | undefined) => bytes && utf8.decode(bytes) },
    });
    let rowStart = 0;
    for (const group of metadata.row_groups) {
      throwIfAborted(signal);
      const rowEnd = rowStart + Number(group.num_rows);
      const chunk = group.columns.find(({ meta_data }) => meta_data?.path_in_schema[0] === column)?.meta_data;
      const size = Number(chunk?.total_uncompressed_size ?? 0);
      if (size > LARGEST_COLUMN_CHUNK) {
        throw new AlpsError(
          'INVALID_TEXT',
          `${path}: column "${column}" has ${size} bytes in one row group; write it with smaller row groups`,
        );
      }
      if (rowEnd > rowStart) {
        for (const value of (await scan.readColumn({ column, rowStart, rowEnd })) as ArrayLike<unknown> &
          Iterable<unknown>) {
          if (typeof value === 'string' && (value !== '' || rows)) yield { text: value, end: true };
        }
      }
      rowStart = rowEnd;
    }
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

/** A file's bytes as hyparquet asks for them. */
export async function parquetBytes(handle: FileHandle, signal?: AbortSignal): Promise<AsyncBuffer> {
  const { size: byteLength } = await handle.stat();
  return {
    byteLength,
    slice: async (start, end = byteLength) => {
      throwIfAborted(signal);
      const bytes = new Uint8Array(Math.max(0, end - start));
      for (let done = 0; done < bytes.length; ) {
        const { bytesRead } = await handle.read(bytes, done, bytes.length - done, start + done);
        if (bytesRead === 0) throw new Error('the file ends too early');
        done += bytesRead;
      }
      return bytes.buffer;
    },
  };
}

function checkColumn(path: string, column: string, children: ReturnType<typeof parquetSchema>['children']): void {
  const found = children.find(({ element }) => element.name === column);
  if (found === undefined) {
    const names = children.slice(0, 50).map(({ element }) => element.name);
    throw new AlpsError('INVALID_TEXT', `${path} has no column "${column}". Its columns are: ${names.join(', ')}`);
  }
  if (found.children.length > 0 || found.element.type !== 'BYTE_ARRAY') {
    throw new AlpsError('INVALID_TEXT', `${path}: the column "${column}" does not hold strings`);
  }
}
