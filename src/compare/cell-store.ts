import { randomBytes } from 'node:crypto';
import { readlinkSync } from 'node:fs';
import { readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { openError } from '../checkpoint/file-io.js';
import { flushPath, makeFolder } from '../checkpoint/output-folder.js';
import { isRunning } from '../checkpoint/run-lock.js';
import { fileSystemError, isCode } from '../errors.js';
import { digestOf } from './fingerprint.js';

/** Ours, and the checkpoint writer's folder beside it: where the process is seen, its number, and a name of its own. */
const scratchName = /\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.partial(?:\.partial-[0-9a-f]+(?:\.old)?)?$/;
/** Of processes that are not seen from here, what was not touched for so long is removed as well. */
const forgotten = 7 * 24 * 3600_000;

/** Where process numbers mean the same: a machine, or a container of it. */
const place = digestOf([hostname(), pidNamespace()]).slice(0, 8);

function pidNamespace(): string {
  try {
    return readlinkSync('/proc/self/ns/pid');
  } catch {
    return ''; // not a system that has them
  }
}

/**
 * Finished parts of a long computation, one JSON file each in a folder. A part's name is the digest of all that its result
 * depends on, so a run with other options, another model or another version never takes it for its own.
 */
export class CellStore {
  readonly folder: string;
  readonly #own = `${place}-${process.pid}-${randomBytes(4).toString('hex')}`;

  private constructor(folder: string) {
    this.folder = folder;
  }

  static async open(folder: string): Promise<CellStore> {
    try {
      await makeFolder(folder);
      // What killed processes were writing.
      for (const name of await readdir(folder)) {
        const [, where, pid] = scratchName.exec(name) ?? [];
        if (pid === undefined) continue;
        const path = join(folder, name);
        const isLeft = where === place ? !isRunning(Number(pid)) : (await age(path)) > forgotten;
        if (isLeft) await rm(path, { force: true, recursive: true });
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
    return join(this.folder, `${name}.${this.#own}.partial`);
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

/** Milliseconds since something was touched; 0 where it is gone. */
async function age(path: string): Promise<number> {
  try {
    return Date.now() - (await stat(path)).mtimeMs;
  } catch {
    return 0;
  }
}
