import { loadEvaluationWindows } from './calibration/calibration.js';
import { type PerplexityProtocol, protocols } from './calibration/protocols.js';
import type { TextSource } from './calibration/text.js';
import type { TokenWindows } from './calibration/windows.js';
import { Checkpoint } from './checkpoint/folder.js';
import { Device, type JobDevice, jobDeviceNames } from './device/device.js';
import { type Names, optionalFunction, optionsObject } from './errors.js';
import { type Perplexity, perplexity } from './evaluation/perplexity.js';
import { DecoderModel, type Precision, readArchitecture } from './model/decoder.js';
import { choosePrecision, deviceOptions } from './prune.js';

export interface EvaluateOptions extends JobDevice {
  /** Folder of the model. */
  model: string;
  /** Text files (.txt, .jsonl, .gz, .parquet), strings, or one `.json` file with token ids: a list of windows, or an object that has one as `evaluation`. */
  text: TextSource;
  /** The text field of .jsonl and .parquet files. Default `text`, `sentence` for the protocol `ptb`. */
  field?: string;
  /** How the text becomes tokens; see {@link PerplexityProtocol}. Default `text`. */
  protocol?: PerplexityProtocol;
  /** Tokens of a window. Default 2048, capped by the model and the text. */
  length?: number;
  /** At most this many windows. Default: all. */
  windows?: number;
  /** Default `float32`: the same numbers as transformers in float32. */
  precision?: Precision | 'auto';
  signal?: AbortSignal;
  /** Called with the share of the work that is done. */
  onProgress?: (share: number) => void;
}

const evaluateNames: Names<EvaluateOptions> = {
  ...jobDeviceNames,
  model: true,
  text: true,
  field: true,
  protocol: true,
  length: true,
  windows: true,
  precision: true,
  signal: true,
  onProgress: true,
};

export interface Evaluation extends Perplexity {
  /** How the text became windows. */
  protocol: string;
  precision: Precision;
  milliseconds: number;
}

/**
 * Perplexity of a model on a text: documents joined by a blank line, tokenised once, cut into windows that do not overlap,
 * length − 1 tokens scored in each.
 * @throws AlpsError with a `code`
 */
export async function evaluatePerplexity(options: EvaluateOptions): Promise<Evaluation> {
  optionsObject(options, evaluateNames);
  optionalFunction('onProgress', options.onProgress);
  const began = performance.now();
  const { signal } = options;
  const checkpoint = await Checkpoint.open(options.model, { signal });
  try {
    const architecture = readArchitecture(checkpoint);
    const windows = await loadEvaluationWindows(options.model, architecture.config, options, { signal });
    const result = await evaluateWindows(checkpoint, windows, options);
    const protocol = describeProtocol(windows, options.protocol);
    return { ...result, protocol, milliseconds: performance.now() - began };
  } finally {
    await checkpoint.close();
  }
}

/** Perplexity of an open checkpoint on token windows. */
export async function evaluateWindows(
  checkpoint: Checkpoint,
  windows: TokenWindows,
  options: Pick<EvaluateOptions, 'device' | 'threads' | 'memoryLimit' | 'precision' | 'signal' | 'onProgress'>,
): Promise<Evaluation> {
  const began = performance.now();
  const device = Device.open(options.device ?? 'auto', deviceOptions(options));
  const precision = choosePrecision(options.precision ?? 'float32', checkpoint, device);
  await using stream = device.stream({ signal: options.signal });
  const model = DecoderModel.open(checkpoint, stream, precision);
  const result = await perplexity(model, windows, { onBlock: options.onProgress });
  return { ...result, protocol: describeProtocol(windows), precision, milliseconds: performance.now() - began };
}

/** How the text became windows, in words. */
export function describeProtocol(
  { windows, length, given }: TokenWindows,
  protocol: PerplexityProtocol = 'text',
): string {
  return (
    `${given ? 'token ids as given' : protocols[protocol].words}, ${windows} windows of ${length} tokens without overlap, ` +
    `${length - 1} tokens scored in each`
  );
}
