import { createHash } from 'node:crypto';
import { type FileHandle, open, readFile, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { AlpsError, fileSystemError, isCode } from '../errors.js';
import { openError } from './file-io.js';
import { flushPath, replaceFile } from './output-folder.js';
import { RunLock } from './run-lock.js';

/** What a result depends on, by name: a later run goes on only where all of it is equal. */
export type Fingerprint = Record<string, unknown>;

/** What a run that may be gone on with leaves behind, beside its hidden folder. */
interface Progress {
  fingerprint: Fingerprint;
  /** What was made before the first step, for those who go on. */
  prepared?: unknown;
  /** Of each finished step: what the caller wants back, and the tensors that were written by then. */
  steps: { record: unknown; tensors: string[] }[];
}

/**
 * An output in the making under names that the next process finds: `.NAME.unfinished` (the folder), `.NAME.unfinished.json` (what is
 * finished, and its hash, replaced whole after each step) and `.NAME.unfinished.lock` (who works on it). A long NAME is cut, with a hash of
 * the whole behind it.
 */
export class Unfinished {
  readonly folder: string;
  readonly #file: string;
  readonly #lock: RunLock;
  readonly #progress: Progress;

  private constructor(folder: string, lock: RunLock, fingerprint: Fingerprint) {
    this.folder = folder;
    this.#file = `${folder}.json`;
    this.#lock = lock;
    this.#progress = { fingerprint, steps: [] };
  }

  /**
   * Takes the lock, and what an earlier run left.
   * @param restart drop what is there, whatever it is
   * @throws AlpsError `FILE_SYSTEM` when another process works on the output, `INVALID_ARGUMENT` when what is there has another fingerprint
   */
  static async open(out: string, fingerprint: Fingerprint, restart: boolean): Promise<Unfinished> {
    const folder = join(dirname(out), `.${shortened(basename(out))}.unfinished`);
    const now = JSON.parse(JSON.stringify(fingerprint)) as Fingerprint;
    const lock = await RunLock.take(`${folder}.lock`, `the output ${out}`);
    try {
      const unfinished = new Unfinished(folder, lock, now);
      const found = restart ? undefined : await unfinished.#read();
      if (found) {
        checkSameRun(`An unfinished run for ${out} is there`, found.fingerprint, now);
        unfinished.#progress.steps.push(...found.steps);
        unfinished.#progress.prepared = found.prepared;
      }
      return unfinished;
    } catch (error) {
      await lock.release();
      throw error;
    }
  }

  /** The finished steps, in order. */
  get steps(): readonly { record: unknown; tensors: readonly string[] }[] {
    return this.#progress.steps;
  }

  get prepared(): unknown {
    return this.#progress.prepared;
  }

  /** Keeps what was made before the first step, on the disk when the promise settles. */
  async prepare(prepared: unknown): Promise<void> {
    this.#progress.prepared = prepared;
    await this.#write();
  }

  /** Whether there is nothing to go on with. */
  get isEmpty(): boolean {
    return this.steps.length === 0 && this.prepared === undefined;
  }

  /** Adds a finished step, on the disk when the promise settles. */
  async add(record: unknown, tensors: string[]): Promise<void> {
    this.#progress.steps.push({ record, tensors });
    try {
      await this.#write();
    } catch (cause) {
      this.#progress.steps.pop(); // an earlier record is still there
      throw cause;
    }
  }

  /** Forgets the steps that an earlier run left: its folder was not as they say. */
  forget(): void {
    this.#progress.steps.length = 0;
  }

  /** To be called before the folder is made anew: a record of other files beside it would be taken for its own once this run is killed. */
  async begin(): Promise<void> {
    try {
      await rm(this.#file, { force: true });
    } catch (cause) {
      throw fileSystemError('remove', this.#file, cause);
    }
    await flushPath(dirname(this.#file));
  }

  /** Lets others at it. What is finished stays for them, unless nothing is, or `done`. */
  async close(done: boolean): Promise<void> {
    if (done || this.isEmpty) await rm(this.#file, { force: true }).catch(() => undefined);
    await this.#lock.release();
  }

  async #write(): Promise<void> {
    const progress = JSON.stringify(this.#progress);
    await replaceFile(this.#file, `{"sha256":"${sha256(progress)}","progress":${progress}}`);
  }

  async #read(): Promise<Progress | undefined> {
    let text: string;
    try {
      text = await readFile(this.#file, 'utf8');
    } catch (cause) {
      if (isCode(cause, 'ENOENT')) return undefined;
      throw fileSystemError('read', this.#file, cause);
    }
    try {
      const { sha256: expected, progress } = JSON.parse(text) as { sha256: string; progress: Progress };
      if (sha256(JSON.stringify(progress)) === expected) return progress;
    } catch {
      // Not such JSON: said below.
    }
    throw new AlpsError('INVALID_ARGUMENT', `${this.#file} is not what an unfinished run leaves; ${restartRemedy}`);
  }
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}

/** The hidden names must not pass 255 bytes where the final one does not, and two outputs must not share them. */
function shortened(name: string): string {
  return name.length <= 40 ? name : `${name.slice(0, 40)}-${sha256(name).slice(0, 16)}`;
}

export const restartRemedy = 'to discard it and start over, use --restart (restart: true)';

/**
 * @param what was found, as a message begins
 * @throws AlpsError `INVALID_ARGUMENT` with all that differs between what an earlier run depended on and what this one does
 */
export function checkSameRun(what: string, found: Fingerprint, now: Fingerprint): void {
  const names = [...new Set([...Object.keys(found), ...Object.keys(now)])];
  const other = names.filter((name) => JSON.stringify(found[name]) !== JSON.stringify(now[name]));
  if (other.length === 0) return;
  const list = other.map((name) => `${name} (${short(found[name])} then, ${short(now[name])} now)`).join(', ');
  throw new AlpsError(
    'INVALID_ARGUMENT',
    `${what}, and it differs in ${list}. Only the same model, text and options can resume it; ${restartRemedy}`,
  );
}

function short(value: unknown): string {
  const text = typeof value === 'string' ? value : (JSON.stringify(value) ?? 'none');
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

/** Opens a file that is there, for reading and writing; undefined when there is none, or its size is not the expected one. */
export async function openUnfinishedShard(path: string, size: number): Promise<FileHandle | undefined> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(path, 'r+');
    if ((await handle.stat()).size === size) return handle;
    await handle.close();
    return undefined;
  } catch (cause) {
    await handle?.close();
    if (isCode(cause, 'ENOENT')) return undefined;
    // Not to be taken for a file that is not there: what is finished would be thrown away.
    throw openError(path, cause);
  }
}
