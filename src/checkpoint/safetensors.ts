import { type FileHandle, stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { types } from 'node:util';
import { optionalSignal } from '../abort.js';
import {
  AlpsError,
  describe,
  filePath,
  fileSystemError,
  invalidArgument,
  isCode,
  optionsObject,
  throwIfAborted,
} from '../errors.js';
import { openToRead, readFully } from './file-io.js';
import { maxHeaderBytes, parseHeader, type TensorInfo } from './header.js';

export { type NewTensor, writeSafetensors } from './write-safetensors.js';

/** What identifies the content of an open file; a change of it during a run is reported. */
interface Fingerprint {
  device: bigint;
  inode: bigint;
  size: bigint;
  modified: bigint;
}

/**
 * A safetensors file, open for reading. The whole header is checked when the file is opened; tensors are read on demand, so a file may
 * be larger than memory. Symbolic links are followed. Format: https://github.com/huggingface/safetensors
 */
export class SafetensorsFile {
  /** Path as given. */
  readonly path: string;
  /** By name, in the order of their bytes in the file. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** The `__metadata__` of the header. */
  readonly metadata: Record<string, string> | undefined;
  readonly #handle: FileHandle;
  readonly #absolutePath: string;
  readonly #fingerprint: Fingerprint;
  #closed = false;

  private constructor(
    path: string,
    handle: FileHandle,
    fingerprint: Fingerprint,
    tensors: TensorInfo[],
    metadata: Record<string, string> | undefined,
  ) {
    this.path = path;
    this.#absolutePath = resolve(path);
    this.#handle = handle;
    this.#fingerprint = fingerprint;
    this.tensors = new Map(tensors.map((tensor) => [tensor.name, tensor]));
    this.metadata = metadata;
  }

  /**
   * Opens a file and checks its header against every rule of the format. Close it with {@link close} or `await using`.
   *
   * @throws AlpsError `FILE_SYSTEM` if it cannot be opened, `INVALID_CHECKPOINT` if it breaks the format (the message names the file, the
   * tensor and the rule), `INVALID_ARGUMENT`, `ABORTED`
   */
  static async open(path: string, options: { signal?: AbortSignal } = {}): Promise<SafetensorsFile> {
    filePath('path', path);
    optionsObject(options, { signal: true });
    optionalSignal(options.signal);
    throwIfAborted(options.signal);
    const handle = await openToRead(path);
    try {
      const fingerprint = await fingerprintOf(handle, path);
      const size = Number(fingerprint.size);
      const header = await readHeader(handle, path, size, options.signal);
      const { tensors, metadata } = parseHeader(header, size, path);
      return new SafetensorsFile(path, handle, fingerprint, tensors, metadata);
    } catch (error) {
      await handle.close();
      throw fileSystemError('read', path, error);
    }
  }

  /**
   * Reads a tensor's bytes (little-endian, row-major) into a new array.
   *
   * @throws AlpsError `INVALID_CHECKPOINT` if there is no such tensor, or the file was truncated or changed after it was opened;
   * `INVALID_ARGUMENT`, `OUT_OF_MEMORY`, `FILE_SYSTEM`, `ABORTED`; `DISPOSED` after {@link close}
   */
  async read(name: string, options: { signal?: AbortSignal } = {}): Promise<Uint8Array<ArrayBuffer>> {
    optionsObject(options, { signal: true });
    const { byteLength } = this.#find(name);
    let bytes: Uint8Array<ArrayBuffer>;
    try {
      bytes = new Uint8Array(byteLength);
    } catch (cause) {
      const text = `${this.path}: tensor ${describe(name)} has ${byteLength} bytes, more than can be held at once`;
      throw new AlpsError('OUT_OF_MEMORY', text, { cause });
    }
    await this.readInto(name, bytes, options);
    return bytes;
  }

  /**
   * Fills `out` with a tensor's bytes, starting at byte `offset` (default 0) of the tensor.
   *
   * @throws AlpsError as {@link read}; `INVALID_ARGUMENT` also if the tensor has too few bytes, or the buffer of `out` is transferred or shrunk
   * meanwhile
   */
  async readInto(
    name: string,
    out: Uint8Array,
    options: { offset?: number; signal?: AbortSignal } = {},
  ): Promise<void> {
    if (!types.isUint8Array(out)) throw invalidArgument('out', 'a Uint8Array', out);
    optionsObject(options, { offset: true, signal: true });
    const { offset = 0, signal } = options;
    optionalSignal(signal);
    const { byteOffset, byteLength } = this.#find(name);
    const view = fixedView(out);
    const { length } = view;
    if (!Number.isSafeInteger(offset) || offset < 0 || offset + length > byteLength) {
      const room = `an offset with ${length} bytes after it in tensor ${describe(name)} of ${byteLength} bytes`;
      throw invalidArgument('offset', room, offset);
    }
    try {
      await this.#checkUnchanged();
      await readFully(this.#handle, this.path, view, byteOffset + offset, signal);
      await this.#checkUnchanged();
    } catch (error) {
      if (view.length !== length) throw withoutMemory(error);
      throw this.#closed && isCode(error, 'FILE_SYSTEM') ? this.#disposed(name, error) : error;
    }
    if (view.length !== length) throw withoutMemory();
  }

  /** Closes the file. A second call has no effect. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#handle.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #find(name: string): TensorInfo {
    if (this.#closed) throw this.#disposed(name);
    const tensor = this.tensors.get(name);
    if (!tensor) throw new AlpsError('INVALID_CHECKPOINT', `${this.path} has no tensor ${describe(name)}`);
    return tensor;
  }

  #disposed(name: string, cause?: unknown): AlpsError {
    return new AlpsError('DISPOSED', `${this.path} was closed before tensor ${describe(name)} was read`, { cause });
  }

  /** The open file must be what it was, and the path must still lead to it. */
  async #checkUnchanged(): Promise<void> {
    const was = this.#fingerprint;
    const changed = (how: string, cause?: unknown) =>
      new AlpsError(
        'INVALID_CHECKPOINT',
        `${this.path} was ${how} while it was being read; start again when nothing else writes to it`,
        { cause },
      );
    const now = await fingerprintOf(this.#handle, this.path);
    if (now.size !== was.size || now.modified !== was.modified) throw changed('changed');
    const named = await stat(this.#absolutePath, { bigint: true }).catch((cause) => {
      throw isCode(cause, 'ENOENT') ? changed('removed', cause) : fileSystemError('read', this.path, cause);
    });
    if (named.ino !== was.inode || named.dev !== was.device) throw changed('replaced');
  }
}

/** A view of the same memory with a fixed length: a resizable buffer may grow. */
function fixedView(out: Uint8Array): Uint8Array {
  try {
    return new Uint8Array(out.buffer, out.byteOffset, out.byteLength);
  } catch (cause) {
    throw withoutMemory(cause);
  }
}

function withoutMemory(cause?: unknown): AlpsError {
  const text = 'Expected an array that keeps its memory for out, but its buffer was transferred or resized';
  return new AlpsError('INVALID_ARGUMENT', text, { cause });
}

async function fingerprintOf(handle: FileHandle, path: string): Promise<Fingerprint> {
  try {
    const info = await handle.stat({ bigint: true });
    if (!info.isFile()) throw new AlpsError('INVALID_CHECKPOINT', `${path} is not a regular file`);
    return { device: info.dev, inode: info.ino, size: info.size, modified: info.mtimeNs };
  } catch (cause) {
    throw fileSystemError('read', path, cause);
  }
}

/** The JSON bytes of the header. */
async function readHeader(
  handle: FileHandle,
  path: string,
  fileSize: number,
  signal: AbortSignal | undefined,
): Promise<Uint8Array> {
  const invalid = (text: string) => new AlpsError('INVALID_CHECKPOINT', `${path}${text}`);
  if (fileSize < 8) throw invalid(` has ${fileSize} bytes, too few for a safetensors file`);
  const lengthBytes = new Uint8Array(8);
  await readFully(handle, path, lengthBytes, 0);
  const length = new DataView(lengthBytes.buffer).getBigUint64(0, true);
  if (length > BigInt(maxHeaderBytes)) {
    throw invalid(`: the header's length of ${length} bytes is above the format's limit of ${maxHeaderBytes}`);
  }
  if (length > BigInt(fileSize - 8)) {
    throw invalid(`: the header's length of ${length} bytes goes beyond the file's ${fileSize} bytes`);
  }
  if (length === 0n) throw invalid(': the header is empty');
  const header = new Uint8Array(Number(length));
  await readFully(handle, path, header, 8, signal);
  return header;
}
