import { readParquetRecords } from '../../calibration/parquet.js';
import { badLine, readJsonValues } from '../../calibration/text-file.js';
import { isObject } from '../../checkpoint/json.js';
import { AlpsError } from '../../errors.js';

export type TaskRecord = Readonly<Record<string, unknown>>;

/**
 * The records of a data set's file: JSON lines (.jsonl, .json, also .gz) or parquet, in their order, at most `limit`.
 * @throws AlpsError `INVALID_TEXT` (not such a file, a bad line with its number), `FILE_SYSTEM`, `ABORTED`
 */
export async function readRecords(path: string, limit: number, signal?: AbortSignal): Promise<TaskRecord[]> {
  const records: TaskRecord[] = [];
  for await (const record of eachRecord(path, limit, signal)) {
    records.push(record);
    if (records.length >= limit) break;
  }
  return records;
}

function eachRecord(path: string, limit: number, signal?: AbortSignal): AsyncGenerator<TaskRecord> {
  if (/\.parquet$/i.test(path)) return readParquetRecords(path, { limit, signal });
  if (/\.(jsonl|ndjson|json)(\.gz)?$/i.test(path)) return readLineRecords(path, signal);
  throw new AlpsError(
    'INVALID_TEXT',
    `${path} has no known format for a data set: expected .jsonl (also .gz) or .parquet`,
  );
}

async function* readLineRecords(path: string, signal?: AbortSignal): AsyncGenerator<TaskRecord> {
  for await (const { value, line } of readJsonValues(path, signal)) {
    if (!isObject(value)) throw badLine(path, line, 'not a JSON object');
    yield value;
  }
}
