import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { createGunzip } from 'node:zlib';
import { parquetMetadataAsync, parquetReadObjects } from 'hyparquet';
import { compressors } from 'hyparquet-compressors';
import { parquetBytes } from '../../calibration/parquet.js';
import { AlpsError, fileSystemError, throwIfAborted } from '../../errors.js';

export type TaskRecord = Readonly<Record<string, unknown>>;

/**
 * The records of a data set's file: JSON lines (.jsonl, .json, also .gz) or parquet, in their order.
 * @throws AlpsError `INVALID_TEXT` (not such a file, a bad line with its number), `FILE_SYSTEM`, `ABORTED`
 */
export async function readRecords(path: string, limit: number, signal?: AbortSignal): Promise<TaskRecord[]> {
  if (/\.parquet$/i.test(path)) return readParquetRecords(path, limit, signal);
  if (/\.(jsonl|ndjson|json)(\.gz)?$/i.test(path)) return readLineRecords(path, limit, signal);
  throw new AlpsError(
    'INVALID_TEXT',
    `${path} has no known format for a data set: expected .jsonl (also .gz) or .parquet`,
  );
}

async function readLineRecords(path: string, limit: number, signal?: AbortSignal): Promise<TaskRecord[]> {
  const records: TaskRecord[] = [];
  const file = createReadStream(path);
  const input = path.toLowerCase().endsWith('.gz') ? file.pipe(createGunzip()) : file;
  if (input !== file) file.on('error', (error) => input.destroy(error));
  const lines = createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY });
  let number = 0;
  try {
    for await (const line of lines) {
      throwIfAborted(signal);
      number++;
      if (line.trim() === '') continue;
      if (records.length >= limit) break;
      records.push(parseLine(line, path, number));
    }
  } catch (cause) {
    throw cause instanceof AlpsError ? cause : fileSystemError('read', path, cause);
  } finally {
    lines.close();
    input.destroy();
    file.destroy();
  }
  return records;
}

function parseLine(line: string, path: string, number: number): TaskRecord {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    throw new AlpsError('INVALID_TEXT', `${path}, line ${number}: not JSON: ${(cause as Error).message}`, { cause });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new AlpsError('INVALID_TEXT', `${path}, line ${number}: not a JSON object`);
  return value as TaskRecord;
}

async function readParquetRecords(path: string, limit: number, signal?: AbortSignal): Promise<TaskRecord[]> {
  const handle = await open(path, 'r').catch((cause) => {
    throw fileSystemError('read', path, cause);
  });
  try {
    const file = await parquetBytes(handle, signal);
    const metadata = await parquetMetadataAsync(file);
    const rowEnd = Math.min(limit, Number(metadata.num_rows));
    return (await parquetReadObjects({ file, metadata, compressors, rowStart: 0, rowEnd })) as TaskRecord[];
  } catch (cause) {
    if (cause instanceof AlpsError) throw cause;
    throw new AlpsError('INVALID_TEXT', `${path} could not be read as parquet: ${(cause as Error).message}`, { cause });
  } finally {
    await handle.close();
  }
}
