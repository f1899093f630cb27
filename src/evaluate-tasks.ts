import { setImmediate } from 'node:timers/promises';
import { Checkpoint } from './checkpoint/folder.js';
import { Device, type JobDevice, jobDeviceNames } from './device/device.js';
import {
  AlpsError,
  filePath,
  invalidArgument,
  listOfObjects,
  type Names,
  optionalFunction,
  throwIfAborted,
} from './errors.js';
import { type TaskDefinition, type TaskItem, taskOf } from './evaluation/tasks/definitions.js';
import { encodePair, type Likelihood, likelihoods, type TokenPair } from './evaluation/tasks/likelihood.js';
import { readRecords } from './evaluation/tasks/records.js';
import { DecoderModel, type Precision } from './model/decoder.js';
import { loadTokenizer, type Tokenizer } from './model/tokenizer.js';
import { choosePrecision, deviceOptions } from './prune.js';
import { flag, integerFrom } from './pruning/options.js';
import { listInside, optionsInside, snapshot } from './snapshot.js';

/** A zero-shot task and its data. */
export interface TaskSource {
  /** `arc_easy`, `arc_challenge`, `piqa`, `hellaswag`, `winogrande`, `boolq`, `rte`, `openbookqa`, `lambada_openai`, `lambada_standard`. */
  task: string;
  /** Path of the data set's own file: .jsonl (also .gz) or .parquet. */
  file: string;
}

/** Options of {@link evaluateTasks}. */
export interface EvaluateTasksOptions extends JobDevice {
  /** Path of the model folder. */
  model: string;
  /** At least one. */
  tasks: readonly TaskSource[];
  /** At most this many records of each task, from the start. Default: all. */
  limit?: number;
  /** Whether each item's likelihoods and choices are returned. Default false. */
  samples?: boolean;
  /** Default `float32`. */
  precision?: Precision | 'auto';
  /** Aborts the call with `ABORTED`. */
  signal?: AbortSignal;
  /** Called with the name of the current task and the share of its work that is done, from 0 to 1. */
  onProgress?: (share: number, task: string) => void;
}

export const taskNames: Names<TaskSource> = { task: true, file: true };

const evaluateTasksNames: Names<EvaluateTasksOptions> = {
  ...jobDeviceNames,
  model: true,
  tasks: listInside(optionsInside('tasks', taskNames)),
  limit: true,
  samples: true,
  precision: true,
  signal: true,
  onProgress: true,
};

/** Likelihoods and choices of one item. */
export interface TaskSample {
  /** Index of the right answer, from 0. */
  gold: number;
  /** Index of the most likely answer. LAMBADA: 0 if the last word is the one that the model chooses greedily, else 1. */
  choice: number;
  /** Index of the answer with the highest likelihood per character. */
  choiceNormalised: number;
  /** Of each answer, in nats. */
  logLikelihoods: number[];
}

/** Result of {@link evaluateTasks} for one task. */
export interface TaskResult {
  task: string;
  file: string;
  items: number;
  /** Share of items, from 0 to 1, whose most likely answer is right. */
  acc: number;
  accStandardError: number;
  /** The same with log-likelihoods divided by the answers' length in characters (`acc_norm`), for tasks that have it. */
  accNorm?: number;
  accNormStandardError?: number;
  /** LAMBADA: exp of the mean negative log-likelihood of the last word. */
  perplexity?: number;
  /** The definition that was followed. */
  protocol: string;
  milliseconds: number;
  /** With `samples: true`. */
  samples?: TaskSample[];
}

/**
 * Evaluates zero-shot tasks from the data sets' own files, scored as lm-evaluation-harness 0.4.13 does. All files are read and checked first.
 *
 * @throws AlpsError with a `code`: `INVALID_ARGUMENT`, `INVALID_CHECKPOINT`, `UNSUPPORTED_MODEL`, `INVALID_TEXT` for a file that is not the
 * task's data set, `FILE_SYSTEM`, `NOT_FINITE` if the model's outputs are not finite, `OUT_OF_MEMORY`, `NO_DEVICE`, `DEVICE_FAILED` or `ABORTED`
 */
export async function evaluateTasks(given: EvaluateTasksOptions): Promise<TaskResult[]> {
  const options = snapshot(given, evaluateTasksNames);
  const { signal, samples = false } = options;
  flag('samples', samples);
  optionalFunction('onProgress', options.onProgress);
  const tasks = await readTasks(options);
  const checkpoint = await Checkpoint.open(options.model, { signal });
  try {
    const device = Device.open(options.device, deviceOptions(options));
    const { precision: asked = 'float32' } = options;
    const precision = choosePrecision(asked, checkpoint, device);
    await using stream = device.stream({ signal });
    const model = DecoderModel.open(checkpoint, stream, precision);
    const { vocabulary, maxPositions } = model.config;
    const tokenizer = await loadTokenizer(checkpoint.folder, { vocabSize: vocabulary });
    const encoded: EncodedTask[] = [];
    for (const task of tasks) encoded.push(await encodeTask(task, tokenizer, maxPositions, signal));
    const results: TaskResult[] = [];
    for (const task of encoded) results.push(await runTask(model, task, { ...options, samples }));
    return results;
  } finally {
    await checkpoint.close();
  }
}

interface ReadTask {
  definition: TaskDefinition;
  file: string;
  items: TaskItem[];
  milliseconds: number;
}

interface EncodedTask extends ReadTask {
  pairs: TokenPair[];
}

type TaskFiles = Pick<EvaluateTasksOptions, 'tasks' | 'limit'>;

/**
 * What can be said of tasks without their files.
 * @throws AlpsError `INVALID_ARGUMENT`
 */
export function checkTasks({ tasks, limit = 1 }: TaskFiles): Pick<ReadTask, 'definition' | 'file'>[] {
  listOfObjects('tasks', tasks, taskNames);
  if (tasks.length === 0) throw invalidArgument('tasks', 'at least one task', tasks);
  integerFrom('limit', limit, 1);
  return tasks.map(({ task, file }) => {
    filePath('tasks.file', file);
    return { definition: taskOf(task), file };
  });
}

/** Reads all files. What is wrong with one of them, or with a name, is told before anything is evaluated. */
export async function readTasks(options: TaskFiles & { signal?: AbortSignal }): Promise<ReadTask[]> {
  const { limit = Number.POSITIVE_INFINITY, signal } = options;
  const known = checkTasks(options);
  const read: ReadTask[] = [];
  for (const { definition, file } of known) {
    throwIfAborted(signal);
    const began = performance.now();
    const records = await readRecords(file, limit, signal);
    if (records.length === 0) throw new AlpsError('INVALID_TEXT', `${file} has no records`);
    const items = records.map((record, i) => atRecord(definition, file, i, () => definition.read(record)));
    read.push({ definition, file, items, milliseconds: performance.now() - began });
  }
  return read;
}

async function encodeTask(
  task: ReadTask,
  tokenizer: Tokenizer,
  maxPositions: number,
  signal: AbortSignal | undefined,
): Promise<EncodedTask> {
  const began = performance.now();
  const { definition, file, items } = task;
  const pairs: TokenPair[] = [];
  for (const [index, item] of items.entries()) {
    throwIfAborted(signal);
    for (const pair of item.pairs)
      pairs.push(atRecord(definition, file, index, () => encodePair(tokenizer, pair, maxPositions)));
    if (pairs.length % 64 < item.pairs.length) await setImmediate();
  }
  return { ...task, pairs, milliseconds: task.milliseconds + performance.now() - began };
}

async function runTask(
  model: DecoderModel,
  { definition, file, items, pairs, milliseconds }: EncodedTask,
  { samples, onProgress: told }: Pick<EvaluateTasksOptions, 'onProgress'> & { samples: boolean },
): Promise<TaskResult> {
  const began = performance.now();
  const onProgress = told && ((share: number) => told(share, definition.name));
  const scores = await likelihoods(model, pairs, { onProgress });
  return {
    task: definition.name,
    file,
    ...summarise(definition, items, scores, samples),
    protocol: `lm-evaluation-harness 0.4.13, ${definition.name} version ${definition.version}, zero-shot`,
    milliseconds: milliseconds + performance.now() - began,
  };
}

/** Errors of a record tell where it is. */
function atRecord<T>(definition: TaskDefinition, file: string, index: number, run: () => T): T {
  try {
    return run();
  } catch (cause) {
    if (!(cause instanceof AlpsError) && !(cause instanceof TypeError)) throw cause;
    throw new AlpsError(
      'INVALID_TEXT',
      `${file}, record ${index + 1}: not a record of ${definition.name}: ${cause.message}`,
      {
        cause,
      },
    );
  }
}

function summarise(definition: TaskDefinition, items: TaskItem[], scores: Likelihood[], keep: boolean) {
  const samples: TaskSample[] = [];
  const [right, rightNormalised]: [number[], number[]] = [[], []];
  let [at, nll] = [0, 0];
  for (const { pairs, gold, lengths } of items) {
    const some = scores.slice(at, at + pairs.length);
    at += pairs.length;
    const logLikelihoods = some.map(({ logLikelihood }) => logLikelihood);
    const choice = argmax(logLikelihoods);
    const choiceNormalised = argmax(logLikelihoods.map((value, i) => value / lengths[i]!));
    const single = pairs.length === 1;
    right.push(single ? Number(some[0]!.greedy) : Number(choice === gold));
    rightNormalised.push(Number(choiceNormalised === gold));
    if (single) nll -= logLikelihoods[0]!;
    samples.push({ gold, choice: single ? Number(!some[0]!.greedy) : choice, choiceNormalised, logLikelihoods });
  }
  const [acc, accStandardError] = meanOf(right);
  const [accNorm, accNormStandardError] = meanOf(rightNormalised);
  return {
    items: items.length,
    acc,
    accStandardError,
    ...(definition.metrics.includes('acc_norm') ? { accNorm, accNormStandardError } : {}),
    ...(definition.metrics.includes('perplexity') ? { perplexity: Math.exp(nll / items.length) } : {}),
    ...(keep ? { samples } : {}),
  };
}

/** The first of the largest. */
function argmax(values: number[]): number {
  return values.reduce((best, value, i) => (value > values[best]! ? i : best), 0);
}

/** Mean and its standard error. */
function meanOf(values: number[]): [mean: number, error: number] {
  const n = values.length;
  const mean = values.reduce((sum, value) => sum + value, 0) / n;
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(n - 1, 1);
  return [mean, Math.sqrt(variance / n)];
}
