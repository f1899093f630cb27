import { constants } from 'node:fs';
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { AlpsError, describe, fileSystemError, throwIfAborted } from '../errors.js';
import { encodeHeader, maxHeaderBytes, parseHeader, type TensorInfo } from './header.js';

/** Bytes of one read or write: bounds what an abort has to wait for. */
const pieceBytes = 16 << 20;

/** What identifies the content of an open file; a change of it during a run is reported. */
interface Fingerprint {
  size: number;
  modified: bigint;
}

/**
 * A safetensors file, open for reading. The header is checked whole when the file is opened; tensors are read when asked for, so a
 * file may be larger than memory. Format: https://github.com/huggingface/safetensors
 */
export class SafetensorsFile {
  readonly path: string;
  /** In the order of their bytes in the file. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly metadata: Record<string, string> | undefined;
  readonly #handle: FileHandle;
  readonly #fingerprint: Fingerprint;

  private constructor(
    path: string,
    handle: FileHandle,
    fingerprint: Fingerprint,
    tensors: TensorInfo[],
    metadata: Record<string, string> | undefined,
  ) {
    this.path = path;
    this.#handle = handle;
    this.#fingerprint = fingerprint;
    this.tensors = new Map(tensors.map((tensor) => [tensor.name, tensor]));
    this.metadata = metadata;
  }

  /**
   * @throws AlpsError `FILE_SYSTEM` when it cannot be opened, `INVALID_CHECKPOINT` when it breaks the format (the message names the file,
   * the tensor and the rule).
   */
  static async open(path: string, options: { signal?: AbortSignal } = {}): Promise<SafetensorsFile> {
    throwIfAborted(options.signal);
    let handle: FileHandle;
    try {
      // Non-blocking: opening a named pipe would wait for its writer.
      handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    } catch (cause) {
      throw fileSystemError('open', path, cause);
    }
    try {
      const stat = await handle.stat({ bigint: true });
      if (!stat.isFile()) throw new AlpsError('INVALID_CHECKPOINT', `${path} is not a regular file`);
      const size = Number(stat.size);
      if (size < 8)
        throw new AlpsError('INVALID_CHECKPOINT', `${path} has ${size} bytes, too few for a safetensors file`);
      const lengthBytes = new Uint8Array(8);
      await readFully(handle, path, lengthBytes, 0);
      const length = new DataView(lengthBytes.buffer).getBigUint64(0, true);
      if (length > BigInt(maxHeaderBytes)) {
        throw new AlpsError(
          'INVALID_CHECKPOINT',
          `${path}: the header's length of ${length} bytes is above the format's limit of ${maxHeaderBytes}`,
        );
      }
      if (length > BigInt(size - 8)) {
        throw new AlpsError(
          'INVALID_CHECKPOINT',
          `${path}: the header's length of ${length} bytes goes beyond the file's ${size} bytes`,
        );
      }
      if (length === 0n) throw new AlpsError('INVALID_CHECKPOINT', `${path}: the header is empty`);
      const header = new Uint8Array(Number(length));
      await readFully(handle, path, header, 8, options.signal);
      const { tensors, metadata } = parseHeader(header, size, path);
      return new SafetensorsFile(path, handle, { size, modified: stat.mtimeNs }, tensors, metadata);
    } catch (error) {
      await handle.close();
      throw fileSystemError('read', path, error);
    }
  }

  /** The tensor's bytes (little-endian, row-major), in memory of their own. */
  async read(name: string, options: { signal?: AbortSignal } = {}): Promise<Uint8Array<ArrayBuffer>> {
    const bytes = new Uint8Array(this.#find(name).byteLength);
    await this.readInto(name, bytes, 0, options);
    return bytes;
  }

  /** Fills `out` with the tensor's bytes from `offset` on. */
  async readInto(name: string, out: Uint8Array, offset: number, options: { signal?: AbortSignal } = {}): Promise<void> {
    const tensor = this.#find(name);
    const { size, mtimeNs } = await this.#handle.stat({ bigint: true });
    if (Number(size) !== this.#fingerprint.size || mtimeNs !== this.#fingerprint.modified) {
      throw new AlpsError('INVALID_CHECKPOINT', `${this.path} was changed while it was being read`);
    }
    await readFully(this.#handle, this.path, out, tensor.byteOffset + offset, options.signal);
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }

  #find(name: string): TensorInfo {
    const tensor = this.tensors.get(name);
    if (!tensor) throw new AlpsError('INVALID_CHECKPOINT', `${this.path} has no tensor ${describe(name)}`);
    return tensor;
  }
}

async function readFully(
  handle: FileHandle,
  path: string,
  out: Uint8Array,
  position: number,
  signal?: AbortSignal,
): Promise<void> {
  let done = 0;
  while (done < out.length) {
    throwIfAborted(signal);
    let bytesRead: number;
    try {
      ({ bytesRead } = await handle.read(out, done, Math.min(pieceBytes, out.length - done), position + done));
    } catch (cause) {
      throw fileSystemError('read', path, cause);
    }
    if (bytesRead === 0) {
      throw new AlpsError('INVALID_CHECKPOINT', `${path} is truncated: byte ${position + done} is missing`);
    }
    done += bytesRead;
  }
}

/** Writes all bytes at a position, in pieces. */
export async function writeFully(
  handle: FileHandle,
  path: string,
  bytes: Uint8Array,
  position: number,
  signal?: AbortSignal,
): Promise<void> {
  let done = 0;
  while (done < bytes.length) {
    throwIfAborted(signal);
    try {
      done += (await handle.write(bytes, done, Math.min(pieceBytes, bytes.length - done), position + done))
        .bytesWritten;
    } catch (cause) {
      throw fileSystemError(`write ${bytes.length} bytes to`, path, cause);
    }
  }
}

/** One tensor for {@link writeSafetensors}. */
export type NewTensor = Pick<TensorInfo, 'name' | 'dtype' | 'shape'> & { bytes: Uint8Array };

/** Writes a whole safetensors file: under a temporary name first, then renamed. */
export async function writeSafetensors(
  path: string,
  tensors: NewTensor[],
  metadata: Record<string, string> = { format: 'pt' },
): Promise<void> {
  const infos = tensors.map(({ bytes, ...tensor }) => ({ ...tensor, byteOffset: 0, byteLength: bytes.length }));
  const header = encodeHeader(infos, metadata);
  const temporary = `${path}.partial-${process.pid}`;
  try {
    const handle = await open(temporary, 'wx');
    try {
      await writeFully(handle, temporary, header, 0);
      let position = header.length;
      for (const { bytes } of tensors) {
        await writeFully(handle, temporary, bytes, position);
        position += bytes.length;
      }
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw fileSystemError('write', path, error);
  }
}
