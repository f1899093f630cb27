import { createHash, randomBytes } from 'node:crypto';
import { type FileHandle, link, open, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { AlpsError, fileSystemError, isCode } from '../errors.js';
import { openError } from './file-io.js';
import { flushPath } from './output-folder.js';

/** What a result depends on, by name: a later run goes on only where all of it is equal. */
export type Fingerprint = Record<string, unknown>;

/** What a run that may be gone on with leaves behind, beside its hidden folder. */
interface Progress {
  fingerprint: Fingerprint;
  /** Of each finished step: what the caller wants back, and the tensors that were written by then. */
  steps: { record: unknown; tensors: string[] }[];
}

/**
 * An output in the making under names that the next process finds: `.NAME.unfinished` (the folder), `.NAME.unfinished.json` (what is
 * finished, replaced whole after each step) and `.NAME.unfinished.lock` (who works on it). A long NAME is cut, with a hash of the whole behind it.
 */
export class Unfinished {
  readonly folder: string;
  readonly #out: string;
  readonly #file: string;
  readonly #lock: string;
  readonly #progress: Progress;

  private constructor(out: string, fingerprint: Fingerprint) {
    this.#out = out;
    this.folder = join(dirname(out), `.${shortened(basename(out))}.unfinished`);
    this.#file = `${this.folder}.json`;
    this.#lock = `${this.folder}.lock`;
    this.#progress = { fingerprint, steps: [] };
  }

  /**
   * Takes the lock, and what an earlier run left.
   * @param restart drop what is there, whatever it is
   * @throws AlpsError `FILE_SYSTEM` when another process works on the output, `INVALID_ARGUMENT` when what is there has another fingerprint
   */
  static async open(out: string, fingerprint: Fingerprint, restart: boolean): Promise<Unfinished> {
    const unfinished = new Unfinished(out, JSON.parse(JSON.stringify(fingerprint)) as Fingerprint);
    await unfinished.#takeLock();
    try {
      const found = restart ? undefined : await unfinished.#read();
      if (found) {
        unfinished.#compare(found.fingerprint);
        unfinished.#progress.steps.push(...found.steps);
      }
      return unfinished;
    } catch (error) {
      await unfinished.#unlock();
      throw error;
    }
  }

  /** The finished steps, in order. */
  get steps(): readonly { record: unknown; tensors: readonly string[] }[] {
    return this.#progress.steps;
  }

  /** Adds a finished step, on the disk when the promise settles. */
  async add(record: unknown, tensors: string[]): Promise<void> {
    this.#progress.steps.push({ record, tensors });
    const temporary = `${this.#file}.partial`;
    try {
      await writeFile(temporary, JSON.stringify(this.#progress));
      await flushPath(temporary);
      await rename(temporary, this.#file);
      await flushPath(dirname(this.#file));
    } catch (cause) {
      this.#progress.steps.pop(); // an earlier record is still there
      await rm(temporary, { force: true }).catch(() => undefined);
      throw fileSystemError('write', this.#file, cause);
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
    if (done || this.steps.length === 0) await rm(this.#file, { force: true }).catch(() => undefined);
    await this.#unlock();
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
      const { fingerprint, steps } = JSON.parse(text) as Progress;
      const good = Array.isArray(steps) && steps.every(({ tensors }) => Array.isArray(tensors));
      if (typeof fingerprint === 'object' && fingerprint !== null && good) return { fingerprint, steps };
    } catch {
      // Not JSON: said below.
    }
    throw new AlpsError('INVALID_ARGUMENT', `${this.#file} is not what an unfinished run leaves; ${this.#remedy()}`);
  }

  #compare(found: Fingerprint): void {
    const { fingerprint } = this.#progress;
    const names = [...new Set([...Object.keys(found), ...Object.keys(fingerprint)])];
    const other = names.filter((name) => JSON.stringify(found[name]) !== JSON.stringify(fingerprint[name]));
    if (other.length === 0) return;
    const list = other
      .map((name) => `${name} (${short(found[name])} then, ${short(fingerprint[name])} now)`)
      .join(', ');
    throw new AlpsError(
      'INVALID_ARGUMENT',
      `An unfinished run for ${this.#out} is there, and it differs in ${list}. The same model, text and options go on with it; ` +
        this.#remedy(),
    );
  }

  #remedy(): string {
    return 'to drop it and begin anew, ask for a restart (--restart, restart: true)';
  }

  async #takeLock(): Promise<void> {
    const own = `${this.#lock}.${randomBytes(6).toString('hex')}`;
    const holder: Holder = { pid: process.pid, host: hostname(), started: await startOf(process.pid) };
    try {
      await writeFile(own, JSON.stringify(holder), { flag: 'wx' });
    } catch (cause) {
      await rm(own, { force: true }).catch(() => undefined);
      throw fileSystemError('create a folder for the output', this.#out, cause);
    }
    try {
      for (let attempt = 0; ; attempt++) {
        try {
          await link(own, this.#lock); // fails where there is one: no two processes succeed
          return;
        } catch (cause) {
          if (!isCode(cause, 'EEXIST')) throw fileSystemError('lock', this.#out, cause);
          const held = await holderOf(this.#lock);
          if (attempt > 3 || (held && (await isAlive(held)))) throw this.#locked(held);
          if (held) await this.#dropStale(held);
        }
      }
    } finally {
      await rm(own, { force: true }).catch(() => undefined);
    }
  }

  /** Moves a dead process's lock aside, and back should it be another's by now. */
  async #dropStale(stale: Holder): Promise<void> {
    const aside = `${this.#lock}.${randomBytes(6).toString('hex')}`;
    try {
      await rename(this.#lock, aside);
    } catch {
      return; // gone
    }
    const moved = await holderOf(aside);
    if (moved && JSON.stringify(moved) !== JSON.stringify(stale)) await link(aside, this.#lock).catch(() => undefined);
    await rm(aside, { force: true });
  }

  #locked(held: Holder | undefined): AlpsError {
    const who = held ? `process ${held.pid}${held.host === hostname() ? '' : ` on ${held.host}`}` : 'another process';
    return new AlpsError(
      'FILE_SYSTEM',
      `Another run works on the output ${this.#out}: ${who}. Wait for it, or name another output; if it is gone, remove ${this.#lock}`,
    );
  }

  async #unlock(): Promise<void> {
    await rm(this.#lock, { force: true }).catch(() => undefined);
  }
}

interface Holder {
  pid: number;
  host: string;
  /** When the process began, in the system's own terms: process numbers come again, after a restart of a container at once. */
  started: string | undefined;
}

/** The boot and the clock tick at which a process began; undefined where the system does not tell. */
async function startOf(pid: number): Promise<string | undefined> {
  try {
    const boot = await readFile('/proc/sys/kernel/random/boot_id', 'utf8');
    const status = await readFile(`/proc/${pid}/stat`, 'utf8');
    const fields = status.slice(status.lastIndexOf(')') + 2).split(' '); // the name may hold spaces
    return `${boot.trim()} ${fields[19]}`;
  } catch {
    return undefined;
  }
}

async function holderOf(path: string): Promise<Holder | undefined> {
  try {
    return JSON.parse(await readFile(path, 'utf8')) as Holder;
  } catch {
    return undefined;
  }
}

/** Whether this machine has a process of this number. */
export function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return isCode(error, 'EPERM');
  }
}

/** Whether a lock's process may still run. One on another machine may. */
async function isAlive({ pid, host, started }: Holder): Promise<boolean> {
  if (host !== hostname()) return true;
  if (!isRunning(pid)) return false;
  const now = await startOf(pid);
  return started === undefined || now === undefined || started === now;
}

/** The hidden names must not pass 255 bytes where the final one does not, and two outputs must not share them. */
function shortened(name: string): string {
  return name.length <= 40
    ? name
    : `${name.slice(0, 40)}-${createHash('sha256').update(name).digest('hex').slice(0, 16)}`;
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
