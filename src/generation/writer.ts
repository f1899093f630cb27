import { randomNumbers, type TokenWindows } from '../calibration/windows.js';
import { Scope } from '../device/tensor.js';
import { throwIfAborted } from '../errors.js';
import type { Block } from '../model/block.js';
import { Activations } from '../model/block-run.js';
import type { DecoderConfig } from '../model/config.js';
import type { DecoderModel } from '../model/decoder.js';
import { Embedding } from '../model/embedding.js';
import type { Architecture } from '../model/families/family.js';
import { Head } from '../model/head.js';
import { activationBytes, keyValueBytes, numberBytes, type TokenCounts } from '../model/memory.js';
import { expectedTensors, linearShape } from '../model/shapes.js';

/**
 * Windows at a time. The processor's products have the same bits for any number of rows up to this one, so that a window's tokens do not depend on
 * how many fit into memory; more do not make a step's products faster.
 */
const mostTogether = 32;

/** Behind the first token, as in LLM-QAT. */
const greedyTokens = 3;

/** Tokens of a passage that a window of `length` goes on from, where nothing else is asked for. */
export const passageLength = (length: number) => Math.max(2, Math.floor(length / 8));

export interface WritingPlan {
  windows: number;
  length: number;
  seed: number;
  temperature: number;
  /** What windows begin with, one after the other and again from the first. */
  prompts: Pick<TokenWindows, 'tokens' | 'windows' | 'length'> | undefined;
}

export interface WritingControl {
  signal: AbortSignal | undefined;
  /** Called with the share of the work that is done. */
  onProgress: ((share: number) => void) | undefined;
}

/**
 * Windows of tokens that a model writes itself. Its weights are in the device's memory meanwhile, and as many windows are written at a time as fit
 * beside them.
 * @throws AlpsError `ABORTED`; `OUT_OF_MEMORY` where the device does not hold the weights and one window
 */
export async function writeWindows(
  model: DecoderModel,
  plan: WritingPlan,
  control: WritingControl,
): Promise<Uint32Array<ArrayBuffer>[]> {
  using writer = await Writer.load(model, plan);
  return await writer.write(plan, control);
}

/** Bytes of one window that is written: keys and values, one token's activations, the head's inputs and logits, numbers and ids. */
function windowBytes(config: DecoderConfig, length: number, number: number): number {
  const activations = activationBytes(config, { windows: 1, length: 1 }, number, { rows: 1 });
  const head = number * (config.hidden + config.embeddingSize) + 4 * config.vocabulary;
  return keyValueBytes(config, length, number) + activations + head + 12 * length;
}

/** Bytes of the angles that positions are told by. */
function angleBytes({ ropes }: DecoderConfig, length: number): number {
  return ropes.reduce((sum, { dimensions }) => sum + 4 * length * dimensions, 0);
}

/** Bytes of a block's matrices as they are stored, and turned where they are. */
function storedBytes(architecture: Architecture, layer: number): number {
  const { attention, mlp } = architecture.block(layer);
  return [attention, ...mlp].flat(2).reduce((sum, spec) => {
    const [outputs, inputs] = linearShape(architecture.config, spec);
    return sum + (spec.transposed ? 8 : 4) * outputs * inputs;
  }, 0);
}

/**
 * Bytes of tensors that {@link writeWindows} takes at most.
 * @param number bytes of a weight
 * @param limit of the device, which fewer windows at a time keep to where they can
 */
export function writingBytes(
  architecture: Architecture,
  { windows, length }: TokenCounts,
  number: number,
  limit: number,
): number {
  const { config } = architecture;
  const weights = [...expectedTensors(architecture)].reduce(
    (sum, [, shape]) => sum + (shape.length === 1 ? 4 : number) * shape.reduce((size, d) => size * d, 1),
    4 * config.maxPositions * (architecture.positions ? config.hidden : 0), // float32 whatever the others are
  );
  // What is being loaded is there as it is stored too: a block; the embedding's table, before them, or the head's, behind them.
  const block = Math.max(...Array.from({ length: config.layers }, (_, layer) => storedBytes(architecture, layer)));
  const tables = 8 * config.vocabulary * config.embeddingSize;
  const window = windowBytes(config, length, number);
  const written = (together: number) =>
    Math.max(
      weights + angleBytes(config, length) + together * window,
      weights + block,
      tables + (config.tiedEmbeddings ? 0 : weights),
    );
  return Math.min(written(Math.min(windows, mostTogether)), Math.max(written(1), limit));
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

  static async load(model: DecoderModel, { windows, length }: WritingPlan): Promise<Writer> {
    const writer = new Writer(model);
    const hold = writer.#scope.hold.bind(writer.#scope);
    try {
      const most = Math.min(windows, mostTogether);
      writer.#embedding = hold(await Embedding.load(model));
      for (let layer = 0; layer < model.config.layers; layer++) {
        writer.#blocks.push(hold(await model.loadBlock(layer)));
        await model.stream.sync(); // what was loaded as it is stored has gone
      }
      writer.#head = hold(await Head.load(model, most, writer.#embedding));
      await model.stream.sync();
      const together = Math.max(1, Math.min(most, writer.#fitting(length)));
      writer.#activations = hold(Activations.growing(model, together, length));
      return writer;
    } catch (error) {
      writer.dispose();
      throw error;
    }
  }

  /** Windows that fit beside the weights. */
  #fitting(length: number): number {
    const { config, device, precision } = this.#model;
    const { memoryLimit, memoryUsed } = device.info();
    const free = memoryLimit - memoryUsed - angleBytes(config, length);
    return Math.floor(free / windowBytes(config, length, numberBytes(precision)));
  }

  async write(plan: WritingPlan, { signal, onProgress }: WritingControl): Promise<Uint32Array<ArrayBuffer>[]> {
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
  #beginnings({ prompts }: WritingPlan, done: number, draws: Float64Array): Uint32Array[] {
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
    { length, temperature, prompts }: WritingPlan,
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
