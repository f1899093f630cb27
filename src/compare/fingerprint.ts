import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Checkpoint } from '../checkpoint/folder.js';
import { fileSystemError, throwIfAborted } from '../errors.js';

/** SHA-256 of a model's configuration and weights, hexadecimal. */
export async function fingerprint(checkpoint: Checkpoint, signal?: AbortSignal): Promise<string> {
  const hash = createHash('sha256');
  const { folder } = checkpoint;
  hash.update(
    await readFile(join(folder, 'config.json')).catch((cause) => {
      throw fileSystemError('read', join(folder, 'config.json'), cause);
    }),
  );
  for (const shard of checkpoint.shardNames) {
    const path = join(folder, shard);
    const file = createReadStream(path, { highWaterMark: 1 << 20 });
    try {
      for await (const chunk of file) {
        throwIfAborted(signal);
        hash.update(chunk);
      }
    } catch (cause) {
      throw fileSystemError('read', path, cause);
    }
  }
  return hash.digest('hex');
}

/** SHA-256 of a value's JSON with its keys sorted, hexadecimal. */
export function digestOf(value: unknown): string {
  const sorted = JSON.stringify(value, (_key, item: unknown) =>
    typeof item === 'object' && item !== null && !Array.isArray(item)
      ? Object.fromEntries(Object.entries(item).sort(([a], [b]) => (a < b ? -1 : 1)))
      : item,
  );
  return createHash('sha256').update(sorted).digest('hex');
}
