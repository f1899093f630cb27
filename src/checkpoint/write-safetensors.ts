import { randomBytes } from 'node:crypto';
import { open, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { types } from 'node:util';
import { AlpsError, anyList, describe, filePath, fileSystemError, invalidArgument } from '../errors.js';
import { writeFully } from './file-io.js';
import { encodeHeader, parseHeader, type TensorInfo } from './header.js';

/** One tensor for {@link writeSafetensors}. */
export type NewTensor = Pick<TensorInfo, 'name' | 'dtype' | 'shape'> & { bytes: Uint8Array };

/**
 * Writes a whole safetensors file: first under a temporary name, flushed to the disk, then renamed to `path`, replacing an existing file.
 *
 * @param tensors stored in this order, with little-endian, row-major bytes; put wide dtypes first if readers need aligned elements.
 * The list and its objects may change after the call, the bytes only after the promise settles
 * @param metadata default `{ format: 'pt' }`, without which transformers refuses a file
 * @throws AlpsError `INVALID_ARGUMENT` if a tensor breaks the format or its buffer is transferred meanwhile, `FILE_SYSTEM` if the file cannot be written
 */
export async function writeSafetensors(
  path: string,
  tensors: readonly NewTensor[],
  metadata: Record<string, string> = { format: 'pt' },
): Promise<void> {
  filePath('path', path);
  anyList('tensors', tensors);
  const own = tensors.map(ownTensor);
  const { header, total } = checkedHeader(path, own, metadata);
  const temporary = join(dirname(path), `.alps-${randomBytes(6).toString('hex')}.partial`);
  try {
    const handle = await open(temporary, 'wx');
    try {
      await writeFully(handle, path, header, 0);
      let position = header.length;
      for (const { name, bytes, byteLength } of own) {
        try {
          await writeFully(handle, path, bytes, position);
        } finally {
          checkThere(name, bytes, byteLength);
        }
        position += byteLength;
      }
      await handle.sync();
      const { size } = await handle.stat();
      if (size !== total) throw new Error(`${size} bytes were written instead of ${total}`);
    } finally {
      await handle.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw fileSystemError('write', path, error);
  }
}

type OwnTensor = TensorInfo & { bytes: Uint8Array };

/** A checked copy of a tensor's description, and a view of its bytes; later changes to the caller's objects have no effect. */
function ownTensor(tensor: NewTensor): OwnTensor {
  if (typeof tensor !== 'object' || tensor === null) throw invalidArgument('tensors', 'an object', tensor);
  const { name, dtype, shape, bytes } = tensor;
  if (typeof name !== 'string') throw invalidArgument('the name of a tensor', 'a string', name);
  const of = `tensor ${describe(name)}`;
  if (typeof dtype !== 'string') throw invalidArgument(`the dtype of ${of}`, 'a string', dtype);
  if (!Array.isArray(shape) || shape.some((size) => typeof size !== 'number'))
    throw invalidArgument(`the shape of ${of}`, 'a list of non-negative integers', shape);
  if (!types.isUint8Array(bytes)) {
    throw new AlpsError('INVALID_ARGUMENT', `Expected a Uint8Array for ${of} but received ${describe(bytes)}`);
  }
  const { buffer, byteOffset, byteLength } = bytes;
  if ((buffer as { resizable?: boolean }).resizable)
    throw new AlpsError('INVALID_ARGUMENT', `The bytes of ${of} are in a buffer that can be resized: copy them first`);
  return {
    name,
    dtype,
    shape: [...shape],
    byteOffset: 0,
    byteLength,
    bytes: viewOf(buffer, byteOffset, byteLength, of),
  };
}

/** A view with a fixed length: the caller's may grow with shared memory. */
function viewOf(buffer: ArrayBufferLike, byteOffset: number, byteLength: number, of: string): Uint8Array {
  try {
    return new Uint8Array(buffer, byteOffset, byteLength);
  } catch (cause) {
    throw new AlpsError('INVALID_ARGUMENT', `The bytes of ${of} are not available: their buffer was transferred`, {
      cause,
    });
  }
}

function checkThere(name: string, bytes: Uint8Array, byteLength: number): void {
  if (bytes.length === byteLength) return;
  const text = `The bytes of tensor ${describe(name)} changed while they were written: their buffer was transferred`;
  throw new AlpsError('INVALID_ARGUMENT', text);
}

/** The header, held to the same rules as one that is read, and the bytes of the whole file. */
function checkedHeader(path: string, tensors: readonly OwnTensor[], metadata: Record<string, string>) {
  let header: Uint8Array;
  try {
    header = encodeHeader(tensors, metadata);
  } catch {
    throw invalidArgument('metadata', 'a map from string to string', metadata);
  }
  const total = tensors.reduce((sum, { byteLength }) => sum + byteLength, header.length);
  try {
    parseHeader(header.subarray(8), total, path);
  } catch (cause) {
    throw new AlpsError('INVALID_ARGUMENT', (cause as Error).message, { cause });
  }
  return { header, total };
}
