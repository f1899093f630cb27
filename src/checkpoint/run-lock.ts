import { randomBytes } from 'node:crypto';
import { readlinkSync } from 'node:fs';
import { type FileHandle, link, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { hostname } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { addon } from '../device/addon.js';
import { AlpsError, fileSystemError, isCode } from '../errors.js';

/**
 * A file that keeps other processes out for as long as this one lives, and its thread; one whose holder is gone is taken over. Its holder has it
 * locked in the file system as well, where that can be done: so those are kept out, too, who do not see the process, as in another container.
 */
export class RunLock {
  readonly #path: string;
  readonly #file: FileHandle;

  private constructor(path: string, file: FileHandle) {
    this.#path = path;
    this.#file = file;
  }

  /**
   * @param what is worked on, in words
   * @throws AlpsError `FILE_SYSTEM` when another process has it
   */
  static async take(path: string, what: string): Promise<RunLock> {
    let own = await Candidate.create(path, what);
    let taken = false;
    try {
      for (let attempt = 0; ; attempt++) {
        try {
          await link(own.path, path); // fails where there is one: no two processes succeed
          taken = true;
          break;
        } catch (cause) {
          // One that stood still for long may have lost its file to another that cleared away: it begins again.
          if (isCode(cause, 'ENOENT') && attempt <= 3) {
            await own.file.close();
            own = await Candidate.create(path, what);
            continue;
          }
          if (!isCode(cause, 'EEXIST')) throw fileSystemError('lock', what, cause);
          const held = await holderOf(path);
          if (attempt > 3 || (held && (await isAlive(held)))) throw locked(path, what, held);
          if (held) await dropStale(path, held);
        }
      }
    } finally {
      if (!taken) await own.file.close();
      await rm(own.path, { force: true }).catch(() => undefined);
    }
    await clearAway(path, own.file);
    return new RunLock(path, own.file);
  }

  async release(): Promise<void> {
    await rm(this.#path, { force: true }).catch(() => undefined);
    await this.#file.close().catch(() => undefined);
  }
}

/** A file of this process's that becomes the lock where there is none. */
class Candidate {
  readonly path: string;
  readonly file: FileHandle;

  private constructor(path: string, file: FileHandle) {
    this.path = path;
    this.file = file;
  }

  /** @throws AlpsError `FILE_SYSTEM` */
  static async create(lock: string, what: string): Promise<Candidate> {
    const path = besides(lock);
    let file: FileHandle | undefined;
    try {
      file = await open(path, 'wx');
      const locked = addon().lockFile(file.fd) === 'locked';
      await file.writeFile(JSON.stringify({ ...(await ownHolder()), locked }));
      return new Candidate(path, file);
    } catch (cause) {
      await file?.close();
      await rm(path, { force: true }).catch(() => undefined);
      throw fileSystemError('create a lock for', what, cause);
    }
  }
}

/** A name beside a lock that no other has; see {@link clearAway}. */
const besides = (path: string) => `${path}.${randomBytes(6).toString('hex')}`;

/** Milliseconds after which a file beside a lock is no longer one that is being made, on this machine and on others. */
const [settled, forgotten] = [10_000, 24 * 3_600_000];

/**
 * Removes what processes that were killed left beside a lock: files that were to become the lock, or were moved aside.
 * @param own the lock's file, which has the file system's time
 */
async function clearAway(path: string, own: FileHandle): Promise<void> {
  try {
    const now = (await own.stat()).mtimeMs;
    const start = `${basename(path)}.`;
    for (const name of await readdir(dirname(path))) {
      if (!name.startsWith(start) || !/^[0-9a-f]{12}$/.test(name.slice(start.length))) continue;
      const left = join(dirname(path), name);
      if (await isLeft(left, now).catch(() => false)) await rm(left, { force: true });
    }
  } catch {
    // The next one may.
  }
}

async function isLeft(path: string, now: number): Promise<boolean> {
  const age = now - (await stat(path)).mtimeMs;
  if (age < settled) return false; // looked at no further: to see whether it is locked it would have to be locked
  const held = await holderOf(path);
  if (held) return !held.isHeld && (held.host === hostname() ? !(await isAlive(held)) : age > forgotten);
  await using file = await open(path, 'r+');
  return addon().lockFile(file.fd) !== 'held'; // its process had not written it yet
}

/**
 * Removes a dead process's lock. One that was locked in the file system is removed by whoever has it locked there now: no two have, and the path
 * leads to no other file meanwhile.
 */
async function dropStale(path: string, stale: Holder): Promise<void> {
  if (!stale.locked) return moveAside(path, stale);
  try {
    await using file = await open(path, 'r+');
    if (addon().lockFile(file.fd) !== 'locked') return; // another is at it, or it is another's by now
    const { locked } = JSON.parse(await file.readFile('utf8')) as Holder;
    const [own, there] = await Promise.all([file.stat({ bigint: true }), stat(path, { bigint: true })]);
    if (locked && own.ino === there.ino && own.dev === there.dev) await rm(path);
  } catch {
    // Gone, or it cannot be removed: who tries again finds out.
  }
}

/** Moves a dead process's lock aside, and back should it be another's by now. */
async function moveAside(path: string, stale: Holder): Promise<void> {
  const aside = besides(path);
  try {
    await rename(path, aside);
  } catch {
    return; // gone
  }
  const moved = await holderOf(aside);
  if (moved && (moved.isHeld || JSON.stringify(moved) !== JSON.stringify(stale)))
    await link(aside, path).catch(() => undefined);
  await rm(aside, { force: true });
}

function locked(path: string, what: string, held: Holder | undefined): AlpsError {
  const who = held ? `process ${held.pid}${held.host === hostname() ? '' : ` on ${held.host}`}` : 'another process';
  return new AlpsError(
    'FILE_SYSTEM',
    `Another run works on ${what}: ${who}. Wait for it, or name another output; if it is gone, remove ${path}`,
  );
}

interface Holder {
  pid: number;
  host: string;
  /** When the process began, in the system's own terms: process numbers come again, after a restart of a container at once. */
  started: string | undefined;
  /** The thread of the process, which may be a worker that ends before it does, and when it began. */
  thread?: string | undefined;
  threadStarted?: string | undefined;
  /** Whether it has locked the file in the file system. */
  locked?: boolean;
  /** Whether somebody had when the file was read. */
  isHeld?: boolean;
}

async function ownHolder(): Promise<Holder> {
  const { pid } = process;
  const thread = ownThread();
  const threadStarted = thread === undefined ? undefined : await startOf(`${pid}/task/${thread}`);
  return { pid, host: hostname(), started: await startOf(pid), thread, threadStarted };
}

/** The system's number of this thread; undefined where it does not tell. */
function ownThread(): string | undefined {
  try {
    return basename(readlinkSync('/proc/thread-self')); // asynchronously it would be another thread's
  } catch {
    return undefined;
  }
}

/** The boot and the clock tick at which a process, or a thread of it, began; undefined where the system does not tell. */
async function startOf(pid: number | string): Promise<string | undefined> {
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
  let file: FileHandle | undefined;
  try {
    file = await open(path, 'r+'); // for writing: where locks go over a network, it takes that
    const holder = JSON.parse(await file.readFile('utf8')) as Holder;
    return { ...holder, isHeld: addon().lockFile(file.fd) === 'held' };
  } catch {
    return undefined;
  } finally {
    await file?.close();
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

/** Whether a lock's process, and its thread, may still run. Those on another machine may. */
async function isAlive({ pid, host, started, thread, threadStarted, locked, isHeld }: Holder): Promise<boolean> {
  if (isHeld || host !== hostname()) return true;
  if (locked) return false;
  if (!isRunning(pid)) return false;
  const now = await startOf(pid);
  if (started !== undefined && now !== undefined && started !== now) return false;
  return now === undefined || threadStarted === undefined || !(await isThreadGone(pid, thread!, threadStarted));
}

/** Whether a process that runs has no thread of this number any more, or another one. */
async function isThreadGone(pid: number, thread: string, started: string): Promise<boolean> {
  const now = await startOf(`${pid}/task/${thread}`);
  if (now !== undefined) return now !== started;
  try {
    await stat(`/proc/${pid}/task/${thread}`);
    return false;
  } catch (error) {
    return isCode(error, 'ENOENT', 'ESRCH'); // not where it could not be read
  }
}
