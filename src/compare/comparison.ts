import { type CalibrationOptions, type CalibrationReport, calibrationNames } from '../calibration/calibration.js';
import type { PerplexityProtocol } from '../calibration/protocols.js';
import { type TextSource, textInside } from '../calibration/text.js';
import { type JobDevice, jobDeviceNames } from '../device/device.js';
import type { Names } from '../errors.js';
import { type TaskResult, type TaskSource, taskNames } from '../evaluate-tasks.js';
import type { Precision } from '../model/decoder.js';
import { patternNames } from '../pruning/pattern.js';
import { listInside, optionsInside, recordInside } from '../snapshot.js';
import type { Propagation } from '../traversal.js';
import type { MethodSpec } from './method-spec.js';

/** A text on which {@link compare} measures perplexities. */
export interface ComparisonText {
  /** Name in tables and charts; different for each text. */
  name: string;
  text: TextSource;
  /** Text field of .jsonl and .parquet files. Default `text`; `sentence` for the protocol `ptb`. */
  field?: string;
  /** Default `text`. */
  protocol?: PerplexityProtocol;
}

export const comparisonTextNames: Names<ComparisonText> = {
  name: true,
  text: textInside,
  field: true,
  protocol: true,
};

/** Options of {@link compare}. Give at least one of `sparsities` and `patterns`. */
export interface CompareOptions extends JobDevice {
  /** Path of the model folder. */
  model: string;
  /** Folder for the finished cells (`cells/`), which later calls reuse. Reports are written by {@link writeComparison}. */
  out: string;
  /**
   * Any of `mp`, `mp-row`, `wanda`, `dsnot`, `dsnot-mp`, `dsnot-sparsegpt`, `sparsegpt`, `alps` and `alps-published`, each at most once and optionally
   * with `+refit` (conjugate gradients) or `+backsolve` (exact) appended, such as `['mp', 'wanda', 'wanda+refit', 'alps']`.
   */
  methods: readonly string[];
  /** Shares of each matrix that become zero, each from 0 to 1. No default, unlike `alps compare`: give `sparsities`, `patterns` or both. */
  sparsities?: readonly number[];
  /** N:M patterns, such as `{keep: 2, of: 4}`. No default. */
  patterns?: readonly { keep: number; of: number }[];
  /** Calibration of all cells. With `ownWindows` the model writes the windows once, for all cells. */
  calibration: CalibrationOptions;
  /** Texts to measure perplexity on; may be empty. */
  texts: readonly ComparisonText[];
  /** Zero-shot tasks, evaluated for each cell. Default: none. */
  tasks?: readonly TaskSource[];
  /** At most this many records of each task, from the start. Default: all. */
  taskLimit?: number;
  /** Tokens per evaluation window, at least 2. Default 2048; at most the model's maximum and the length of the text. */
  length?: number;
  /** At most this many evaluation windows per text. Default: all. */
  windows?: number;
  /** Propagation of the methods that do not set it themselves. Default `sequential`. */
  propagation?: Propagation;
  /** Precision of pruning and evaluation. Default `auto`. */
  precision?: Precision | 'auto';
  /** File names to show in the `commands` of the results, of texts by their name. Default: the paths given above. */
  names?: { calibration?: string | readonly string[]; texts?: Record<string, string> };
  /** Aborts the call with `ABORTED`. */
  signal?: AbortSignal;
  /** Called for each step; must not throw. */
  onEvent?: (event: CompareEvent) => void;
}

export const fileNames: Names<NonNullable<CompareOptions['names']>> = {
  calibration: listInside(),
  texts: recordInside,
};

export const compareNames: Names<CompareOptions> = {
  ...jobDeviceNames,
  model: true,
  out: true,
  methods: listInside(),
  sparsities: listInside(),
  patterns: listInside(optionsInside('pattern', patternNames)),
  calibration: optionsInside('calibration', calibrationNames),
  texts: listInside(optionsInside('texts', comparisonTextNames)),
  tasks: listInside(optionsInside('tasks', taskNames)),
  taskLimit: true,
  length: true,
  windows: true,
  propagation: true,
  precision: true,
  names: optionsInside('names', fileNames),
  signal: true,
  onEvent: true,
};

/** The steps of {@link compare}, reported as they happen. `stored`: taken from an earlier call. */
export type CompareEvent =
  | { type: 'start'; cells: number; methods: string[]; patterns: string[] }
  /** With `ownWindows`: the share of their tokens that the model has written, from 0 to 1. */
  | { type: 'generate'; share: number }
  | { type: 'dense'; perplexity: Record<string, number>; stored: boolean }
  /** `share`: from 0 to 1, of the current part: the dense model, the next cell, or the paper's own figures. */
  | { type: 'progress'; share: number; doing: string }
  | ({ type: 'cell'; stored: boolean; done: number; cells: number } & Pick<
      ComparisonCell,
      'method' | 'pattern' | 'meanError' | 'perplexity'
    >)
  /** A cell without numbers. It is not stored, so the next call tries it again. */
  | ({ type: 'failure'; done: number; cells: number } & Pick<
      ComparisonFailure,
      'method' | 'pattern' | 'code' | 'message'
    >);

/** A cell without numbers: pruning failed, or the pruned model gives values that are not finite. The other cells are still computed. */
export interface ComparisonFailure {
  method: string;
  title: string;
  pattern: string;
  code: 'NOT_FINITE' | 'NOT_POSITIVE_DEFINITE';
  message: string;
  /** Commands that reproduce the failure. */
  commands: string[];
}

/** One method at one pattern. */
export interface ComparisonCell {
  /** As given, such as `wanda+refit`. */
  method: string;
  /** For display. */
  title: string;
  /** Title of the method without its refit. */
  base: string;
  refit: MethodSpec['refit'];
  /** "70 %" or "2:4". */
  pattern: string;
  /** Share of zeros, from 0 to 1; of N:M patterns too. */
  sparsity: number;
  /** Whether the pattern is N:M. */
  nm: boolean;
  /** Mean of the layers' relative errors. */
  meanError: number;
  layers: { block: number; name: string; error: number | null; sparsity: number }[];
  /** By the text's name. */
  perplexity: Record<string, number>;
  /** By the task's name. */
  tasks: Record<string, TaskScore>;
  milliseconds: { prune: number; read: number; forward: number; solve: number; write: number; evaluate: number };
  /** Peak of the bytes of all tensors while pruning. */
  peakBytes: number;
  /** Device on which times and memory were measured; a stored cell may come from another device than this run's. */
  device: string;
  /** Commands that reproduce these numbers. */
  commands: string[];
}

/** Accuracies of a zero-shot task. */
export type TaskScore = Pick<TaskResult, 'items' | 'acc' | 'accStandardError' | 'accNorm' | 'perplexity'>;

/** Version of the stored parts' layout, part of their keys: parts in another layout are computed again. */
export const layout = 2;

/** Result of {@link compare}; {@link writeComparison} makes reports of it. */
export interface Comparison {
  version: string;
  model: { folder: string; type: string; blocks: number; fingerprint: string };
  /** Device of this run, for display. */
  device: string;
  precision: Precision;
  propagation: Propagation;
  calibration: CalibrationReport;
  texts: { name: string; protocol: string; windows: number; length: number; hash: string }[];
  tasks: { task: string; file: string; protocol: string }[];
  dense: {
    perplexity: Record<string, number>;
    tasks: Record<string, TaskScore>;
    milliseconds: number;
    device: string;
    commands: string[];
  };
  cells: ComparisonCell[];
  failures: ComparisonFailure[];
}
