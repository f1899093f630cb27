// What a finished output holds, for tests that compare two of them; plain JavaScript, as processes of their own use it as well.
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** Digests of a folder's files by name, sorted; of pruning.json without its times. */
export function digests(folder) {
  const out = {};
  for (const name of readdirSync(folder).sort()) {
    const bytes = readFileSync(join(folder, name));
    const timeless = (key, value) => (key === 'milliseconds' ? 0 : value);
    const data = name === 'pruning.json' ? JSON.stringify(JSON.parse(bytes.toString()), timeless) : bytes;
    out[name] = createHash('sha256').update(data).digest('hex');
  }
  return out;
}
