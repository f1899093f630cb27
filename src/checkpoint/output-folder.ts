import { randomBytes } from 'node:crypto';
import { lstat, mkdir, open, readdir, realpath, rename, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, isAbsolute, join, relative, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { AlpsError, fileSystemError, invalidArgument, isCode } from '../errors.js';

/**
 * Refuses an output that would harm its source or something else that exists, or that could not get its name in the end.
 * @returns the absolute path without symbolic links
 */
export async function checkOutput(source: string, out: string, overwrite: boolean): Promise<string> {
  if (typeof out !== 'string' || out === '' || out.includes('\0')) {
    throw invalidArgument('out', 'the path of a folder', out);
  }
  const target = resolve(out);
  const parent = await realpath(dirname(target)).catch((cause) => {
    const action = isCode(cause, 'ENOENT') ? 'find the parent folder (make it first) of' : 'use the parent folder of';
    throw fileSystemError(action, out, cause);
  });
  const existing = await realpath(target).catch((cause) => {
    if (isCode(cause, 'ENOENT')) return undefined;
    throw fileSystemError('use the name', out, cause);
  });
  if (!existing && (await isThere(target))) {
    throw new AlpsError('INVALID_ARGUMENT', `The output ${out} is a symbolic link to something that does not exist`);
  }
  const path = existing ?? join(parent, basename(target));
  await checkApart(source, path, out);
  if (existing) await checkExisting(existing, out, overwrite);
  return path;
}

/**
 * Refuses an output that is the model folder, holds it or lies inside it.
 * @param path the output's absolute path, which need not exist
 * @param out what it was called
 */
export async function checkApart(source: string, path: string, out: string): Promise<void> {
  const from = await realpath(source).catch((cause) => {
    throw fileSystemError('use the model folder', source, cause);
  });
  const to = await realPart(path);
  if (!isInside(from, to) && !isInside(to, from)) return;
  throw new AlpsError(
    'INVALID_ARGUMENT',
    `The output ${out} must not be the model folder ${source}, hold it or lie inside it`,
  );
}

/** An absolute path without the symbolic links of as much of it as exists. */
async function realPart(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch {
    const parent = dirname(path);
    return parent === path ? path : join(await realPart(parent), basename(path));
  }
}

/** Whether there is anything of a name, be it a link to nothing. */
async function isThere(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (cause) {
    if (isCode(cause, 'ENOENT')) return false;
    throw fileSystemError('use the name', path, cause);
  }
}

/** Whether `path` is `folder` or lies in it. */
function isInside(folder: string, path: string): boolean {
  const way = relative(folder, path);
  return way !== '..' && !way.startsWith(`..${sep}`) && !isAbsolute(way);
}

/** The working folder, the program, and this package: what is to be replaced must not hold them. */
async function needed(): Promise<string[]> {
  const paths = [fileURLToPath(new URL('.', import.meta.url))];
  try {
    paths.unshift(process.cwd());
  } catch {
    // It was removed.
  }
  const program = process.argv[1]; // of `node -e` an argument like any other
  if (program !== undefined && (await stat(program).catch(() => undefined))?.isFile()) paths.push(program);
  const found = await Promise.all(paths.map((path) => realpath(path).catch(() => undefined)));
  return found.filter((path) => path !== undefined);
}

async function checkExisting(path: string, out: string, overwrite: boolean): Promise<void> {
  const failed = (cause: unknown) => {
    throw fileSystemError('use the folder', out, cause);
  };
  const info = await stat(path).catch(failed);
  if (!info.isDirectory()) throw new AlpsError('INVALID_ARGUMENT', `The output ${out} exists and is not a folder`);
  if (!overwrite && (await readdir(path).catch(failed)).length > 0) throw notEmpty(out);
  for (const held of await needed()) {
    if (isInside(path, held))
      throw new AlpsError('INVALID_ARGUMENT', `The output ${out} must not hold ${held}, which this program runs in`);
  }
  if (info.dev !== (await stat(dirname(path)).catch(failed)).dev) {
    throw new AlpsError(
      'INVALID_ARGUMENT',
      `The output ${out} is the root of a file system, which cannot be replaced; name a folder inside it`,
    );
  }
}

function notEmpty(out: string): AlpsError {
  return new AlpsError(
    'INVALID_ARGUMENT',
    `The output ${out} exists and is not empty; choose another name or allow overwriting (--overwrite, overwrite: true)`,
  );
}

/**
 * Gives the finished folder its final name by one rename, which replaces nothing but an empty folder. With `overwrite` a folder that is in
 * the way is renamed aside before and removed after. Where the name cannot be brought to the disk, it is taken back.
 */
export async function publish(partial: string, out: string, overwrite: boolean): Promise<void> {
  const aside = `${partial}.old`;
  let replaced = false;
  try {
    await rename(partial, out);
  } catch (error) {
    if (!isCode(error, 'ENOTEMPTY', 'EEXIST')) throw error;
    if (!overwrite) throw notEmpty(out);
    await rm(aside, { recursive: true, force: true }); // of a run that was killed behind its own replacement
    await rename(out, aside);
    replaced = true;
    try {
      await rename(partial, out);
    } catch (cause) {
      await rename(aside, out);
      throw cause;
    }
  }
  try {
    await flushPath(dirname(out));
  } catch (cause) {
    await rename(out, partial);
    if (replaced) await rename(aside, out);
    throw cause;
  }
  // Also what a run set aside that was killed before its folder got the name: that is no reason to call this one failed.
  await rm(aside, { recursive: true, force: true }).catch((cause) => {
    if (!replaced) return;
    throw fileSystemError(`finish: ${out} is complete, but what it replaced could not be removed from`, aside, cause);
  });
}

/**
 * Makes a folder and its parents where they are missing. (Node's own `recursive` goes round for ever below /proc, where a folder that
 * exists refuses others as if it did not.)
 */
export async function makeFolder(path: string): Promise<void> {
  const failed = (cause: unknown) => {
    throw fileSystemError('make the folder', path, cause);
  };
  const make = () =>
    mkdir(path).catch(async (error) => {
      if (!isCode(error, 'EEXIST', 'EISDIR') || !(await stat(path)).isDirectory()) throw error;
    });
  try {
    await make();
  } catch (error) {
    const parent = dirname(path);
    if (!isCode(error, 'ENOENT') || parent === path) failed(error);
    await makeFolder(parent); // it may be there by now: another run made it
    await make().catch(failed);
  }
}

/** Waits until a file or folder is on the disk. */
export async function flushPath(path: string): Promise<void> {
  try {
    const handle = await open(path, 'r');
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (cause) {
    throw fileSystemError('flush', path, cause);
  }
}

/** Writes a text file whole: under another name first, flushed to the disk, then renamed. A failure leaves what was there. */
export async function replaceFile(path: string, text: string): Promise<void> {
  const temporary = `${path}.${randomBytes(4).toString('hex')}.partial`;
  try {
    await writeFile(temporary, text);
    await flushPath(temporary);
    await rename(temporary, path);
    await flushPath(dirname(path));
  } catch (cause) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw fileSystemError('write', path, cause);
  }
}
