import { rm, writeFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { makeFolder } from '../checkpoint/output-folder.js';
import { fileSystemError, isCode } from '../errors.js';

/**
 * Checks before long work that its result can be written. Creates the folder.
 * @param read reads an existing file; only a file that it accepts may be replaced
 * @throws AlpsError if `read` refuses the existing file, or the file cannot be written
 */
export async function checkReplaceable(path: string, read: (path: string) => Promise<unknown>): Promise<void> {
  await read(path).catch((error) => {
    if (!isCode((error as Error).cause, 'ENOENT')) throw error;
  });
  await makeFolder(dirname(resolve(path)));
  const trial = `${resolve(path)}.${process.pid}.partial`;
  try {
    await writeFile(trial, ' ');
  } catch (cause) {
    throw fileSystemError('write', path, cause);
  } finally {
    await rm(trial, { force: true }).catch(() => undefined);
  }
}
