import { readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openError } from '../checkpoint/file-io.js';
import { flushPath, makeFolder } from '../checkpoint/output-folder.js';
import { isRunning } from '../checkpoint/run-lock.js';
import { fileSystemError, isCode } from '../errors.js';
import { digestOf } from './fingerprint.js';

/** Ours, and the checkpoint writer's folder beside it. */
const scratchName = /\.(\d+)\.partial(?:\.partial-[0-9a-f]+(?:\.old)?)?$/;

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
      await makeFolder(folder);
      // What killed processes were writing.
      for (const name of await readdir(folder)) {
        const pid = scratchName.exec(name)?.[1];
        if (pid !== undefined && !isRunning(Number(pid)))
          await rm(join(folder, name), { force: true, recursive: true });
      }
    } catch (cause) {
      throw fileSystemError('make the folder', folder, cause);
    }
    return new CellStore(folder);
  }

  /**
   * The stored result for a key, or undefined. A file that does not hold one counts as not there.
   * @throws AlpsError `FILE_SYSTEM` when there is one that cannot be read: computing it again may take hours
   */
  async find<T>(key: unknown): Promise<T | undefined> {
    const path = join(this.folder, `${digestOf(key).slice(0, 32)}.json`);
    let text: string;
    try {
      text = await readFile(path, 'utf8');
    } catch (cause) {
      if (isCode(cause, 'ENOENT')) return undefined;
      throw openError(path, cause);
    }
    try {
      return (JSON.parse(text) as { result: T }).result;
    } catch {
      return undefined;
    }
  }

  /** A name in the folder for what is not finished; should the process be killed, the next one removes it. */
  scratch(name: string): string {
    return join(this.folder, `${name}.${process.pid}.partial`);
  }

  async save(key: unknown, result: unknown): Promise<void> {
    const name = `${digestOf(key).slice(0, 32)}.json`;
    const [path, partial] = [join(this.folder, name), this.scratch(name)];
    try {
      await writeFile(partial, `${JSON.stringify({ key, result })}\n`);
      await flushPath(partial);
      await rename(partial, path);
    } catch (cause) {
      await rm(partial, { force: true }).catch(() => undefined);
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
