import type { FileHandle } from 'node:fs/promises';
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
      const { bytesWritten } = await handle.write(
        bytes,
        done,
        Math.min(pieceBytes, bytes.length - done),
        position + done,
      );
      if (bytesWritten === 0) throw new Error('the system wrote nothing');
      done += bytesWritten;
    } catch (cause) {
      throw fileSystemError(`write ${bytes.length} bytes to`, path, cause);
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
  };
  const text = advice[(cause as { code?: string }).code ?? ''];
  return text ? new AlpsError('FILE_SYSTEM', text, { cause }) : fileSystemError('open', path, cause);
}
