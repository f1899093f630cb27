import { rm, writeFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { makeFolder } from '../checkpoint/output-folder.js';
import { fileSystemError, isCode } from '../errors.js';

/**
 * Before long work: that its result has a place, where a file can be written. The folder is made.
 * @param read of what is replaced: nothing else is
 * @throws AlpsError where there is something that `read` refuses, or nothing can be written
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
