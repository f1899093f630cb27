import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { copyFile, type FileHandle, mkdir, open, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { types } from 'node:util';
import { AlpsError, describe, fileSystemError, invalidArgument, throwIfAborted } from '../errors.js';
import { pieceBytes, readFully, writeFully } from './file-io.js';
import type { Checkpoint } from './folder.js';
import { encodeHeader } from './header.js';
import { indexFile } from './model-files.js';
import { checkOutput, flushPath, publish } from './output-folder.js';
import { type Fingerprint, openUnfinishedShard, Unfinished } from './unfinished.js';

export interface WriterOptions {
  source: Checkpoint;
  /** The folder to make. Its parent must exist. */
  out: string;
  /** Whether an existing folder may be replaced. Default false. */
  overwrite?: boolean;
  /**
   * Makes the output one that a later process can go on with, should this one be killed or fail: see {@link CheckpointWriter.step}.
   * What an earlier run left is taken where the fingerprints are equal, refused where not, and dropped with `restart`.
   */
  resume?: { fingerprint: Fingerprint; restart?: boolean };
  signal?: AbortSignal;
}

/** One of the equal parts that a tensor is cut into. */
export interface TensorPart {
  index: number;
  count: number;
}
const whole: TensorPart = { index: 0, count: 1 };

/** Bytes that {@link CheckpointWriter.queue} keeps at most before it waits. */
const mostBehind = 2 ** 28;

/** A shard that is being written: its full size is set, so tensors may come in any order. */
interface OpenShard {
  path: string;
  handle: FileHandle;
  /** Tensor name → first byte in the file. */
  positions: Map<string, number>;
}

/**
 * Writes a checkpoint with its source's layout: the same shards, order, dtypes and metadata. Everything goes into a hidden folder
 * `.<name>.partial-<random>` beside the final one, is flushed to the disk, and appears under the final name by one rename. Tensors that
 * were not written are copied byte for byte, as are config.json, the tokenizer and other files of the source.
 *
 * A failure of any call removes the hidden folder; only a killed process leaves it. With `resume` the folder is `.<name>.unfinished`, and
 * stays, once a step is finished, for the next run to go on with.
 */
export class CheckpointWriter {
  /** The final folder: absolute, without symbolic links. */
  readonly out: string;
  readonly #options: WriterOptions;
  readonly #partial: string;
  readonly #unfinished: Unfinished | undefined;
  readonly #shards: OpenShard[] = [];
  readonly #written = new Set<string>();
  /** Of tensors that are partly written: the parts. */
  readonly #parts = new Map<string, Set<number>>();
  readonly #pending = new Set<Promise<void>>();
  /** Bytes of {@link queue} that are not written yet. */
  #behind = 0;
  /** Of a write that nobody waited for. */
  #failure: unknown;
  #removal: Promise<void> | undefined;
  /** Tensors written since the last step. */
  #sinceStep: string[] = [];
  #state: 'open' | 'finished' | 'aborted' = 'open';

  private constructor(options: WriterOptions, out: string, unfinished?: Unfinished) {
    this.#options = options;
    this.out = out;
    this.#unfinished = unfinished;
    // Cut short, since the temporary name must not pass 255 bytes where the final one does not.
    const name = basename(out).slice(0, 40);
    this.#partial = unfinished?.folder ?? join(dirname(out), `.${name}.partial-${randomBytes(6).toString('hex')}`);
  }

  /**
   * Makes the hidden folder with all shards at their full size.
   * @throws AlpsError `INVALID_ARGUMENT` when the output is the source, contains it or lies inside it, or exists already;
   * `FILE_SYSTEM` when it cannot be made or another process works on it; `ABORTED`. With `resume` `INVALID_ARGUMENT` also when what is
   * there has another fingerprint
   */
  static async create(options: WriterOptions): Promise<CheckpointWriter> {
    throwIfAborted(options.signal);
    const out = await checkOutput(options.source.folder, options.out, options.overwrite ?? false);
    const { resume } = options;
    const unfinished = resume && (await Unfinished.open(out, resume.fingerprint, resume.restart ?? false));
    const writer = new CheckpointWriter(options, out, unfinished);
    try {
      if (await writer.#takeUp()) return writer;
      if (unfinished) {
        await unfinished.begin();
        await rm(writer.#partial, { recursive: true, force: true });
      }
      await mkdir(writer.#partial);
      for (const index of options.source.shards.keys()) await writer.#openShard(index);
      return writer;
    } catch (error) {
      await writer.abort();
      throw fileSystemError('create a folder for the output', options.out, error);
    }
  }

  /** Opens what an earlier run left; false when there is nothing, or not what its record says. */
  async #takeUp(): Promise<boolean> {
    const unfinished = this.#unfinished;
    if (!unfinished || unfinished.isEmpty) return false;
    for (const index of this.#options.source.shards.keys()) {
      const { path, positions, size } = this.#layout(index);
      const handle = await openUnfinishedShard(path, size);
      if (!handle) {
        await Promise.all(this.#shards.splice(0).map((shard) => shard.handle.close()));
        unfinished.forget();
        return false;
      }
      this.#shards.push({ path, handle, positions });
    }
    // Of a run that was killed while it finished.
    const { shardNames } = this.#options.source;
    for (const name of await readdir(this.#partial))
      if (!shardNames.includes(name)) await rm(join(this.#partial, name), { recursive: true, force: true });
    for (const { tensors } of unfinished.steps) for (const name of tensors) this.#written.add(name);
    return true;
  }

  /** A shard's file: where each tensor begins, and the size of all. */
  #layout(index: number) {
    const { source } = this.#options;
    const shard = source.shards[index]!;
    const tensors = [...shard.tensors.values()];
    const header = encodeHeader(tensors, shard.metadata ?? { format: 'pt' });
    const positions = new Map<string, number>();
    let size = header.length;
    for (const { name, byteLength } of tensors) {
      positions.set(name, size);
      size += byteLength;
    }
    return { path: join(this.#partial, source.shardNames[index]!), header, positions, size };
  }

  async #openShard(index: number): Promise<void> {
    const { path, header, positions, size } = this.#layout(index);
    const handle = await open(path, 'wx');
    this.#shards.push({ path, handle, positions });
    await handle.truncate(size);
    await writeFully(handle, path, header, 0, this.#options.signal);
  }

  /** What was recorded of the steps that earlier runs finished. */
  get finishedSteps(): readonly unknown[] {
    return this.#unfinished?.steps.map(({ record }) => record) ?? [];
  }

  /** What an earlier run kept by {@link prepare}. */
  get prepared(): unknown {
    return this.#unfinished?.prepared;
  }

  /** Keeps a value for a later run, before the first step. Does nothing without `resume`. */
  async prepare(value: unknown): Promise<void> {
    this.#checkOpen();
    await this.#unfinished?.prepare(value);
  }

  /**
   * Ends a step: all that was written so far is on the disk when the promise settles, and a later run gets `record` back from
   * {@link finishedSteps}. Does nothing without `resume`.
   */
  async step(record: unknown): Promise<void> {
    if (!this.#unfinished) return;
    this.#checkOpen();
    const tensors = this.#sinceStep;
    this.#sinceStep = [];
    try {
      await Promise.all(this.#pending);
      for (const { path, handle } of this.#shards) {
        await handle.datasync().catch((cause) => {
          throw fileSystemError('flush', path, cause);
        });
      }
      await this.#unfinished.add(record, tensors);
    } catch (error) {
      await this.abort();
      throw error;
    }
  }

  /** Fills `out` with the bytes, from `offset` on, of a tensor that was written. */
  async readBack(name: string, out: Uint8Array, offset = 0): Promise<void> {
    this.#checkOpen();
    const shard = this.#shards.find(({ positions }) => positions.has(name));
    if (!shard || !this.#written.has(name)) throw new AlpsError('INTERNAL', `Tensor ${describe(name)} was not written`);
    await Promise.all(this.#pending);
    await readFully(shard.handle, shard.path, out, shard.positions.get(name)! + offset, this.#options.signal);
  }

  /**
   * Replaces a tensor's bytes. Tensors may come in any order, each once; `bytes` must not be changed before the promise settles.
   * @throws AlpsError `INVALID_ARGUMENT` for an unknown tensor, another length, or a second write of one tensor; `FILE_SYSTEM` (disk full
   * and so on) and `ABORTED`, after which the hidden folder is gone; `DISPOSED` after that
   */
  async write(name: string, bytes: Uint8Array): Promise<void> {
    await this.writePart(name, bytes, whole);
  }

  /**
   * Replaces one of `count` equal parts of a tensor's bytes, as {@link write} does the whole. All parts must be written.
   */
  async writePart(name: string, bytes: Uint8Array, part: TensorPart): Promise<void> {
    const writing = this.#begin(name, bytes, part);
    try {
      await writing;
    } catch (error) {
      await this.abort();
      throw error;
    }
  }

  /**
   * As {@link write} or {@link writePart}, but settles once little enough waits to be written; `bytes` must never be changed. A failure is
   * thrown by the calls that follow.
   */
  async queue(name: string, bytes: Uint8Array, part: TensorPart = whole): Promise<void> {
    const writing = this.#begin(name, bytes, part);
    this.#behind += bytes.length;
    writing
      .catch((error) => {
        this.#failure ??= error;
        return this.abort();
      })
      .finally(() => {
        this.#behind -= bytes.length;
      });
    while (this.#behind > mostBehind && this.#pending.size > 0) await Promise.race(this.#pending);
  }

  /** Checks, and begins to write. */
  #begin(name: string, bytes: Uint8Array, { index, count }: TensorPart): Promise<void> {
    this.#checkOpen();
    const shard = this.#shards.find(({ positions }) => positions.has(name));
    const tensor = this.#options.source.tensors.get(name);
    if (!tensor || !shard) {
      throw new AlpsError('INVALID_ARGUMENT', `${this.#options.source.folder} has no tensor ${describe(name)}`);
    }
    const size = tensor.byteLength / count;
    if (!types.isUint8Array(bytes) || bytes.length !== size) {
      const what = count === 1 ? '' : `part ${index} of ${count} of `;
      throw invalidArgument('bytes', `a Uint8Array of ${size} bytes for ${what}tensor ${describe(name)}`, bytes);
    }
    const parts = this.#parts.get(name) ?? new Set<number>();
    if (this.#written.has(name) || parts.has(index)) {
      throw new AlpsError('INVALID_ARGUMENT', `Tensor ${describe(name)} was written already`);
    }
    this.#parts.set(name, parts.add(index));
    if (parts.size === count) {
      this.#parts.delete(name);
      this.#written.add(name);
      this.#sinceStep.push(name);
    }
    const position = shard.positions.get(name)! + index * size;
    const writing = writeFully(shard.handle, shard.path, bytes, position, this.#options.signal);
    this.#pending.add(writing);
    const settled = () => this.#pending.delete(writing);
    writing.then(settled, settled);
    return writing;
  }

  /**
   * Copies all that is left, adds `extras` (file name → text; a function is called when the tensors are written), and puts the folder under its
   * final name.
   * @throws AlpsError as {@link write}; `INVALID_ARGUMENT` also when the final name was taken meanwhile; `INVALID_CHECKPOINT` when the
   * source was changed meanwhile
   */
  async finish(extras: Record<string, string> | (() => Record<string, string>) = {}): Promise<void> {
    this.#checkOpen();
    try {
      if (typeof extras !== 'function') this.#checkExtras(extras); // before the copying
      await Promise.all(this.#pending);
      const [part] = this.#parts.keys();
      if (part !== undefined) throw new AlpsError('INTERNAL', `Tensor ${describe(part)} was written in part only`);
      await this.#copyTensors();
      for (const { path, handle } of this.#shards.splice(0)) {
        try {
          await handle.sync();
          await checkInPlace(path, handle);
        } catch (cause) {
          throw fileSystemError('flush', path, cause);
        } finally {
          await handle.close();
        }
      }
      const made = typeof extras === 'function' ? extras() : extras;
      if (made !== extras) this.#checkExtras(made);
      await this.#copyFiles(made);
      throwIfAborted(this.#options.signal);
      this.#checkOpen();
      this.#state = 'finished'; // from here on an abort must not remove files under the rename
      await publish(this.#partial, this.out, this.#options.overwrite ?? false);
      await this.#unfinished?.close(true);
    } catch (error) {
      this.#state = 'aborted';
      this.#removal ??= this.#remove();
      await this.#removal;
      throw fileSystemError('write', this.out, error);
    }
  }

  /**
   * Removes what was written so far, unless a later run can go on with it. Does nothing after `finish` or a failure, so it may stand in a
   * `finally`. Never rejects.
   */
  async abort(): Promise<void> {
    if (this.#state === 'open') {
      this.#state = 'aborted';
      this.#removal = this.#remove();
    }
    await this.#removal; // also one that a write behind has begun
  }

  async #remove(): Promise<void> {
    await Promise.allSettled(this.#shards.splice(0).map(({ handle }) => handle.close()));
    // An error here would hide the one that led here.
    const kept = this.#unfinished?.isEmpty === false;
    if (!kept) await rm(this.#partial, { recursive: true, force: true }).catch(() => undefined);
    await this.#unfinished?.close(false);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.abort();
  }

  #checkOpen(): void {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#state !== 'open') throw new AlpsError('DISPOSED', `The output ${this.out} was ${this.#state} before`);
  }

  async #copyTensors(): Promise<void> {
    const { source, signal } = this.#options;
    for (const [i, shard] of source.shards.entries()) {
      this.#checkOpen();
      const { path, handle, positions } = this.#shards[i]!;
      for (const { name, byteLength } of shard.tensors.values()) {
        if (this.#written.has(name)) continue;
        for (let offset = 0; offset < byteLength; offset += pieceBytes) {
          const piece = new Uint8Array(Math.min(pieceBytes, byteLength - offset));
          await shard.readInto(name, piece, { offset, signal });
          await writeFully(handle, path, piece, positions.get(name)! + offset, signal);
        }
      }
    }
  }

  async #copyFiles(extras: Record<string, string>): Promise<void> {
    const { source, signal } = this.#options;
    const names = source.indexed ? [...source.files, indexFile] : source.files;
    for (const name of names) {
      if (Object.hasOwn(extras, name)) continue;
      throwIfAborted(signal);
      const from = join(source.folder, name);
      const to = join(this.#partial, name);
      const isInside = dirname(name) !== '.';
      try {
        if (isInside) await mkdir(dirname(to), { recursive: true });
        await copyFile(from, to, constants.COPYFILE_EXCL);
      } catch (cause) {
        throw fileSystemError(`copy ${from} to`, to, cause);
      }
      await flushPath(to);
      if (isInside) await flushPath(dirname(to));
    }
    for (const [name, text] of Object.entries(extras)) {
      const to = join(this.#partial, name);
      await writeFile(to, text, { flag: 'wx' }).catch((cause) => {
        throw fileSystemError('write', to, cause);
      });
      await flushPath(to);
    }
    await flushPath(this.#partial);
  }

  /** Extras add to a model or replace an earlier report; they never stand for its weights or its configuration. */
  #checkExtras(extras: Record<string, string>): void {
    const { shardNames } = this.#options.source;
    for (const name of Object.keys(extras)) {
      const taken = shardNames.includes(name) || name === indexFile || name === 'config.json';
      if (taken || !/^[^/\\\0]+$/.test(name) || name === '.' || name === '..') {
        throw invalidArgument('the name of an extra file', 'a new plain file name', name);
      }
    }
  }
}

/** Refuses to publish what another process has put where this one's file was. */
async function checkInPlace(path: string, handle: FileHandle): Promise<void> {
  const [own, there] = await Promise.all([handle.stat({ bigint: true }), stat(path, { bigint: true })]);
  if (own.ino !== there.ino || own.dev !== there.dev)
    throw new AlpsError('FILE_SYSTEM', `${path} was replaced by another process while it was written`);
}
