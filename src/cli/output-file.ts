import { dirname, resolve } from 'node:path';
import { makeFolder } from '../checkpoint/output-folder.js';
import { isCode } from '../errors.js';

/**
 * Before long work: that its result has a place. The folder is made.
 * @param read of what is replaced: nothing else is
 * @throws AlpsError where there is something that `read` refuses
 */
export async function checkReplaceable(path: string, read: (path: string) => Promise<unknown>): Promise<void> {
  await read(path).catch((error) => {
    if (!isCode((error as Error).cause, 'ENOENT')) throw error;
  });
  await makeFolder(dirname(resolve(path)));
}
