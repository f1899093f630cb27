import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { flushPath } from '../checkpoint/output-folder.js';
import { fileSystemError } from '../errors.js';
import { digestOf } from './fingerprint.js';

/**
 * Finished parts of a long computation, one JSON file each in a folder. A part's name is the digest of all that its result
 * depends on, so a run with other options, another model or another version never takes it for its own.
 */
export class CellStore {
  readonly folder: string;

  private constructor(folder: string) {
    this.folder = folder;
  }

  static async open(folder: string): Promise<CellStore> {
    try {
      await mkdir(folder, { recursive: true });
      // What a killed process was writing.
      for (const name of await readdir(folder))
        if (name.endsWith('.partial')) await rm(join(folder, name), { force: true, recursive: true });
    } catch (cause) {
      throw fileSystemError('make the folder', folder, cause);
    }
    return new CellStore(folder);
  }

  /** The stored result for a key, or undefined. A file that cannot be read as one counts as not there. */
  async find<T>(key: unknown): Promise<T | undefined> {
    const path = join(this.folder, `${digestOf(key).slice(0, 32)}.json`);
    try {
      return (JSON.parse(await readFile(path, 'utf8')) as { result: T }).result;
    } catch {
      return undefined;
    }
  }

  async save(key: unknown, result: unknown): Promise<void> {
    const path = join(this.folder, `${digestOf(key).slice(0, 32)}.json`);
    try {
      await writeFile(`${path}.partial`, `${JSON.stringify({ key, result })}\n`);
      await flushPath(`${path}.partial`);
      await rename(`${path}.partial`, path);
    } catch (cause) {
      throw fileSystemError('write', path, cause);
    }
  }

  /** The result for a key: stored, or computed and stored. */
  async take<T>(key: unknown, compute: () => Promise<T>): Promise<{ result: T; stored: boolean }> {
    const found = await this.find<T>(key);
    if (found !== undefined) return { result: found, stored: true };
    const result = await compute();
    await this.save(key, result);
    return { result, stored: false };
  }
}
