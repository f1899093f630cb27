import { type CalibrationOptions, lengthNote, loadCalibration, windowLength } from './calibration/calibration.js';
import { join, randomNumbers, shortened, type TokenWindows } from './calibration/windows.js';
import { Checkpoint } from './checkpoint/folder.js';
import { Device, type DeviceName } from './device/device.js';
import { Scope } from './device/tensor.js';
import { invalidArgument, throwIfAborted } from './errors.js';
import { activationBytes } from './jobs/estimate.js';
import type { Block } from './model/block.js';
import { Activations, keyValueBytes } from './model/block-run.js';
import type { DecoderConfig } from './model/config.js';
import { DecoderModel, type Precision } from './model/decoder.js';
import { Embedding } from './model/embedding.js';
import { Head } from './model/head.js';
import { choosePrecision, deviceOptions } from './prune.js';
import { integerFrom, numberIn } from './pruning/options.js';

export interface GenerateOptions {
  /** Folder of the model. */
  model: string;
  /** Number of token windows. Default 16. */
  windows?: number;
  /** Tokens of a window. Default 2048, at most what the model takes. */
  length?: number;
  /**
   * A text whose passages the windows begin with, for more text of its kind: files or strings as for calibration. Default: a window begins with any token.
   */
  prompts?: Pick<CalibrationOptions, 'text' | 'tokenIds' | 'field' | 'maxTokens'>;
  /** Tokens of a passage, at least 2. Default an eighth of a window; passages that are given as token ids stay as they are. */
  promptLength?: number;
  /** The same model, seed, device and precision give the same tokens. Default 0. */
  seed?: number;
  /** Logits are divided by it before a token is drawn. Default 1: the model's own distribution. */
  temperature?: number;
  /** Default `auto`. */
  device?: DeviceName;
  threads?: number;
  memoryLimit?: number;
  /** `auto` (default): bfloat16 where the checkpoint is bfloat16 and the device multiplies it in hardware, else float32. */
  precision?: Precision | 'auto';
  signal?: AbortSignal;
  /** Called with the share of the work that is done. */
  onProgress?: (share: number) => void;
}

export interface GeneratedText {
  /** Windows of `length` token ids. */
  tokenIds: Uint32Array<ArrayBuffer>[];
  length: number;
  /** SHA-256 of the ids, as reports of {@link prune} have it for these windows. */
  hash: string;
  /** What differs from what was asked for, in words. */
  note?: string;
  /** For people. */
  device: string;
  precision: Precision;
  milliseconds: number;
}

/** Windows at a time: more do not make a step's products faster. */
const mostTogether = 64;

/** Behind the first token, as in LLM-QAT. */
const greedyTokens = 3;

/**
 * Text that a model writes itself, for its calibration: beside other texts it keeps what the model knows beyond them (docs/quality.md).
 *
 * ```ts
 * const { tokenIds } = await generateText({ model, windows: 16, length: 1024 });
 * await prune({ model, out: './pruned', sparsity: 0.7, calibration: { tokenIds } });
 * ```
 *
 * Each window begins with a token of the vocabulary, each equally likely; the three behind it are the likeliest ones, and all further ones are drawn
 * from the model's distribution. With `prompts` each begins with a passage of them, and all further ones are drawn. The weights stay in the device's memory, and as many
 * windows are written at a time as fit beside them, 64 at most.
 *
 * Sources: *LLM-QAT* (2023) for how a window begins, *Self-calibration for Language Model Quantization and Pruning* (2024).
 *
 * @throws AlpsError with a `code`; `OUT_OF_MEMORY` where the device does not hold the weights and one window
 */
export async function generateText(options: GenerateOptions): Promise<GeneratedText> {
  const began = performance.now();
  const { signal, windows = 16, seed = 0, temperature = 1 } = options;
  integerFrom('windows', windows, 1);
  integerFrom('seed', seed, 0);
  numberIn('temperature', temperature, 0, 1e6);
  if (options.promptLength !== undefined && !options.prompts)
    throw invalidArgument('promptLength', 'none without prompts', options.promptLength);
  throwIfAborted(signal);
  await using checkpoint = await Checkpoint.open(options.model, { signal });
  const device = Device.open(options.device ?? 'auto', deviceOptions(options));
  const precision = choosePrecision(options.precision ?? 'auto', checkpoint, device);
  using stream = device.stream({ signal });
  const model = DecoderModel.open(checkpoint, stream, precision);
  const length = windowLength(options.length, model.config);
  const prompts = options.prompts && (await loadPrompts(options, model.config, { windows, length, seed }));
  const plan = { windows, length, seed, temperature, prompts };
  using writer = await Writer.load(model, plan);
  const tokenIds = await writer.write(plan, { signal, onProgress: options.onProgress });
  const { hash } = join(tokenIds, length);
  const { details } = device.info();
  const note = [lengthNote(options.length, model.config), prompts?.note].filter(Boolean).join('; ');
  options.onProgress?.(1);
  const milliseconds = performance.now() - began;
  return { tokenIds, length, hash, ...(note ? { note } : {}), device: details, precision, milliseconds };
}

interface Plan {
  windows: number;
  length: number;
  seed: number;
  temperature: number;
  /** What windows begin with, one after the other and again from the first. */
  prompts: TokenWindows | undefined;
}

async function loadPrompts(
  { model, prompts, promptLength, signal }: GenerateOptions,
  config: DecoderConfig,
  { windows, length, seed }: Pick<Plan, 'windows' | 'length' | 'seed'>,
): Promise<TokenWindows> {
  const { text, tokenIds } = prompts ?? {};
  if ((text === undefined) === (tokenIds === undefined))
    throw invalidArgument('prompts', 'exactly one of text and tokenIds', text === undefined ? 'none' : 'both');
  const tokens = integerFrom('promptLength', promptLength ?? Math.max(2, Math.floor(length / 8)), 2);
  const short = `fewer tokens than the ${length} of a window`;
  if (tokens >= length) throw invalidArgument('promptLength', short, tokens);
  const calibration = { ...prompts, windows, seed, length: tokens };
  const loaded = await loadCalibration(model, config, calibration, signal ? { signal } : {});
  if (promptLength !== undefined) return shortened(loaded, tokens);
  // Token ids are passages as they are.
  if (loaded.length >= length) throw invalidArgument('prompts', `passages of ${short}`, loaded.length);
  return loaded;
}

/** Windows that fit beside the weights: keys and values, logits, one token's activations, numbers and ids of each. */
function fittingWindows(model: DecoderModel, length: number): number {
  const { vocabulary, ropes } = model.config;
  const { memoryLimit, memoryUsed } = model.device.info();
  const angles = ropes.reduce((sum, { dimensions }) => sum + 4 * length * dimensions, 0);
  const activations = activationBytes(model.config, { windows: 1, length: 1 }, model.precision === 'bfloat16' ? 2 : 4);
  const window = keyValueBytes(model, length) + activations + 4 * vocabulary + 12 * length;
  return Math.floor((memoryLimit - memoryUsed - angles) / window);
}

/** A whole model on a device, and the windows that it writes side by side. */
class Writer {
  readonly #model: DecoderModel;
  readonly #scope = new Scope();
  readonly #blocks: Block[] = [];
  #embedding!: Embedding;
  #head!: Head;
  #activations!: Activations;

  private constructor(model: DecoderModel) {
    this.#model = model;
  }

  static async load(model: DecoderModel, { windows, length }: Plan): Promise<Writer> {
    const writer = new Writer(model);
    const hold = writer.#scope.hold.bind(writer.#scope);
    try {
      const most = Math.min(windows, mostTogether);
      writer.#embedding = hold(await Embedding.load(model));
      for (let layer = 0; layer < model.config.layers; layer++) writer.#blocks.push(hold(await model.loadBlock(layer)));
      writer.#head = hold(await Head.load(model, most));
      await model.stream.sync();
      const together = Math.max(1, Math.min(most, fittingWindows(model, length)));
      writer.#activations = hold(Activations.growing(model, together, length));
      return writer;
    } catch (error) {
      writer.dispose();
      throw error;
    }
  }

  async write(
    plan: Plan,
    { signal, onProgress }: { signal: AbortSignal | undefined; onProgress: ((share: number) => void) | undefined },
  ): Promise<Uint32Array<ArrayBuffer>[]> {
    const { windows, length, seed } = plan;
    const random = randomNumbers(seed);
    const result: Uint32Array<ArrayBuffer>[] = [];
    while (result.length < windows) {
      const together = this.#activations.windows;
      const count = Math.min(together, windows - result.length);
      // Window by window, so that a window's numbers do not depend on how many are written together. The rest of the last ones are written in vain.
      const draws = new Float64Array(length * together);
      for (let window = 0; window < count; window++)
        for (let t = 0; t < length; t++) draws[t * together + window] = random();
      const done = result.length;
      const ids = await this.#writeTogether(plan, { draws, first: this.#beginnings(plan, done, draws) }, (t) => {
        throwIfAborted(signal);
        onProgress?.((done + (count * t) / length) / windows);
      });
      for (let window = 0; window < count; window++)
        result.push(Uint32Array.from({ length }, (_, t) => ids[t * together + window]!));
    }
    return result;
  }

  /** What the windows begin with, [tokens, windows]. @param done windows before these */
  #beginnings({ prompts }: Plan, done: number, draws: Float64Array): Uint32Array[] {
    const { windows } = this.#activations;
    if (!prompts) return [Uint32Array.from({ length: windows }, (_, i) => draws[i]! * this.#model.config.vocabulary)];
    const passage = (window: number) => ((done + window) % prompts.windows) * prompts.length;
    return Array.from({ length: prompts.length }, (_, t) =>
      Uint32Array.from({ length: windows }, (_, window) => prompts.tokens[passage(window) + t]!),
    );
  }

  /**
   * @param draws [length, windows], in [0, 1)
   * @param first the first rows of the ids
   * @returns ids, [length, windows]
   */
  async #writeTogether(
    { length, temperature, prompts }: Plan,
    { draws, first }: { draws: Float64Array<ArrayBuffer>; first: readonly Uint32Array[] },
    onToken: (t: number) => void,
  ): Promise<Uint32Array<ArrayBuffer>> {
    const { stream, device, config } = this.#model;
    const { windows, residual } = this.#activations;
    const greedy = prompts ? 0 : greedyTokens;
    using scope = new Scope();
    const numbers = scope.hold(stream.upload('float64', [length, windows], draws, 'the drawn numbers'));
    const all = new Uint32Array(length * windows);
    for (const [t, row] of first.entries()) all.set(row, t * windows);
    const ids = scope.hold(stream.upload('uint32', [length, windows], all, 'the written tokens'));
    const logits = scope.hold(device.tensor('float32', [windows, config.vocabulary], 'the logits'));
    for (let t = 0; t + 1 < length; t++) {
      using row = ids.rows(t, t + 1);
      using written = row.reshape(windows);
      using next = ids.rows(t + 1, t + 2);
      using draw = numbers.rows(t + 1, t + 2);
      this.#activations.grow(this.#embedding, written, t);
      for (const block of this.#blocks) await this.#activations.apply(block);
      if (t + 1 >= first.length) {
        this.#head.apply(residual, logits);
        stream.sample(logits, draw, next, t < greedy ? 0 : temperature);
      }
      await stream.sync();
      onToken(t + 1);
    }
    return await stream.read(ids);
  }

  dispose(): void {
    this.#scope.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
