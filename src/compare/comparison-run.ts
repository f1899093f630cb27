import { rm } from 'node:fs/promises';
import { basename } from 'node:path';
import type { PerplexityProtocol } from '../calibration/protocols.js';
import { eachWindow, type TokenWindows } from '../calibration/windows.js';
import { Checkpoint } from '../checkpoint/folder.js';
import type { Device } from '../device/device.js';
import { AlpsError } from '../errors.js';
import { evaluateWindows } from '../evaluate.js';
import { evaluateTasks, type TaskSource } from '../evaluate-tasks.js';
import type { Precision } from '../model/decoder.js';
import { version } from '../package-version.js';
import { deviceOptions, type PruneOptions, parsePruneOptions, prune, reportedOptions } from '../prune.js';
import { wantsMixed } from '../pruning/options.js';
import type { Pattern } from '../pruning/pattern.js';
import { withPreset } from '../pruning/preset.js';
import { quoted } from '../quoted.js';
import type { CellStore } from './cell-store.js';
import {
  type CompareOptions,
  type Comparison,
  type ComparisonCell,
  type ComparisonFailure,
  layout,
  type TaskScore,
} from './comparison.js';
import { type MethodSpec, patternFlags, patternTitle } from './method-spec.js';

export interface PreparedTask extends TaskSource {
  hash: string;
  protocol: string;
}

/** What all cells share. */
export interface Prepared {
  model: Comparison['model'];
  device: Device;
  precision: Precision;
  calibration: TokenWindows;
  texts: { name: string; protocol: PerplexityProtocol; windows: TokenWindows }[];
  tasks: PreparedTask[];
  store: CellStore;
}

const fieldFlag = (field: string | undefined) => (field === undefined ? '' : ` --field ${quoted(field)}`);
const isPaths = (text: unknown): text is string | string[] =>
  typeof text === 'string' || (Array.isArray(text) && text.every((path) => typeof path === 'string'));

/** The errors that leave a cell without numbers; others end the comparison. */
function failureOf(error: unknown, out: string): Pick<ComparisonFailure, 'code' | 'message'> {
  if (!(error instanceof AlpsError)) throw error;
  const { code, message } = error;
  if (code !== 'NOT_FINITE' && code !== 'NOT_POSITIVE_DEFINITE') throw error;
  return { code, message: message.replaceAll(out, 'PRUNED') };
}

/** `result`, which JSON can hold. @throws AlpsError `NOT_FINITE` */
function finite<T>(model: string, result: T): T {
  JSON.stringify(result, (name, value: unknown) => {
    if (typeof value === 'number' && !Number.isFinite(value))
      throw new AlpsError('NOT_FINITE', `${model} gives ${value} for “${name}”`);
    return value;
  });
  return result;
}

/** Share of a cell's progress that its pruning is; the evaluation is the rest. */
const pruning = 0.5;

/** The cells of one comparison. */
export class ComparisonRun {
  readonly #options: CompareOptions;
  readonly #prepared: Prepared;

  constructor(options: CompareOptions, prepared: Prepared) {
    this.#options = options;
    this.#prepared = prepared;
  }

  /** All that a cell's numbers depend on. */
  #key(part: Record<string, unknown>) {
    const { model, precision, texts, tasks } = this.#prepared;
    const { fingerprint: weights } = model;
    return {
      version,
      layout,
      weights,
      precision,
      texts: texts.map(({ name, windows }) => [name, windows.hash, windows.length]),
      // Left out where there are none, so that results from before tasks were asked for stay good.
      ...(tasks.length > 0 ? { tasks: tasks.map(({ task, hash, protocol }) => [task, hash, protocol]) } : {}),
      ...part,
    };
  }

  async dense(checkpoint: Checkpoint): Promise<Comparison['dense']> {
    const { store } = this.#prepared;
    const { result, stored } = await store.take(this.#key({ dense: true }), async () => {
      const began = performance.now();
      const perplexity = await this.#perplexities(checkpoint, 'dense', 0);
      const tasks = await this.#tasks(this.#options.model, 'dense', 0);
      const milliseconds = performance.now() - began;
      return finite(this.#options.model, { perplexity, tasks, milliseconds, device: this.#device() });
    });
    this.#options.onEvent?.({ type: 'dense', perplexity: result.perplexity, stored });
    return { ...result, commands: this.#evaluationCommands(this.#options.model) };
  }

  /** Options are told apart as they are meant, with all defaults: another default is another cell. What fails is not kept. */
  async cell(
    method: MethodSpec,
    pattern: Pattern,
  ): Promise<{ cell: ComparisonCell; stored: boolean } | { failure: ComparisonFailure }> {
    const { calibration, precision, store } = this.#prepared;
    const options = this.#pruneOptions(method, pattern, store.scratch('model'));
    const parsed = parsePruneOptions(options);
    const asked = { ...parsed, mixedPrecision: wantsMixed(parsed, precision) };
    const meant = { method: parsed.method, ...reportedOptions(withPreset(options), asked, precision) };
    const key = this.#key({ calibration: [calibration.hash, calibration.length], pattern, options: meant });
    // Titles and commands are of this run, whoever computed the numbers.
    const labels = this.#labels(method, pattern);
    try {
      const { result, stored } = await store.take(key, () => this.#compute(method, pattern, options));
      return { cell: { ...result, ...labels }, stored };
    } catch (error) {
      const { title, commands } = labels;
      const failure = failureOf(error, options.out);
      return { failure: { method: method.id, title, pattern: labels.pattern, ...failure, commands } };
    }
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

  #pruneOptions(method: MethodSpec, pattern: Pattern, out: string): PruneOptions {
    const { model, propagation, signal } = this.#options;
    const { calibration, precision } = this.#prepared;
    return {
      ...this.#shared(),
      propagation,
      ...method.options,
      ...('of' in pattern ? { pattern } : { sparsity: pattern.sparsity }),
      model,
      out,
      overwrite: true,
      precision,
      calibration: { tokenIds: eachWindow(calibration) },
      signal,
    };
  }

  async #compute(method: MethodSpec, pattern: Pattern, options: PruneOptions) {
    const { signal, onEvent } = this.#options;
    const { device } = this.#prepared;
    const { out } = options;
    const phases = { read: 0, forward: 0, solve: 0, write: 0 };
    const doing = `${method.id}, ${patternTitle(pattern)}`;
    try {
      device.resetPeak();
      const report = await prune({
        ...options,
        onEvent: (event) => {
          if (event.type !== 'block') return;
          for (const phase of Object.keys(phases) as (keyof typeof phases)[]) phases[phase] += event.phases[phase];
          onEvent?.({ type: 'progress', share: (pruning * (event.block + 1)) / event.blocks, doing });
        },
      });
      const peakBytes = device.info().memoryPeak;
      const began = performance.now();
      const pruned = await Checkpoint.open(out, { signal });
      try {
        const perplexity = await this.#perplexities(pruned, `evaluating ${doing}`, pruning);
        return finite(out, {
          sparsity: report.sparsity,
          meanError: report.meanError!,
          layers: report.layers.map(({ block, name, error, sparsity }) => ({ block, name, error, sparsity })),
          perplexity,
          tasks: await this.#tasks(out, doing, pruning),
          milliseconds: { prune: report.milliseconds.total, ...phases, evaluate: performance.now() - began },
          peakBytes,
          device: this.#device(),
        });
      } finally {
        await pruned.close();
      }
    } finally {
      await rm(out, { recursive: true, force: true }).catch(() => undefined);
    }
  }

  /** Tells of one text or task after the other. @param begun share of the cell's work that was done before them */
  #evaluating(begun: number): (part: number, share: number, doing: string) => void {
    const { texts, tasks } = this.#prepared;
    const parts = texts.length + tasks.length;
    return (part, share, doing) =>
      this.#options.onEvent?.({ type: 'progress', share: begun + ((1 - begun) * (part + share)) / parts, doing });
  }

  async #perplexities(checkpoint: Checkpoint, doing: string, begun: number): Promise<Record<string, number>> {
    const { texts, precision } = this.#prepared;
    const { signal } = this.#options;
    const told = this.#evaluating(begun);
    const results: [name: string, perplexity: number][] = [];
    for (const [i, { name, windows }] of texts.entries()) {
      const onProgress = (share: number) => told(i, share, doing);
      const shared = { ...this.#shared(), precision, signal, onProgress };
      results.push([name, (await evaluateWindows(checkpoint, windows, shared)).perplexity]);
    }
    return Object.fromEntries(results); // a name may be __proto__
  }

  async #tasks(model: string, doing: string, begun: number): Promise<Record<string, TaskScore>> {
    const { texts, precision } = this.#prepared;
    const { tasks = [], signal, taskLimit: limit } = this.#options;
    if (tasks.length === 0) return {};
    const told = this.#evaluating(begun);
    const onProgress = (share: number, name: string) =>
      told(texts.length + tasks.findIndex(({ task }) => task === name), share, `${name}, ${doing}`);
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

  #device(): string {
    return this.#prepared.device.info().details;
  }

  #shared() {
    const { device, threads, memoryLimit } = this.#options;
    return { device, ...deviceOptions({ threads, memoryLimit }) };
  }

  #pruneCommand({ flags }: MethodSpec, pattern: Pattern): string {
    const { model, names, calibration, propagation } = this.#options;
    const { precision } = this.#prepared;
    const { text } = calibration;
    const paths = names?.calibration ?? (isPaths(text) ? text : ['CALIBRATION']);
    const files = [paths]
      .flat()
      .map((path) => `--calibration ${quoted(path)}`)
      .join(' ');
    const { length, windows: all } = this.#prepared.calibration;
    const { ownWindows = 0 } = calibration;
    // A short text of a mix gives fewer than its share of those that were asked for.
    const given = calibration.shares ? (calibration.windows ?? 128) : all - ownWindows;
    const windows = `--windows ${given}${ownWindows > 0 ? ` --own-windows ${ownWindows}` : ''}`;
    const how = propagation === 'block' && !flags.includes('--propagation') ? ' --propagation block' : '';
    const shares = calibration.shares ? ` --shares ${calibration.shares.join(',')}` : '';
    const seed = calibration.seed ? ` --seed ${calibration.seed}` : '';
    return (
      `alps prune ${quoted(model)} --out PRUNED ${patternFlags(pattern)} ${flags}${how} --precision ${precision} ` +
      `${files}${shares}${fieldFlag(calibration.field)} ${windows} --length ${length}${seed}`
    );
  }

  #evaluationCommands(folder: string): string[] {
    const { names, texts } = this.#options;
    const { precision } = this.#prepared;
    const { tasks } = this.#prepared;
    const limit = this.#options.taskLimit === undefined ? '' : ` --limit ${this.#options.taskLimit}`;
    const list = tasks.map(({ task, file }) => `${task}=${file}`).join(',');
    const zeroShot =
      tasks.length > 0 ? [`alps eval ${quoted(folder)} --tasks ${quoted(list)}${limit} --precision ${precision}`] : [];
    const perplexities = this.#prepared.texts.map(({ name, protocol, windows }, i) => {
      const { text, field } = texts[i]!;
      const named = names?.texts && Object.hasOwn(names.texts, name) ? names.texts[name] : undefined;
      const file = named ?? (typeof text === 'string' ? text : basename(name));
      const how = protocol === 'text' ? '' : ` --protocol ${protocol}`;
      return `alps eval ${quoted(folder)} --text ${quoted(file)}${fieldFlag(field)}${how} --length ${windows.length} --windows ${windows.windows} --precision ${precision}`;
    });
    return [...perplexities, ...zeroShot];
  }
}
