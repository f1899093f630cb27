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
 * @param tensors stored in this order, with little-endian, row-major bytes; put wide dtypes first if readers need aligned elements
 * @param metadata default `{ format: 'pt' }`, without which transformers refuses a file
 * @throws AlpsError `INVALID_ARGUMENT` if a tensor breaks the format, `FILE_SYSTEM` if the file cannot be written
 */
export async function writeSafetensors(
  path: string,
  tensors: readonly NewTensor[],
  metadata: Record<string, string> = { format: 'pt' },
): Promise<void> {
  const header = checkedHeader(path, tensors, metadata);
  const temporary = join(dirname(path), `.alps-${randomBytes(6).toString('hex')}.partial`);
  try {
    const handle = await open(temporary, 'wx');
    try {
      await writeFully(handle, path, header, 0);
      let position = header.length;
      for (const { bytes } of tensors) {
        await writeFully(handle, path, bytes, position);
        position += bytes.length;
      }
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw fileSystemError('write', path, error);
  }
}

/** The header, held to the same rules as one that is read. */
function checkedHeader(path: string, tensors: readonly NewTensor[], metadata: Record<string, string>): Uint8Array {
  filePath('path', path);
  anyList('tensors', tensors);
  for (const tensor of tensors) {
    if (typeof tensor !== 'object' || tensor === null) throw invalidArgument('tensors', 'an object', tensor);
    const { name, bytes } = tensor;
    if (!types.isUint8Array(bytes)) {
      throw new AlpsError(
        'INVALID_ARGUMENT',
        `Expected a Uint8Array for tensor ${describe(name)} but received ${describe(bytes)}`,
      );
    }
  }
  const infos = tensors.map(({ bytes, ...tensor }) => ({ ...tensor, byteOffset: 0, byteLength: bytes.byteLength }));
  const header = encodeHeader(infos, metadata);
  const total = infos.reduce((sum, { byteLength }) => sum + byteLength, header.length);
  try {
    parseHeader(header.subarray(8), total, path);
  } catch (cause) {
    throw new AlpsError('INVALID_ARGUMENT', (cause as Error).message, { cause });
  }
  return header;
}
