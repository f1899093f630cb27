import { loadEvaluationWindows } from './calibration/calibration.js';
import { type PerplexityProtocol, protocols } from './calibration/protocols.js';
import { type TextSource, textInside } from './calibration/text.js';
import type { TokenWindows } from './calibration/windows.js';
import { Checkpoint } from './checkpoint/folder.js';
import { Device, type JobDevice, jobDeviceNames } from './device/device.js';
import { type Names, optionalFunction } from './errors.js';
import { type Perplexity, perplexity } from './evaluation/perplexity.js';
import { DecoderModel, type Precision, readArchitecture } from './model/decoder.js';
import { choosePrecision, deviceOptions } from './prune.js';
import { snapshot } from './snapshot.js';

/** Options of {@link evaluatePerplexity}. */
export interface EvaluateOptions extends JobDevice {
  /** Path of the model folder. */
  model: string;
  /**
   * Text files (.txt, .jsonl, each also .gz, .parquet), documents, or one `.json` file with token ids: a list of windows, or an object with such a
   * list as `evaluation`.
   */
  text: TextSource;
  /** Text field of .jsonl and .parquet files. Default `text`; `sentence` for the protocol `ptb`. */
  field?: string;
  /** How the text becomes tokens; see {@link PerplexityProtocol}. Default `text`. */
  protocol?: PerplexityProtocol;
  /** Tokens per window, at least 2. Default 2048; at most the model's maximum and the length of the text. */
  length?: number;
  /** At most this many windows. Default: all. */
  windows?: number;
  /** Default `float32`, which gives the same numbers as transformers in float32. */
  precision?: Precision | 'auto';
  /** Aborts the call with `ABORTED`. */
  signal?: AbortSignal;
  /** Called with the share of the work that is done, from 0 to 1. */
  onProgress?: (share: number) => void;
}

const evaluateNames: Names<EvaluateOptions> = {
  ...jobDeviceNames,
  model: true,
  text: textInside,
  field: true,
  protocol: true,
  length: true,
  windows: true,
  precision: true,
  signal: true,
  onProgress: true,
};

/** Result of {@link evaluatePerplexity}. */
export interface Evaluation extends Perplexity {
  /** How the text became windows. */
  protocol: string;
  precision: Precision;
  milliseconds: number;
}

/**
 * Measures the perplexity of a model on a text. With the default protocol, documents are joined by a blank line, tokenised once and cut into
 * windows that do not overlap; in each window all tokens except the first are scored.
 *
 * @throws AlpsError with a `code`: `INVALID_ARGUMENT`, `INVALID_CHECKPOINT`, `UNSUPPORTED_MODEL`, `INVALID_TEXT`, `FILE_SYSTEM`, `NOT_FINITE` if
 * the model's outputs are not finite, `OUT_OF_MEMORY`, `NO_DEVICE`, `DEVICE_FAILED` or `ABORTED`
 */
export async function evaluatePerplexity(given: EvaluateOptions): Promise<Evaluation> {
  const options = snapshot(given, evaluateNames);
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
  const device = Device.open(options.device, deviceOptions(options));
  const { precision: asked = 'float32' } = options;
  const precision = choosePrecision(asked, checkpoint, device);
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
