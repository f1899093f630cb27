import { createHash } from 'node:crypto';
import { readFile, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { type CalibrationOptions, loadCalibration, loadEvaluationWindows } from '../calibration/calibration.js';
import type { PerplexityProtocol } from '../calibration/protocols.js';
import type { TextSource } from '../calibration/text.js';
import type { TokenWindows } from '../calibration/windows.js';
import { Checkpoint } from '../checkpoint/folder.js';
import { Device, type DeviceName } from '../device/device.js';
import { AlpsError, aborted, fileSystemError, invalidArgument, throwIfAborted } from '../errors.js';
import { describeProtocol, evaluateWindows } from '../evaluate.js';
import { evaluateTasks, type TaskResult, type TaskSource } from '../evaluate-tasks.js';
import { taskOf } from '../evaluation/tasks/definitions.js';
import { type Precision, readArchitecture } from '../model/decoder.js';
import { version } from '../package-version.js';
import { choosePrecision, deviceOptions, type PruneOptions, prune } from '../prune.js';
import { type Pattern, parsePattern } from '../pruning/pattern.js';
import type { Propagation } from '../traversal.js';
import { CellStore } from './cell-store.js';
import { fingerprint } from './fingerprint.js';
import { type MethodSpec, parseMethods, patternFlags, patternTitle } from './method-spec.js';

export interface ComparisonText {
  /** For tables and charts. */
  name: string;
  text: TextSource;
  field?: string;
  /** Default `text`. */
  protocol?: PerplexityProtocol;
}

export interface CompareOptions {
  /** Folder of the model. */
  model: string;
  /** Folder for the finished cells and the reports; a run that was stopped goes on where it was. */
  out: string;
  /** Such as `['mp', 'wanda', 'wanda+refit', 'sparsegpt', 'dsnot', 'alps']`. */
  methods: readonly string[];
  sparsities?: readonly number[];
  patterns?: readonly { keep: number; of: number }[];
  calibration: CalibrationOptions;
  /** Texts for the perplexities. */
  texts: readonly ComparisonText[];
  /** Zero-shot tasks, evaluated for each cell. */
  tasks?: readonly TaskSource[];
  /** At most this many records of each task. */
  taskLimit?: number;
  /** Tokens of an evaluation window. Default 2048, capped by the model and the text. */
  length?: number;
  /** At most this many evaluation windows a text. Default: all. */
  windows?: number;
  /** For the methods that do not say it themselves. Default `sequential`. */
  propagation?: Propagation;
  /** Of pruning and evaluation. Default `auto`. */
  precision?: Precision | 'auto';
  device?: DeviceName;
  threads?: number;
  memoryLimit?: number;
  /** What the files are called in the commands that the report shows. */
  names?: { calibration?: string; texts?: Record<string, string> };
  signal?: AbortSignal;
  onEvent?: (event: CompareEvent) => void;
}

export type CompareEvent =
  | { type: 'start'; cells: number; methods: string[]; patterns: string[] }
  | { type: 'dense'; perplexity: Record<string, number>; stored: boolean }
  | { type: 'progress'; share: number; doing: string }
  | ({ type: 'cell'; stored: boolean; done: number; cells: number } & Pick<
      ComparisonCell,
      'method' | 'pattern' | 'meanError' | 'perplexity'
    >);

/** One method at one pattern. */
export interface ComparisonCell {
  /** As it was asked for, such as `wanda+refit`. */
  method: string;
  title: string;
  base: string;
  refit: MethodSpec['refit'];
  /** "70 %" or "2:4". */
  pattern: string;
  /** Of the N:M patterns: what they amount to. */
  sparsity: number;
  nm: boolean;
  meanError: number;
  layers: { block: number; name: string; error: number | null; sparsity: number }[];
  /** By text. */
  perplexity: Record<string, number>;
  /** By task. */
  tasks: Record<string, TaskScore>;
  milliseconds: { prune: number; read: number; forward: number; solve: number; write: number; evaluate: number };
  /** Most bytes of tensors at one time while pruning. */
  peakBytes: number;
  /** What makes these numbers again. */
  commands: string[];
}

/** Accuracies of a zero-shot task. */
export type TaskScore = Pick<TaskResult, 'items' | 'acc' | 'accStandardError' | 'accNorm' | 'perplexity'>;

export interface Comparison {
  version: string;
  model: { folder: string; type: string; blocks: number; fingerprint: string };
  device: string;
  precision: Precision;
  propagation: Propagation;
  calibration: { windows: number; length: number; tokens: number; seed: number; hash: string; note?: string };
  texts: { name: string; protocol: string; windows: number; length: number; hash: string }[];
  tasks: { task: string; file: string; protocol: string }[];
  dense: {
    perplexity: Record<string, number>;
    tasks: Record<string, TaskScore>;
    milliseconds: number;
    commands: string[];
  };
  cells: ComparisonCell[];
}

/**
 * Prunes a model with several methods at several sparsities, from the same calibration tokens, and measures each: the layers' errors,
 * the perplexity on each text, time and memory. Finished cells are kept in `out` and not computed twice.
 * @throws AlpsError with a `code`
 */
export async function compare(options: CompareOptions): Promise<Comparison> {
  const { signal, onEvent } = options;
  const methods = parseMethods(options.methods);
  const patterns = parsePatterns(options);
  if (options.texts.some(({ name }, i) => options.texts.findIndex((text) => text.name === name) !== i)) {
    throw invalidArgument('texts', 'a name of its own for each text', options.texts.map(({ name }) => name).join(', '));
  }
  throwIfAborted(signal);
  const checkpoint = await Checkpoint.open(options.model, { signal });
  try {
    const device = Device.open(options.device ?? 'auto', deviceOptions(options));
    const precision = choosePrecision(options.precision ?? 'auto', checkpoint, device);
    const { config } = readArchitecture(checkpoint);
    onEvent?.({
      type: 'start',
      cells: methods.length * patterns.length,
      methods: methods.map(({ id }) => id),
      patterns: patterns.map(patternTitle),
    });
    const calibration = await loadCalibration(options.model, config, options.calibration, { signal });
    const texts: Prepared['texts'] = [];
    for (const { name, text, field, protocol = 'text' } of options.texts) {
      const asked = { text, field, protocol, length: options.length, windows: options.windows };
      texts.push({ name, protocol, windows: await loadEvaluationWindows(options.model, config, asked, { signal }) });
    }
    const model = {
      folder: options.model,
      type: config.modelType,
      blocks: config.layers,
      fingerprint: await fingerprint(checkpoint, signal),
    };
    const tasks = await readTasks(options);
    const run = new ComparisonRun(options, { model, device, precision, calibration, texts, tasks });
    const dense = await run.dense(checkpoint);
    const cells: ComparisonCell[] = [];
    for (const pattern of patterns) {
      for (const method of methods) {
        throwIfAborted(signal);
        const { result, stored } = await run.cell(method, pattern);
        cells.push(result);
        const { perplexity, meanError } = result;
        const done = cells.length;
        onEvent?.({
          type: 'cell',
          stored,
          done,
          cells: methods.length * patterns.length,
          method: method.id,
          pattern: result.pattern,
          meanError,
          perplexity,
        });
      }
    }
    const { windows, length, hash, note } = calibration;
    const seed = options.calibration.seed ?? 0;
    return {
      version,
      model,
      device: device.info().details,
      precision,
      propagation: options.propagation ?? 'sequential',
      calibration: { windows, length, tokens: windows * length, seed, hash, ...(note ? { note } : {}) },
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
    };
  } catch (error) {
    if (signal?.aborted && !(error instanceof AlpsError && error.code === 'ABORTED')) throw aborted(signal);
    throw error;
  } finally {
    await checkpoint.close();
  }
}

function parsePatterns({ sparsities = [], patterns = [] }: CompareOptions): Pattern[] {
  const all = [
    ...sparsities.map((sparsity) => parsePattern({ sparsity })),
    ...patterns.map((pattern) => parsePattern({ pattern })),
  ];
  if (all.length === 0) throw invalidArgument('sparsities and patterns', 'at least one', 'none');
  return all;
}

/** The tasks with what tells their files apart from others. */
async function readTasks({ tasks = [], taskLimit }: CompareOptions): Promise<PreparedTask[]> {
  return Promise.all(
    tasks.map(async ({ task, file }) => {
      const { version: taskVersion } = taskOf(task);
      const content = await readFile(file).catch((cause) => {
        throw fileSystemError('read', file, cause);
      });
      const hash = createHash('sha256').update(content).digest('hex');
      const most = taskLimit === undefined ? '' : `, the first ${taskLimit} records`;
      return { task, file, hash, protocol: `lm-evaluation-harness 0.4, version ${taskVersion}, zero-shot${most}` };
    }),
  );
}

interface PreparedTask extends TaskSource {
  hash: string;
  protocol: string;
}

interface Prepared {
  model: Comparison['model'];
  device: Device;
  precision: Precision;
  calibration: TokenWindows;
  texts: { name: string; protocol: PerplexityProtocol; windows: TokenWindows }[];
  tasks: PreparedTask[];
}

/** The cells of one comparison. */
class ComparisonRun {
  readonly #options: CompareOptions;
  readonly #prepared: Prepared;
  readonly #store: Promise<CellStore>;

  constructor(options: CompareOptions, prepared: Prepared) {
    this.#options = options;
    this.#prepared = prepared;
    this.#store = CellStore.open(join(options.out, 'cells'));
  }

  /** All that a cell's numbers depend on. */
  #key(part: Record<string, unknown>) {
    const { model, precision, texts, tasks } = this.#prepared;
    const { fingerprint: weights } = model;
    return {
      version,
      weights,
      precision,
      texts: texts.map(({ name, windows }) => [name, windows.hash]),
      // Left out where there are none, so that results from before tasks were asked for stay good.
      ...(tasks.length > 0 ? { tasks: tasks.map(({ task, hash, protocol }) => [task, hash, protocol]) } : {}),
      ...part,
    };
  }

  async dense(checkpoint: Checkpoint): Promise<Comparison['dense']> {
    const store = await this.#store;
    const { result, stored } = await store.take(this.#key({ dense: true }), async () => {
      const began = performance.now();
      const perplexity = await this.#perplexities(checkpoint, 'dense');
      const tasks = await this.#tasks(this.#options.model, 'dense');
      return { perplexity, tasks, milliseconds: performance.now() - began };
    });
    this.#options.onEvent?.({ type: 'dense', perplexity: result.perplexity, stored });
    return { ...result, commands: this.#evaluationCommands(this.#options.model) };
  }

  async cell(method: MethodSpec, pattern: Pattern) {
    const { calibration } = this.#prepared;
    const propagation = method.options.propagation ?? this.#options.propagation ?? 'sequential';
    const { propagation: _, ...options } = method.options;
    const key = this.#key({ calibration: calibration.hash, pattern, propagation, options });
    const store = await this.#store;
    const { result, stored } = await store.take(key, () => this.#compute(method, pattern, store.folder));
    // Titles and commands are of this run, whoever computed the numbers.
    return { result: { ...result, ...this.#labels(method, pattern) }, stored };
  }

  #labels(method: MethodSpec, pattern: Pattern) {
    const { id, title, base, refit } = method;
    return {
      method: id,
      title,
      base,
      refit,
      pattern: patternTitle(pattern),
      nm: 'of' in pattern,
      commands: [this.#pruneCommand(method, pattern), ...this.#evaluationCommands('PRUNED')],
    };
  }

  async #compute(method: MethodSpec, pattern: Pattern, scratch: string) {
    const { signal, onEvent } = this.#options;
    const { calibration, device, precision } = this.#prepared;
    const out = join(scratch, 'model.partial');
    const phases = { read: 0, forward: 0, solve: 0, write: 0 };
    const doing = `${method.id}, ${patternTitle(pattern)}`;
    try {
      device.resetPeak();
      const { tokens, windows, length } = calibration;
      const tokenIds = Array.from({ length: windows }, (_, i) => tokens.subarray(i * length, (i + 1) * length));
      const pruneOptions: PruneOptions = {
        ...this.#shared(),
        propagation: this.#options.propagation,
        ...method.options,
        ...('of' in pattern ? { pattern } : { sparsity: pattern.sparsity }),
        model: this.#options.model,
        out,
        overwrite: true,
        precision,
        calibration: { tokenIds },
        signal,
        onEvent: (event) => {
          if (event.type !== 'block') return;
          for (const phase of Object.keys(phases) as (keyof typeof phases)[]) phases[phase] += event.phases[phase];
          onEvent?.({ type: 'progress', share: (event.block + 1) / event.blocks, doing });
        },
      };
      const report = await prune(pruneOptions);
      const peakBytes = device.info().memoryPeak;
      const began = performance.now();
      const pruned = await Checkpoint.open(out, { signal });
      try {
        const perplexity = await this.#perplexities(pruned, `evaluating ${doing}`);
        return {
          sparsity: report.sparsity,
          meanError: report.meanError!,
          layers: report.layers.map(({ block, name, error, sparsity }) => ({ block, name, error, sparsity })),
          perplexity,
          tasks: await this.#tasks(out, doing),
          milliseconds: { prune: report.milliseconds.total, ...phases, evaluate: performance.now() - began },
          peakBytes,
        };
      } finally {
        await pruned.close();
      }
    } finally {
      await rm(out, { recursive: true, force: true }).catch(() => undefined);
    }
  }

  async #perplexities(checkpoint: Checkpoint, doing: string): Promise<Record<string, number>> {
    const { texts, precision } = this.#prepared;
    const { signal, onEvent } = this.#options;
    const result: Record<string, number> = {};
    for (const [i, { name, windows }] of texts.entries()) {
      const onProgress = (share: number) => onEvent?.({ type: 'progress', share: (i + share) / texts.length, doing });
      const shared = { ...this.#shared(), precision, signal, onProgress };
      result[name] = (await evaluateWindows(checkpoint, windows, shared)).perplexity;
    }
    return result;
  }

  async #tasks(model: string, doing: string): Promise<Record<string, TaskScore>> {
    const { tasks, precision } = this.#prepared;
    if (tasks.length === 0) return {};
    const { signal, onEvent, taskLimit: limit } = this.#options;
    const onProgress = (share: number, task: string) =>
      onEvent?.({ type: 'progress', share, doing: `${task}, ${doing}` });
    const results = await evaluateTasks({ ...this.#shared(), model, tasks, limit, precision, signal, onProgress });
    return Object.fromEntries(
      results.map(({ task, items, acc, accStandardError, accNorm, perplexity }) => [
        task,
        {
          items,
          acc,
          accStandardError,
          ...(accNorm === undefined ? {} : { accNorm }),
          ...(perplexity === undefined ? {} : { perplexity }),
        },
      ]),
    );
  }

  #shared() {
    const { device, threads, memoryLimit } = this.#options;
    return { device, ...deviceOptions({ threads, memoryLimit }) };
  }

  #pruneCommand({ flags }: MethodSpec, pattern: Pattern): string {
    const { model, names, calibration, propagation, precision } = this.#options;
    const text = names?.calibration ?? (typeof calibration.text === 'string' ? calibration.text : 'CALIBRATION');
    const { windows, length } = this.#prepared.calibration;
    const how = propagation === 'block' && !flags.includes('--propagation') ? ' --propagation block' : '';
    const format = precision && precision !== 'auto' ? ` --precision ${precision}` : '';
    const seed = calibration.seed ? ` --seed ${calibration.seed}` : '';
    return (
      `alps prune ${model} --out PRUNED ${patternFlags(pattern)} ${flags}${how}${format} --calibration ${text} ` +
      `--windows ${windows} --length ${length}${seed}`
    );
  }

  #evaluationCommands(folder: string): string[] {
    const { names, texts } = this.#options;
    const { precision } = this.#prepared;
    const { tasks } = this.#prepared;
    const limit = this.#options.taskLimit === undefined ? '' : ` --limit ${this.#options.taskLimit}`;
    const list = tasks.map(({ task, file }) => `${task}=${file}`).join(',');
    const zeroShot = tasks.length > 0 ? [`alps eval ${folder} --tasks ${list}${limit} --precision ${precision}`] : [];
    const perplexities = this.#prepared.texts.map(({ name, protocol, windows }, i) => {
      const { text } = texts[i]!;
      const file = names?.texts?.[name] ?? (typeof text === 'string' ? text : basename(name));
      const how = protocol === 'text' ? '' : ` --protocol ${protocol}`;
      return `alps eval ${folder} --text ${file}${how} --length ${windows.length} --windows ${windows.windows} --precision ${precision}`;
    });
    return [...perplexities, ...zeroShot];
  }
}
