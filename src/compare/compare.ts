import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import {
  calibrationNames,
  calibrationReport,
  checkCalibration,
  checkEvaluation,
  loadCalibration,
  loadEvaluationWindows,
} from '../calibration/calibration.js';
import type { TokenWindows } from '../calibration/windows.js';
import { Checkpoint } from '../checkpoint/folder.js';
import { checkApart } from '../checkpoint/output-folder.js';
import { Device } from '../device/device.js';
import {
  AlpsError,
  aborted,
  anyList,
  fileSystemError,
  folderPath,
  invalidArgument,
  listOfObjects,
  optionalFunction,
  optionsObject,
  textOf,
  throwIfAborted,
} from '../errors.js';
import { describeProtocol } from '../evaluate.js';
import { checkTasks, readTasks } from '../evaluate-tasks.js';
import { taskOf } from '../evaluation/tasks/definitions.js';
import { readArchitecture } from '../model/decoder.js';
import { linearShape, linearsOf, titleOf } from '../model/shapes.js';
import { version } from '../package-version.js';
import { choosePrecision, deviceOptions } from '../prune.js';
import { keptWeights, type Pattern, parsePattern } from '../pruning/pattern.js';
import { snapshot } from '../snapshot.js';
import { comparisonCalibration } from './calibration.js';
import { CellStore } from './cell-store.js';
import {
  type CompareOptions,
  type Comparison,
  type ComparisonCell,
  type ComparisonFailure,
  compareNames,
  comparisonTextNames,
  fileNames,
} from './comparison.js';
import { ComparisonRun, type Prepared, type PreparedTask } from './comparison-run.js';
import { fingerprint } from './fingerprint.js';
import { parseMethods, patternTitle } from './method-spec.js';

/**
 * Prunes a model with several methods at several sparsities, from the same calibration tokens, and measures each result: the layers' errors,
 * the perplexity on each text, the scores on each task, time and memory. A cell is one method at one pattern. Finished cells are kept in
 * `out`/cells and not computed twice. Cells that give no numbers are reported in `failures`. No report is written; see {@link writeComparison}.
 *
 * @throws AlpsError with a `code`: `INVALID_ARGUMENT`, `INVALID_CHECKPOINT`, `UNSUPPORTED_MODEL`, `INVALID_TEXT`, `FILE_SYSTEM`, `OUT_OF_MEMORY`,
 * `NO_DEVICE`, `DEVICE_FAILED` or `ABORTED`; `NOT_FINITE` or `NOT_POSITIVE_DEFINITE` if no cell gives numbers, or the dense model gives none
 */
export async function compare(options: CompareOptions): Promise<Comparison> {
  return (await compareWith(options)).comparison;
}

/** {@link compare}, also returning the calibration windows: their source may be readable only once. */
export async function compareWith(given: CompareOptions): Promise<{ comparison: Comparison; windows: TokenWindows }> {
  const options = snapshot(given, compareNames);
  const { signal, onEvent } = options;
  optionalFunction('onEvent', onEvent);
  const methods = parseMethods(options.methods);
  const patterns = parsePatterns(options);
  folderPath('out', options.out);
  optionsObject(options.calibration, calibrationNames, 'calibration');
  checkTexts(options);
  if (options.names !== undefined) optionsObject(options.names, fileNames, 'names');
  const { tasks: asked = [], taskLimit: limit } = options;
  anyList('tasks', asked);
  if (asked.length !== 0) checkTasks({ tasks: asked, limit });
  distinct(
    'tasks',
    asked.map(({ task }) => task),
  );
  const { propagation = 'sequential' } = options;
  if (!['sequential', 'block'].includes(propagation))
    throw invalidArgument('propagation', '"sequential" or "block"', propagation);
  checkCalibration(options.calibration);
  throwIfAborted(signal);
  const checkpoint = await Checkpoint.open(options.model, { signal });
  try {
    await checkApart(checkpoint.folder, resolve(options.out, 'cells'), options.out); // where pruned models are written
    const device = Device.open(options.device, deviceOptions(options));
    const precision = choosePrecision(options.precision, checkpoint, device);
    const architecture = readArchitecture(checkpoint);
    const { config } = architecture;
    for (const spec of linearsOf(architecture)) {
      const [outputs, inputs] = linearShape(config, spec);
      for (const pattern of patterns) keptWeights(pattern, outputs, inputs, titleOf(spec));
    }
    onEvent?.({
      type: 'start',
      cells: methods.length * patterns.length,
      methods: methods.map(({ id }) => id),
      patterns: patterns.map(patternTitle),
    });
    const given = await loadCalibration(options.model, config, options.calibration, { signal });
    const texts: Prepared['texts'] = [];
    for (const { name, text, field, protocol = 'text' } of options.texts) {
      const asked = { text, field, protocol, length: options.length, windows: options.windows };
      texts.push({ name, protocol, windows: await loadEvaluationWindows(options.model, config, asked, { signal }) });
    }
    const tasks = await prepareTasks(options);
    const model = {
      folder: options.model,
      type: config.modelType,
      blocks: config.layers,
      fingerprint: await fingerprint(checkpoint, signal),
    };
    const store = await CellStore.open(join(options.out, 'cells'));
    const parts = { checkpoint, device, precision, fingerprint: model.fingerprint, store };
    const calibration = await comparisonCalibration(given, options, parts);
    const run = new ComparisonRun(options, { model, device, precision, calibration, texts, tasks, store });
    const dense = await run.dense(checkpoint);
    const cells: ComparisonCell[] = [];
    const failures: ComparisonFailure[] = [];
    for (const pattern of patterns) {
      for (const method of methods) {
        throwIfAborted(signal);
        const outcome = await run.cell(method, pattern);
        const of = { done: cells.length + failures.length + 1, cells: methods.length * patterns.length };
        if ('failure' in outcome) {
          failures.push(outcome.failure);
          const { pattern: title, code, message } = outcome.failure;
          onEvent?.({ type: 'failure', ...of, method: method.id, pattern: title, code, message });
        } else {
          const { cell, stored } = outcome;
          cells.push(cell);
          const { pattern: title, meanError, perplexity } = cell;
          onEvent?.({ type: 'cell', stored, ...of, method: method.id, pattern: title, meanError, perplexity });
        }
      }
    }
    if (cells.length === 0) {
      const told = failures.map(({ title, pattern, message }) => `${title} at ${pattern}: ${message}`);
      throw new AlpsError(failures[0]!.code, `No cell gives numbers. ${told.join('; ')}`);
    }
    const comparison: Comparison = {
      version,
      model,
      device: device.info().details,
      precision,
      propagation,
      calibration: calibrationReport(calibration, options.calibration),
      texts: texts.map(({ name, protocol, windows: w }) => ({
        name,
        protocol: describeProtocol(w, protocol),
        windows: w.windows,
        length: w.length,
        hash: w.hash,
      })),
      tasks: tasks.map(({ task, file, protocol }) => ({ task, file, protocol })),
      dense,
      cells,
      failures,
    };
    return { comparison, windows: calibration };
  } catch (error) {
    if (signal?.aborted && !(error instanceof AlpsError && error.code === 'ABORTED')) throw aborted(signal);
    throw error;
  } finally {
    await checkpoint.close();
  }
}

function checkTexts({ texts, length, windows }: CompareOptions): void {
  listOfObjects('texts', texts, comparisonTextNames);
  for (const { name, protocol } of texts) {
    textOf('texts.name', 'a text that is not empty', name);
    checkEvaluation({ protocol, length, windows });
  }
  const names = texts.map(({ name }) => name);
  distinct('texts', names, 'a different name for each text');
}

function parsePatterns({ sparsities = [], patterns = [] }: CompareOptions): Pattern[] {
  anyList('sparsities', sparsities);
  anyList('patterns', patterns);
  const all = [
    ...sparsities.map((sparsity) => parsePattern({ sparsity })),
    ...patterns.map((pattern) => parsePattern({ pattern })),
  ];
  if (all.length === 0) throw invalidArgument('sparsities and patterns', 'at least one', 'none');
  distinct('sparsities and patterns', all.map(patternTitle));
  return all;
}

function distinct(name: string, values: readonly string[], expected = 'each one once'): void {
  if (new Set(values).size < values.length) throw invalidArgument(name, expected, values.join(', '));
}

/** The tasks with what tells their files apart from others. */
async function prepareTasks({ tasks = [], taskLimit, signal }: CompareOptions): Promise<PreparedTask[]> {
  if (tasks.length > 0) await readTasks({ tasks, limit: taskLimit, signal }); // what is wrong with one is told first
  return Promise.all(
    tasks.map(async ({ task, file }) => {
      const { version: taskVersion } = taskOf(task);
      const content = await readFile(file).catch((cause) => {
        throw fileSystemError('read', file, cause);
      });
      const hash = createHash('sha256').update(content).digest('hex');
      const most = taskLimit === undefined ? '' : `, the first ${taskLimit} records`;
      return { task, file, hash, protocol: `lm-evaluation-harness 0.4.13, version ${taskVersion}, zero-shot${most}` };
    }),
  );
}
