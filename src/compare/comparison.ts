import type { CalibrationOptions, CalibrationReport } from '../calibration/calibration.js';
import type { PerplexityProtocol } from '../calibration/protocols.js';
import type { TextSource } from '../calibration/text.js';
import { type JobDevice, jobDeviceNames } from '../device/device.js';
import type { Names } from '../errors.js';
import type { TaskResult, TaskSource } from '../evaluate-tasks.js';
import type { Precision } from '../model/decoder.js';
import type { Propagation } from '../traversal.js';
import type { MethodSpec } from './method-spec.js';

export interface ComparisonText {
  /** For tables and charts. */
  name: string;
  text: TextSource;
  field?: string;
  /** Default `text`. */
  protocol?: PerplexityProtocol;
}

export const comparisonTextNames: Names<ComparisonText> = { name: true, text: true, field: true, protocol: true };

export interface CompareOptions extends JobDevice {
  /** Folder of the model. */
  model: string;
  /** Folder for the finished cells and the reports; a run that was stopped goes on where it was. */
  out: string;
  /** Such as `['mp', 'wanda', 'wanda+refit', 'sparsegpt', 'dsnot', 'alps']`. */
  methods: readonly string[];
  sparsities?: readonly number[];
  patterns?: readonly { keep: number; of: number }[];
  /** For all cells. With `ownWindows` the model writes them once. */
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
  /** What the files are called in the commands that the report shows. */
  names?: { calibration?: string | readonly string[]; texts?: Record<string, string> };
  signal?: AbortSignal;
  onEvent?: (event: CompareEvent) => void;
}

export const compareNames: Names<CompareOptions> = {
  ...jobDeviceNames,
  model: true,
  out: true,
  methods: true,
  sparsities: true,
  patterns: true,
  calibration: true,
  texts: true,
  tasks: true,
  taskLimit: true,
  length: true,
  windows: true,
  propagation: true,
  precision: true,
  names: true,
  signal: true,
  onEvent: true,
};

export type CompareEvent =
  | { type: 'start'; cells: number; methods: string[]; patterns: string[] }
  /** With `ownWindows`: the share of them that the model has written. */
  | { type: 'generate'; share: number }
  | { type: 'dense'; perplexity: Record<string, number>; stored: boolean }
  /** Share of the dense model's part, of the next cell or of the paper's own figures. */
  | { type: 'progress'; share: number; doing: string }
  | ({ type: 'cell'; stored: boolean; done: number; cells: number } & Pick<
      ComparisonCell,
      'method' | 'pattern' | 'meanError' | 'perplexity'
    >)
  /** It is not kept: another run tries again. */
  | ({ type: 'failure'; done: number; cells: number } & Pick<
      ComparisonFailure,
      'method' | 'pattern' | 'code' | 'message'
    >);

/** A cell without numbers: the method could not prune to the pattern, or what it left gives no finite ones. The other cells go on. */
export interface ComparisonFailure {
  method: string;
  title: string;
  pattern: string;
  code: 'NOT_FINITE' | 'NOT_POSITIVE_DEFINITE';
  message: string;
  /** What fails in the same way. */
  commands: string[];
}

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
  /** Which times and memory are of; a cell that was stored may be of another run's. */
  device: string;
  /** What makes these numbers again. */
  commands: string[];
}

/** Accuracies of a zero-shot task. */
export type TaskScore = Pick<TaskResult, 'items' | 'acc' | 'accStandardError' | 'accNorm' | 'perplexity'>;

/** Of what is stored, for the keys: parts in another layout are made again. */
export const layout = 2;

export interface Comparison {
  version: string;
  model: { folder: string; type: string; blocks: number; fingerprint: string };
  /** Of this run. */
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
