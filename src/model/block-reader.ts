import type { Stream } from '../device/stream.js';
import type { Team } from '../device/team.js';
import type { Scope } from '../device/tensor.js';
import { type Block, loadBlock } from './block.js';
import { DecoderModel } from './decoder.js';
import type { Architecture } from './families/family.js';

/**
 * A model's blocks in their order, on each device of a team. Where all devices are GPUs the next block is read while the one before is worked
 * on; a processor has less memory, and reads it while the one before is applied for the last time ({@link ahead}), unless there are experts.
 */
export class BlockReader {
  readonly #team: Team;
  readonly #models: readonly DecoderModel[];
  /** Reads on streams of their own: on the others a failed op would take what is queued behind it along. */
  readonly #ahead: readonly DecoderModel[];
  readonly #streams: Stream[] = [];
  readonly #onGpus: boolean;
  #next: { layer: number; blocks: Promise<PromiseSettledResult<Block>[]> } | undefined;

  /** @param models the decoder on each of the team's devices */
  constructor(team: Team, models: readonly DecoderModel[], signal?: AbortSignal) {
    this.#team = team;
    this.#models = models;
    this.#onGpus = models.every(({ device }) => device.name !== 'cpu');
    try {
      for (const { device } of models) this.#streams.push(device.stream({ signal }));
      this.#ahead = this.#streams.map((stream, place) => {
        const { checkpoint, precision } = models[place]!;
        return DecoderModel.open(checkpoint, stream, precision);
      });
    } catch (error) {
      for (const stream of this.#streams) stream.dispose();
      throw error;
    }
  }

  /**
   * The block on each device.
   * @param scope gets them
   */
  async read(layer: number, scope: Scope): Promise<Block[]> {
    const ahead = this.#next?.layer === layer ? await this.#take() : undefined;
    for (const result of ahead ?? []) if (result.status === 'fulfilled') scope.hold(result.value);
    const blocks = await this.#team.each(async (place) => {
      const result = ahead?.[place];
      if (result?.status === 'fulfilled') return result.value;
      // What failed ahead, where memory was short, say, may work by now; else it fails in the same way.
      return scope.hold(await load(this.#models[place]!, layer));
    });
    if (this.#onGpus) await this.#begin(layer + 1);
    return blocks;
  }

  /** Begins to read a block, if there is one: all that is left to do with the one before is queued. */
  async ahead(layer: number): Promise<void> {
    if (!this.#onGpus && readsLate(this.#models[0]!.architecture, layer)) await this.#begin(layer);
  }

  async #begin(layer: number): Promise<void> {
    if (layer >= this.#models[0]!.config.layers) return;
    await this.#drop();
    this.#next = { layer, blocks: Promise.allSettled(this.#ahead.map((model) => load(model, layer))) };
  }

  async #take() {
    const next = this.#next;
    this.#next = undefined;
    return await next?.blocks;
  }

  /** Waits for what is being read, and frees it. */
  async #drop(): Promise<void> {
    for (const result of (await this.#take()) ?? []) if (result.status === 'fulfilled') result.value.dispose();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#streams.map((stream) => stream[Symbol.asyncDispose]()));
    await this.#drop();
  }
}

/** Whether a processor reads a block while the one before is still there: with experts two of them take more memory than a solve. */
function readsLate(architecture: Architecture, layer: number): boolean {
  return layer < architecture.config.layers && architecture.block(layer).router === undefined;
}

async function load(model: DecoderModel, layer: number): Promise<Block> {
  const block = await loadBlock(model, layer, { settled: true });
  try {
    await model.stream.sync();
    return block;
  } catch (error) {
    block.dispose();
    throw error;
  }
}
