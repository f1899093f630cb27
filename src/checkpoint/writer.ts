import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import {
  copyFile,
  type FileHandle,
  mkdir,
  open,
  readdir,
  realpath,
  rename,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises';
import { basename, dirname, join, relative, resolve } from 'node:path';
import { AlpsError, describe, fileSystemError, throwIfAborted } from '../errors.js';
import type { Checkpoint } from './folder.js';
import { encodeHeader } from './header.js';
import { writeFully } from './safetensors.js';

export interface WriterOptions {
  source: Checkpoint;
  /** The folder to make. */
  out: string;
  /** Whether an existing folder may be replaced. Default false. */
  overwrite?: boolean;
  signal?: AbortSignal;
}

const copyBytes = 16 << 20;

/**
 * Writes a checkpoint with its source's layout: the same shards, order, dtypes and metadata. Everything goes into a hidden folder beside
 * the final one, is flushed to the disk, and appears under the final name by one rename. Tensors that were not written are copied byte for
 * byte, as are config.json, the tokenizer and other files of the source.
 */
export class CheckpointWriter {
  readonly out: string;
  readonly #options: WriterOptions;
  readonly #partial: string;
  readonly #shards: { path: string; handle: FileHandle; positions: Map<string, number> }[] = [];
  readonly #written = new Set<string>();

  private constructor(options: WriterOptions, out: string) {
    this.#options = options;
    this.out = out;
    this.#partial = join(dirname(out), `.alps-${randomBytes(6).toString('hex')}.partial`);
  }

  /**
   * @throws AlpsError `INVALID_ARGUMENT` when the output is the source, contains it or lies inside it, or exists already;
   * `FILE_SYSTEM` when it cannot be made
   */
  static async create(options: WriterOptions): Promise<CheckpointWriter> {
    throwIfAborted(options.signal);
    const out = await checkOutput(options);
    const writer = new CheckpointWriter(options, out);
    try {
      await mkdir(writer.#partial);
      await writer.#openShards();
      return writer;
    } catch (error) {
      await writer.abort();
      throw fileSystemError('create', writer.#partial, error);
    }
  }

  async #openShards(): Promise<void> {
    const { source, signal } = this.#options;
    for (const [i, shard] of source.shards.entries()) {
      const tensors = [...shard.tensors.values()];
      const header = encodeHeader(tensors, shard.metadata ?? { format: 'pt' });
      const path = join(this.#partial, source.shardNames[i]!);
      const handle = await open(path, 'wx');
      const positions = new Map<string, number>();
      this.#shards.push({ path, handle, positions });
      let position = header.length;
      for (const { name, byteLength } of tensors) {
        positions.set(name, position);
        position += byteLength;
      }
      await handle.truncate(position);
      await writeFully(handle, path, header, 0, signal);
    }
  }

  /** Replaces a tensor's bytes. */
  async write(name: string, bytes: Uint8Array): Promise<void> {
    const tensor = this.#options.source.tensors.get(name);
    const shard = this.#shards.find(({ positions }) => positions.has(name));
    if (!tensor || !shard) throw new AlpsError('INTERNAL', `The checkpoint has no tensor ${describe(name)}`);
    if (bytes.length !== tensor.byteLength) {
      throw new AlpsError('INTERNAL', `Tensor ${describe(name)} has ${tensor.byteLength} bytes, not ${bytes.length}`);
    }
    await writeFully(shard.handle, shard.path, bytes, shard.positions.get(name)!, this.#options.signal);
    this.#written.add(name);
  }

  /** Copies all that is left, adds `extras` (file name → text), and puts the folder under its final name. */
  async finish(extras: Record<string, string> = {}): Promise<void> {
    try {
      await this.#copyTensors();
      for (const { path, handle } of this.#shards) {
        await flush(handle, path);
        await handle.close();
      }
      this.#shards.length = 0;
      await this.#copyFiles(extras);
      throwIfAborted(this.#options.signal);
      await this.#publish();
    } catch (error) {
      await this.abort();
      throw fileSystemError('write', this.out, error);
    }
  }

  /** Removes what was written so far. */
  async abort(): Promise<void> {
    await Promise.all(this.#shards.map(({ handle }) => handle.close().catch(() => undefined)));
    this.#shards.length = 0;
    await rm(this.#partial, { recursive: true, force: true });
  }

  async #copyTensors(): Promise<void> {
    const { source, signal } = this.#options;
    for (const [i, shard] of source.shards.entries()) {
      const { path, handle, positions } = this.#shards[i]!;
      for (const { name, byteLength } of shard.tensors.values()) {
        if (this.#written.has(name)) continue;
        for (let done = 0; done < byteLength; done += copyBytes) {
          const piece = new Uint8Array(Math.min(copyBytes, byteLength - done));
          await shard.readInto(name, piece, done, { signal });
          await writeFully(handle, path, piece, positions.get(name)! + done, signal);
        }
      }
    }
  }

  async #copyFiles(extras: Record<string, string>): Promise<void> {
    const { source } = this.#options;
    for (const entry of await readdir(source.folder, { withFileTypes: true })) {
      const { name } = entry;
      const weights = /\.(safetensors|bin|pt|pth|ckpt|pkl|gguf|onnx|h5|msgpack)$/.test(name);
      if (name.startsWith('.') || weights || Object.hasOwn(extras, name)) continue;
      const from = join(source.folder, name);
      if (!(await stat(from).catch(() => undefined))?.isFile()) continue;
      await copyFile(from, join(this.#partial, name), constants.COPYFILE_EXCL);
      await flushFile(join(this.#partial, name));
    }
    for (const [name, text] of Object.entries(extras)) {
      await writeFile(join(this.#partial, name), text, { flag: 'wx' });
      await flushFile(join(this.#partial, name));
    }
    await flushFile(this.#partial);
  }

  async #publish(): Promise<void> {
    const old = `${this.#partial}.old`;
    const replaced = await rename(this.out, old).then(
      () => true,
      (error: { code?: string }) => {
        if (error.code === 'ENOENT') return false;
        throw error;
      },
    );
    try {
      await rename(this.#partial, this.out);
    } catch (error) {
      if (replaced) await rename(old, this.out);
      throw error;
    }
    await flushFile(dirname(this.out));
    if (replaced) await rm(old, { recursive: true, force: true });
  }
}

async function flush(handle: FileHandle, path: string): Promise<void> {
  try {
    await handle.sync();
  } catch (cause) {
    throw fileSystemError('flush', path, cause);
  }
}

async function flushFile(path: string): Promise<void> {
  const handle = await open(path, 'r');
  try {
    await flush(handle, path);
  } finally {
    await handle.close();
  }
}

/** Refuses an output that would harm its source or something else that exists; returns its absolute path. */
async function checkOutput({ source, out, overwrite = false }: WriterOptions): Promise<string> {
  const parent = dirname(resolve(out));
  let target: string;
  try {
    target = join(await realpath(parent), basename(resolve(out)));
  } catch (cause) {
    throw fileSystemError('find the parent folder of the output', out, cause);
  }
  const existing = await realpath(target).catch(() => undefined);
  const from = await realpath(source.folder);
  for (const path of [target, ...(existing ? [existing] : [])]) {
    const way = relative(from, path);
    const back = relative(path, from);
    const inside = (p: string) => p === '' || (!p.startsWith('..') && !p.startsWith('/'));
    if (inside(way) || inside(back)) {
      throw new AlpsError(
        'INVALID_ARGUMENT',
        `The output ${out} must not be the model folder ${source.folder}, hold it or lie inside it`,
      );
    }
  }
  if (existing) {
    const info = await stat(existing);
    if (!info.isDirectory()) throw new AlpsError('INVALID_ARGUMENT', `The output ${out} exists and is not a folder`);
    if ((await readdir(existing)).length > 0 && !overwrite) {
      throw new AlpsError(
        'INVALID_ARGUMENT',
        `The output ${out} exists and is not empty; choose another name or allow overwriting`,
      );
    }
  }
  return target;
}
