import { readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { makeFolder, replaceFile } from '../checkpoint/output-folder.js';
import { RunLock } from '../checkpoint/run-lock.js';
import { checkSameRun, type Fingerprint, restartRemedy } from '../checkpoint/unfinished.js';
import { AlpsError, fileSystemError, isCode } from '../errors.js';
import type { AllocationCandidate } from './search-options.js';

/** What a search has measured. */
export interface SearchRecord {
  /** Of each measured block, by unit. */
  divergences: number[][];
  /** Of the calibration: windows that the model wrote itself. */
  ownWindows?: number[][];
  /** Begins with the base, gain 0. */
  candidates: AllocationCandidate[];
}

/** Models that a search makes, and what is unfinished of them. */
const modelName = /^\.?(base|next|candidate-[\d.]+)(?:\.unfinished.*)?$/;

/**
 * The folder of a search: `search.json`, which is replaced whole, `search.lock`, and models. A model's folder that has its name is complete, as
 * {@link prune} makes it, and of this search, as `search.json` is there first.
 */
export class SearchState {
  readonly record: SearchRecord;
  readonly #folder: string;
  readonly #lock: RunLock;
  readonly #fingerprint: Fingerprint;

  private constructor(folder: string, lock: RunLock, fingerprint: Fingerprint, record: SearchRecord) {
    this.#folder = folder;
    this.#lock = lock;
    this.#fingerprint = fingerprint;
    this.record = record;
  }

  /**
   * Takes the lock, and what an earlier call left.
   * @param restart drop what is there
   * @throws AlpsError `FILE_SYSTEM` when another process works in the folder, `INVALID_ARGUMENT` when what is there has another fingerprint, or
   * models lie there that no search made
   */
  static async open(folder: string, fingerprint: Fingerprint, restart: boolean): Promise<SearchState> {
    await makeFolder(folder);
    const lock = await RunLock.take(join(folder, 'search.lock'), `the search in ${folder}`);
    try {
      const now = JSON.parse(JSON.stringify(fingerprint)) as Fingerprint;
      const text = await readIfThere(join(folder, 'search.json'));
      const models = (await names(folder)).filter((name) => modelName.test(name));
      if (text === undefined && models.length > 0)
        throw new AlpsError(
          'INVALID_ARGUMENT',
          `${folder} holds ${models[0]}, but no search.json: name another folder`,
        );
      if (text !== undefined && !restart) return new SearchState(folder, lock, now, recordOf(folder, text, now));
      const state = new SearchState(folder, lock, now, { divergences: [], candidates: [] });
      await state.removeModels(() => false); // first: the new record would take them for its own
      await state.save();
      return state;
    } catch (error) {
      await lock.release();
      throw error;
    }
  }

  /** The folder of a model, and whether it is there. */
  async model(name: string): Promise<{ path: string; isThere: boolean }> {
    return { path: join(this.#folder, name), isThere: (await names(this.#folder)).includes(name) };
  }

  /** Removes all models, finished or not, but those to keep. */
  async removeModels(keep: (name: string) => boolean): Promise<void> {
    for (const name of await names(this.#folder)) {
      const model = modelName.exec(name)?.[1];
      if (model === undefined || keep(model)) continue;
      const path = join(this.#folder, name);
      const aside = name === model ? join(this.#folder, `.${name}.unfinished.old`) : path;
      try {
        await rm(aside, { recursive: true, force: true });
        if (aside === path) continue;
        await rename(path, aside); // half of a folder must not have the name of a whole one
        await rm(aside, { recursive: true, force: true });
      } catch (cause) {
        throw fileSystemError('remove', path, cause);
      }
    }
  }

  /** Brings the record to the disk. */
  save(): Promise<void> {
    const content = { fingerprint: this.#fingerprint, ...this.record };
    return replaceFile(join(this.#folder, 'search.json'), `${JSON.stringify(content, null, 2)}\n`);
  }

  /** Lets others at the folder. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.#lock.release();
  }
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    if (isCode(cause, 'ENOENT')) return undefined;
    throw fileSystemError('read', path, cause);
  }
}

async function names(folder: string): Promise<string[]> {
  return readdir(folder).catch((cause) => {
    throw fileSystemError('list', folder, cause);
  });
}

function recordOf(folder: string, text: string, now: Fingerprint): SearchRecord {
  let found: (SearchRecord & { fingerprint: Fingerprint }) | undefined;
  try {
    found = JSON.parse(text);
  } catch {
    // Not JSON: said below.
  }
  const isObject = typeof found?.fingerprint === 'object' && found.fingerprint !== null;
  if (!isObject || !Array.isArray(found?.divergences) || !Array.isArray(found.candidates))
    throw new AlpsError('INVALID_ARGUMENT', `${folder}/search.json is not what a search leaves; ${restartRemedy}`);
  const { fingerprint, ...record } = found;
  checkSameRun(`A search is in ${folder}`, fingerprint, now);
  return record;
}
