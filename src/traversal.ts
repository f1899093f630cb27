import type { CheckpointWriter } from './checkpoint/writer.js';
import type { Stream } from './device/stream.js';
import { Scope } from './device/tensor.js';
import { throwIfAborted } from './errors.js';
import { type GroupInputs, pruneGroup } from './group-pruning.js';
import { type Block, type Linear, stageCount } from './model/block.js';
import { Activations, type Windows } from './model/block-run.js';
import type { DecoderModel, F32 } from './model/decoder.js';
import { MomentCollector } from './pruning/input-moments.js';
import type { ParsedPruningOptions } from './pruning/options.js';

/** Whose outputs a layer's inputs come from: the pruned layers before it, or the still dense block. */
export type Propagation = 'sequential' | 'block';

/** One pruned layer. */
export interface LayerReport {
  block: number;
  /** Tensor name, without ".weight"; with `[expert]` where one tensor holds all experts. */
  name: string;
  outputs: number;
  inputs: number;
  kept: number;
  sparsity: number;
  /**
   * Relative error of the layer's outputs on the calibration inputs, with the weights as they are stored; null without
   * calibration inputs.
   */
  error: number | null;
  iterations: number;
  refineIterations: number;
  /** The ridge was raised ×10 this often because the Gram matrix could not be factorised. */
  dampingSteps: number;
  /** Whether ADMM was ended by its iteration cap. */
  capped: boolean;
  /** Set where another method stood in: an expert that no calibration token reached is pruned by magnitude. */
  fallback?: 'magnitude';
  /** Of the group of layers that share this layer's input. */
  milliseconds: number;
}

export interface BlockReport {
  block: number;
  milliseconds: number;
  /** Milliseconds by phase. */
  phases: { read: number; forward: number; solve: number; write: number };
}

export interface TraversalOptions {
  /** Calibration tokens; undefined for methods that look at the weights alone. */
  windows: Windows | undefined;
  propagation: Propagation;
  writer: CheckpointWriter;
  signal?: AbortSignal;
  onLayer(report: LayerReport): void;
  onBlock(report: BlockReport): void;
  /** Called with the layers of each block that an earlier run pruned (see {@link CheckpointWriter.step}). */
  onResumed(layers: LayerReport[]): void;
}

/**
 * Prunes all blocks in order: each block's weights are read, pruned stage by stage on the activations so far, written and dropped. Blocks
 * that an earlier run finished are run with the weights it wrote: the activations behind them are the same to the bit.
 */
export async function pruneBlocks(
  model: DecoderModel,
  parsed: ParsedPruningOptions,
  options: TraversalOptions,
): Promise<void> {
  const { windows } = options;
  using activations = windows ? await Activations.create(model, windows) : undefined;
  const finished = options.writer.finishedSteps as LayerReport[][];
  for (let layer = 0; layer < model.config.layers; layer++) {
    throwIfAborted(options.signal);
    const layers = finished[layer];
    if (layers) {
      if (activations) await replay(model, layer, activations, options.writer);
      options.onResumed(layers);
      continue;
    }
    const run = new BlockPruning(model, parsed, options, layer);
    await options.writer.step(await run.execute(activations));
  }
}

/** Runs a block with the weights that were written for it. */
async function replay(
  model: DecoderModel,
  layer: number,
  activations: Activations,
  writer: CheckpointWriter,
): Promise<void> {
  const block = await model.loadBlock(layer);
  try {
    for (const { spec, weight } of block.stages.flat(2)) {
      using written = await model.loadLinear(spec, model.precision, (name, out, offset) =>
        writer.readBack(name, out, offset),
      );
      model.stream.copy(written, weight);
    }
    await activations.run(block);
  } finally {
    block.dispose();
  }
}

/** One block's way through the traversal, with its clock. */
class BlockPruning {
  readonly #model: DecoderModel;
  readonly #parsed: ParsedPruningOptions;
  readonly #options: TraversalOptions;
  readonly #layer: number;
  readonly #phases = { read: 0, forward: 0, solve: 0, write: 0 };
  readonly #layers: LayerReport[] = [];

  constructor(model: DecoderModel, parsed: ParsedPruningOptions, options: TraversalOptions, layer: number) {
    this.#model = model;
    this.#parsed = parsed;
    this.#options = options;
    this.#layer = layer;
  }

  async execute(activations: Activations | undefined): Promise<LayerReport[]> {
    const began = performance.now();
    const block = await this.#timed('read', async () => {
      const loaded = await this.#model.loadBlock(this.#layer);
      await this.#model.stream.sync();
      return loaded;
    });
    try {
      if (!activations) await this.#withoutInputs(block);
      else if (this.#options.propagation === 'sequential') await this.#sequential(block, activations);
      else await this.#fromDenseBlock(block, activations);
    } finally {
      block.dispose();
    }
    this.#options.onBlock({ block: this.#layer, milliseconds: performance.now() - began, phases: this.#phases });
    return this.#layers;
  }

  async #withoutInputs(block: Block): Promise<void> {
    for (const [stage, groups] of block.stages.entries())
      for (const linears of groups) await this.#pruneGroup(stage, linears, undefined);
  }

  /** Each layer is applied once, after it was pruned. */
  async #sequential(block: Block, activations: Activations): Promise<void> {
    for (const [stage, groups] of block.stages.entries()) {
      await this.#timed('forward', () => activations.begin(block, stage));
      for (const [group, linears] of groups.entries()) {
        using inputs = await this.#inputs(block, activations, stage, group);
        await this.#pruneGroup(stage, linears, inputs);
      }
      await this.#advance(block, activations, stage);
    }
  }

  /** All Gram matrices come from the dense block; then it is pruned and run again. */
  async #fromDenseBlock(block: Block, activations: Activations): Promise<void> {
    using scope = new Scope();
    const inputs: GroupInputs[][] = [];
    {
      const { stream, device } = this.#model;
      using before = device.tensor('float32', activations.residual.shape, 'the residual stream before the block');
      stream.copy(activations.residual, before);
      for (const [stage, groups] of block.stages.entries()) {
        await this.#timed('forward', () => activations.begin(block, stage));
        inputs[stage] = [];
        for (const group of groups.keys())
          inputs[stage].push(scope.hold(await this.#inputs(block, activations, stage, group)));
        if (stage < stageCount - 1) await this.#advance(block, activations, stage);
      }
      stream.copy(before, activations.residual);
    }
    for (const [stage, groups] of block.stages.entries())
      for (const [group, linears] of groups.entries()) await this.#pruneGroup(stage, linears, inputs[stage]![group]);
    await this.#timed('forward', () => activations.run(block));
  }

  async #advance(block: Block, activations: Activations, stage: number): Promise<void> {
    await this.#timed('forward', async () => {
      activations.advance(block, stage);
      await this.#model.stream.sync();
    });
  }

  /** XᵀX of a group's inputs, both triangles, and for DSnoT their sums. */
  async #inputs(block: Block, activations: Activations, stage: number, group: number): Promise<GroupInputs> {
    return this.#timed('forward', async () => {
      const { stream, device } = this.#model;
      const [{ inputs }] = block.stages[stage]![group] as [Linear];
      const label = `the Gram matrix of block ${this.#layer}, stage ${stage}`;
      const scope = new Scope();
      try {
        const gram = scope.hold(device.tensor('float32', [inputs, inputs], label));
        using collector = this.#parsed.method === 'dsnot' ? new MomentCollector(stream, activations.length) : undefined;
        activations.input(block, stage, group, (x) => {
          stream.gramAccumulate(x, gram);
          collector?.add(x);
        });
        stream.symmetrize(gram);
        await stream.sync();
        const tokens = activations.tokensOf(block, stage, group);
        const moments = collector && (await collector.finish(await diagonalOf(gram, stream)));
        return { gram, tokens, moments, dispose: () => scope.dispose(), [Symbol.dispose]: () => scope.dispose() };
      } catch (error) {
        scope.dispose();
        throw error;
      }
    });
  }

  /** Prunes layers that share an input together, and writes them. Without inputs only the weights decide. */
  async #pruneGroup(stage: number, linears: readonly Linear[], inputs: GroupInputs | undefined): Promise<void> {
    const reports = await pruneGroup(this.#model, linears, inputs, {
      parsed: forStage(this.#parsed, stage),
      writer: this.#options.writer,
      timed: (phase, action) => this.#timed(phase, action),
    });
    for (const report of reports) {
      const layer = { block: this.#layer, ...report };
      this.#layers.push(layer);
      this.#options.onLayer(layer);
    }
  }

  async #timed<T>(phase: keyof BlockReport['phases'], action: () => Promise<T>): Promise<T> {
    const began = performance.now();
    try {
      return await action();
    } finally {
      this.#phases[phase] += performance.now() - began;
    }
  }
}

async function diagonalOf(gram: F32, stream: Stream): Promise<Float32Array> {
  using diagonal = stream.device.tensor('float32', [gram.shape[0]!]);
  stream.diagonal(gram, diagonal);
  return stream.read(diagonal);
}

/** DSnoT without swaps in the stages that it is to leave out. */
function forStage(parsed: ParsedPruningOptions, stage: number): ParsedPruningOptions {
  const { dsnot } = parsed;
  return dsnot.skip === (stage < 2 ? 'attention' : 'mlp') ? { ...parsed, dsnot: { ...dsnot, maxCycles: 0 } } : parsed;
}
