import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { AlpsError, fileSystemError, throwIfAborted } from '../errors.js';

/** Bytes of one read or write: bounds what an abort has to wait for. */
export const pieceBytes = 16 << 20;

/** Fills `out` from a position on, in pieces. */
export async function readFully(
  handle: FileHandle,
  path: string,
  out: Uint8Array,
  position: number,
  signal?: AbortSignal,
): Promise<void> {
  const { length } = out; // a buffer may lose its memory meanwhile
  let done = 0;
  while (done < length) {
    throwIfAborted(signal);
    let bytesRead: number;
    try {
      ({ bytesRead } = await handle.read(out, done, Math.min(pieceBytes, length - done), position + done));
    } catch (cause) {
      throw fileSystemError('read', path, cause);
    }
    if (bytesRead === 0) {
      throw new AlpsError('INVALID_CHECKPOINT', `${path} is truncated: byte ${position + done} is missing`);
    }
    done += bytesRead;
  }
}

/** Opens a file for reading. Links are followed; nothing is waited for, which opening a named pipe would do. */
export async function openToRead(path: string): Promise<FileHandle> {
  try {
    return await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
  } catch (cause) {
    throw openError(path, cause);
  }
}

/**
 * A whole file of a model folder, into memory.
 * @throws AlpsError `INVALID_CHECKPOINT` when it is no regular file or has more than `most` bytes, `FILE_SYSTEM`
 */
export async function readWhole(path: string, most: number): Promise<Uint8Array> {
  const handle = await openToRead(path);
  try {
    const info = await handle.stat();
    if (!info.isFile()) throw new AlpsError('INVALID_CHECKPOINT', `${path} is not a regular file`);
    if (info.size > most) {
      throw new AlpsError('INVALID_CHECKPOINT', `${path} has ${info.size} bytes, more than the limit of ${most}`);
    }
    const bytes = new Uint8Array(info.size);
    await readFully(handle, path, bytes, 0);
    return bytes;
  } catch (cause) {
    throw fileSystemError('read', path, cause);
  } finally {
    await handle.close();
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
  const { length } = bytes; // as above
  let done = 0;
  while (done < length) {
    throwIfAborted(signal);
    try {
      const { bytesWritten } = await handle.write(bytes, done, Math.min(pieceBytes, length - done), position + done);
      if (bytesWritten === 0) throw new Error('the system wrote nothing');
      done += bytesWritten;
    } catch (cause) {
      throw fileSystemError(`write ${length} bytes to`, path, cause);
    }
  }
}

/** The error of a file that could not be opened, with what to do where that is known. */
export function openError(path: string, cause: unknown): AlpsError {
  const advice: Record<string, string> = {
    ENOENT: `${path} does not exist, or is a symbolic link to a file that does not exist`,
    ELOOP: `${path} is a loop of symbolic links`,
    EACCES: `${path} may not be read: check its permissions`,
    EMFILE: `Could not open ${path}: this process has too many open files; raise the limit (ulimit -n)`,
    ENFILE: `Could not open ${path}: this machine has too many open files`,
  };
  const text = advice[(cause as { code?: string }).code ?? ''];
  return text ? new AlpsError('FILE_SYSTEM', text, { cause }) : fileSystemError('open', path, cause);
}
