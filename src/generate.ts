import { type CalibrationOptions, lengthNote, loadCalibration, windowLength } from './calibration/calibration.js';
import { textInside } from './calibration/text.js';
import { join, mostSeed, shortened, type TokenWindows } from './calibration/windows.js';
import { Checkpoint } from './checkpoint/folder.js';
import { Device, type JobDevice, jobDeviceNames } from './device/device.js';
import { invalidArgument, type Names, optionalFunction, optionsObject, throwIfAborted } from './errors.js';
import { passageLength, type WritingPlan, writeWindows } from './generation/writer.js';
import type { DecoderConfig } from './model/config.js';
import { DecoderModel, type Precision } from './model/decoder.js';
import { choosePrecision, deviceOptions } from './prune.js';
import { integerFrom, numberIn } from './pruning/options.js';
import { listInside, optionsInside, snapshot } from './snapshot.js';

/** Options of {@link generateText}. */
export interface GenerateOptions extends JobDevice {
  /** Path of the model folder. */
  model: string;
  /** Number of token windows. Default 16. */
  windows?: number;
  /** Tokens per window, at least 2. Default 2048, at most the model's maximum. */
  length?: number;
  /**
   * Text whose passages begin the windows, so that the model writes more of its kind; sources as for calibration. Default: each window begins with
   * a random token.
   */
  prompts?: Pick<CalibrationOptions, 'text' | 'tokenIds' | 'field' | 'maxTokens'>;
  /** Tokens per passage, at least 2 and fewer than `length`. Default: an eighth of a window, at least 2; passages given as token ids keep their length. */
  promptLength?: number;
  /** An integer from 0 to 2³² − 1. The same model, seed, device and precision give the same tokens. Default 0. */
  seed?: number;
  /** Divides the logits before a token is drawn. Default 1: the model's own distribution. 0: always the most likely token. */
  temperature?: number;
  /** `auto` (default): bfloat16 if the checkpoint is bfloat16 and the device multiplies it in hardware, else float32. */
  precision?: Precision | 'auto';
  /** Aborts the call with `ABORTED`. */
  signal?: AbortSignal;
  /** Called with the share of the work that is done, from 0 to 1. */
  onProgress?: (share: number) => void;
}

type Prompts = NonNullable<GenerateOptions['prompts']>;
const promptNames: Names<Prompts> = { text: textInside, tokenIds: listInside(), field: true, maxTokens: true };

const generateNames: Names<GenerateOptions> = {
  ...jobDeviceNames,
  model: true,
  windows: true,
  length: true,
  prompts: optionsInside('prompts', promptNames),
  promptLength: true,
  seed: true,
  temperature: true,
  precision: true,
  signal: true,
  onProgress: true,
};

/** Result of {@link generateText}. */
export interface GeneratedText {
  /** Windows of `length` token ids. */
  tokenIds: Uint32Array<ArrayBuffer>[];
  /** Tokens per window. */
  length: number;
  /** SHA-256 of the ids; reports of {@link prune} show the same hash for these windows. */
  hash: string;
  /** How the windows differ from the request, in words. */
  note?: string;
  /** For display. */
  device: string;
  precision: Precision;
  milliseconds: number;
}

/**
 * Lets a model write text for its own calibration. Added to other texts, self-generated text preserves what the model knows beyond them
 * (docs/quality.md).
 *
 * ```ts
 * const { tokenIds } = await generateText({ model, windows: 16, length: 1024 });
 * await prune({ model, out: './pruned', sparsity: 0.7, calibration: { tokenIds } });
 * ```
 *
 * Each window begins with a random token, every token of the vocabulary being equally likely. The next three are the most likely tokens; all
 * others are drawn from the model's distribution. With `prompts` each window begins with a passage, and all further tokens are drawn. The weights
 * stay in the device's memory, and up to 32 windows are written at a time, as many as fit beside the weights.
 *
 * Sources: *LLM-QAT* (2023) for how a window begins, *Self-calibration for Language Model Quantization and Pruning* (2024).
 *
 * @throws AlpsError with a `code`; `OUT_OF_MEMORY` if the device cannot hold the weights and one window
 */
export async function generateText(given: GenerateOptions): Promise<GeneratedText> {
  const options = snapshot(given, generateNames);
  const began = performance.now();
  const { signal, windows = 16, seed = 0, temperature = 1 } = options;
  integerFrom('windows', windows, 1);
  integerFrom('seed', seed, 0, mostSeed);
  numberIn('temperature', temperature, 0, 1e6);
  optionalFunction('onProgress', options.onProgress);
  if (options.promptLength !== undefined && !options.prompts)
    throw invalidArgument('promptLength', 'none without prompts', options.promptLength);
  if (options.prompts !== undefined) optionsObject(options.prompts, promptNames, 'prompts');
  throwIfAborted(signal);
  await using checkpoint = await Checkpoint.open(options.model, { signal });
  const device = Device.open(options.device, deviceOptions(options));
  const precision = choosePrecision(options.precision, checkpoint, device);
  await using stream = device.stream({ signal });
  const model = DecoderModel.open(checkpoint, stream, precision);
  const length = windowLength(options.length, model.config);
  const prompts = options.prompts && (await loadPrompts(options, model.config, { windows, length, seed }));
  const plan = { windows, length, seed, temperature, prompts };
  const tokenIds = await writeWindows(model, plan, { signal, onProgress: options.onProgress });
  const { hash } = join(tokenIds, length);
  const { details } = device.info();
  const note = [lengthNote(options.length, model.config), prompts?.note].filter(Boolean).join('; ');
  options.onProgress?.(1);
  const milliseconds = performance.now() - began;
  return { tokenIds, length, hash, ...(note ? { note } : {}), device: details, precision, milliseconds };
}

async function loadPrompts(
  { model, prompts, promptLength, signal }: GenerateOptions,
  config: DecoderConfig,
  { windows, length, seed }: Pick<WritingPlan, 'windows' | 'length' | 'seed'>,
): Promise<TokenWindows> {
  const { text, tokenIds } = prompts ?? {};
  if ((text === undefined) === (tokenIds === undefined))
    throw invalidArgument('prompts', 'exactly one of text and tokenIds', text === undefined ? 'none' : 'both');
  const tokens = integerFrom('promptLength', promptLength ?? passageLength(length), 2);
  const short = `fewer tokens than the ${length} of a window`;
  if (tokens >= length) throw invalidArgument('promptLength', short, tokens);
  const calibration = { ...prompts, windows, seed, length: tokens };
  const { note, ...rest } = await loadCalibration(model, config, calibration, signal ? { signal } : {});
  const loaded: TokenWindows = note === undefined || rest.given ? rest : { ...rest, note }; // ids need not be as many, nor as long
  if (promptLength !== undefined) return shortened(loaded, tokens);
  // Token ids are passages as they are.
  if (loaded.length >= length) throw invalidArgument('prompts', `passages of ${short}`, loaded.length);
  return loaded;
}
