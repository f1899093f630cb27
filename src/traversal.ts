import { floatDtypes, type SafetensorsDtype } from './checkpoint/dtype.js';
import type { CheckpointWriter } from './checkpoint/writer.js';
import { Scope, type Tensor } from './device/tensor.js';
import { AlpsError, throwIfAborted } from './errors.js';
import { Activations, stages, type Windows } from './model/block-run.js';
import type { Block, DecoderModel, F32, Linear } from './model/decoder.js';
import { nativePattern, segmentsOf } from './pruning/layer-problem.js';
import type { ParsedPruningOptions } from './pruning/options.js';
import { type GroupResult, type LayerResult, layerErrors, solveGroup } from './pruning/solve-group.js';

/** Whose outputs a layer's inputs come from: the pruned layers before it, or the still dense block. */
export type Propagation = 'sequential' | 'block';

/** One pruned layer. */
export interface LayerReport {
  block: number;
  /** Tensor name, without ".weight". */
  name: string;
  outputs: number;
  inputs: number;
  kept: number;
  sparsity: number;
  /** Relative error of the layer's outputs on the calibration inputs, with the weights as they are stored; null without calibration. */
  error: number | null;
  iterations: number;
  refineIterations: number;
  /** The ridge was raised ×10 this often because the Gram matrix could not be factorised. */
  dampingSteps: number;
  /** Whether ADMM was ended by its iteration cap. */
  capped: boolean;
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
}

/** Prunes all blocks in order: each block's weights are read, pruned stage by stage on the activations so far, written and dropped. */
export async function pruneBlocks(
  model: DecoderModel,
  parsed: ParsedPruningOptions,
  options: TraversalOptions,
): Promise<void> {
  const { windows } = options;
  using activations = windows ? await Activations.create(model, windows) : undefined;
  for (let layer = 0; layer < model.config.layers; layer++) {
    throwIfAborted(options.signal);
    const run = new BlockPruning(model, parsed, options, layer);
    await run.execute(activations);
  }
}

/** One block's way through the traversal, with its clock. */
class BlockPruning {
  readonly #model: DecoderModel;
  readonly #parsed: ParsedPruningOptions;
  readonly #options: TraversalOptions;
  readonly #layer: number;
  readonly #phases = { read: 0, forward: 0, solve: 0, write: 0 };

  constructor(model: DecoderModel, parsed: ParsedPruningOptions, options: TraversalOptions, layer: number) {
    this.#model = model;
    this.#parsed = parsed;
    this.#options = options;
    this.#layer = layer;
  }

  async execute(activations: Activations | undefined): Promise<void> {
    const began = performance.now();
    const block = await this.#timed('read', async () => {
      const loaded = await this.#model.loadBlock(this.#layer);
      await this.#model.stream.sync();
      return loaded;
    });
    try {
      if (!activations)
        for (let stage = 0; stage < stages.length; stage++) await this.#pruneStage(block, stage, undefined);
      else if (this.#options.propagation === 'sequential') await this.#sequential(block, activations);
      else await this.#fromDenseBlock(block, activations);
    } finally {
      block.dispose();
    }
    this.#options.onBlock({ block: this.#layer, milliseconds: performance.now() - began, phases: this.#phases });
  }

  /** Each layer is applied once, after it was pruned. */
  async #sequential(block: Block, activations: Activations): Promise<void> {
    for (let stage = 0; stage < stages.length; stage++) {
      using gram = await this.#gram(block, activations, stage);
      await this.#pruneStage(block, stage, gram);
      await this.#advance(block, activations, stage);
    }
  }

  /** All Gram matrices come from the dense block; then it is pruned and run again. */
  async #fromDenseBlock(block: Block, activations: Activations): Promise<void> {
    using scope = new Scope();
    const grams: F32[] = [];
    {
      const { stream, device } = this.#model;
      using before = device.tensor('float32', activations.residual.shape, 'the residual stream before the block');
      stream.copy(activations.residual, before);
      for (let stage = 0; stage < stages.length; stage++) {
        grams.push(scope.hold(await this.#gram(block, activations, stage)));
        if (stage < stages.length - 1) await this.#advance(block, activations, stage);
      }
      stream.copy(before, activations.residual);
    }
    for (let stage = 0; stage < stages.length; stage++) await this.#pruneStage(block, stage, grams[stage]);
    for (let stage = 0; stage < stages.length; stage++) await this.#advance(block, activations, stage);
  }

  async #advance(block: Block, activations: Activations, stage: number): Promise<void> {
    await this.#timed('forward', async () => {
      activations.advance(block, stage);
      await this.#model.stream.sync();
    });
  }

  /** XᵀX of a stage's inputs, both triangles. */
  async #gram(block: Block, activations: Activations, stage: number): Promise<F32> {
    return this.#timed('forward', async () => {
      const { stream, device } = this.#model;
      const { inputs } = block.linears[stages[stage]![0]!];
      const gram = device.tensor(
        'float32',
        [inputs, inputs],
        `the Gram matrix of block ${this.#layer}, stage ${stage}`,
      );
      try {
        activations.input(block, stage, (x) => stream.gramAccumulate(x, gram));
        stream.symmetrize(gram);
        await stream.sync();
        return gram;
      } catch (error) {
        gram.dispose();
        throw error;
      }
    });
  }

  /** Prunes the layers of a stage together and writes them. Without a Gram matrix only the weights decide. */
  async #pruneStage(block: Block, stage: number, gram: F32 | undefined): Promise<void> {
    const began = performance.now();
    const { stream, device, precision } = this.#model;
    const linears = stages[stage]!.map((role) => block.linears[role]);
    const [{ inputs }] = linears as [Linear];
    const outputs = linears.reduce((sum, linear) => sum + linear.outputs, 0);
    using scope = new Scope();
    const weight = scope.hold(
      device.tensor('float32', [outputs, inputs], `the weights of block ${this.#layer}, stage ${stage}`),
    );
    let row = 0;
    for (const linear of linears) {
      using rows = weight.rows(row, row + linear.outputs);
      // From the checkpoint's bits, not from a rounded copy of them.
      using stored = await this.#timed('read', () => this.#model.load(`${linear.name}.weight`, 'float32'));
      stream.copy(stored, rows);
      row += linear.outputs;
    }
    const layers = linears.map(({ name, outputs: count }) => ({ name, outputs: count }));
    const result = await this.#timed('solve', async () =>
      gram
        ? solveGroup(stream, { layers, weight, gram }, this.#parsed, precision)
        : keepLargestWeights(this.#model, { layers, weight }, this.#parsed),
    );
    scope.hold(result.weight);
    scope.hold(result.mask);
    row = 0;
    for (const linear of linears) {
      using rows = result.weight.rows(row, row + linear.outputs);
      await this.#timed('write', () => this.#store(linear, rows));
      row += linear.outputs;
    }
    const errors = gram
      ? await layerErrors(
          stream,
          { layers, weight, gram },
          result.weight,
          result.ridge,
          result.layers.map(({ kept }) => kept),
        )
      : undefined;
    result.layers.forEach(({ name, kept, sparsity }, i) => {
      const { iterations, refineIterations, dampingSteps, capped } = result;
      const { outputs: count } = linears[i]!;
      this.#options.onLayer({
        block: this.#layer,
        name,
        outputs: count,
        inputs,
        kept,
        sparsity,
        error: errors ? errors[i]!.error : null,
        iterations,
        refineIterations,
        dampingSteps,
        capped,
        milliseconds: performance.now() - began,
      });
    });
  }

  /** Writes a layer's weights in its checkpoint's dtype, and puts what was written (rounded to it) into `rows` and into the block. */
  async #store(linear: Linear, rows: F32): Promise<void> {
    const { stream, device, checkpoint, precision } = this.#model;
    const name = `${linear.name}.weight`;
    const dtype = floatDtypes[checkpoint.tensors.get(name)!.dtype as SafetensorsDtype & keyof typeof floatDtypes];
    using stored = device.tensor(dtype, rows.shape, name);
    stream.copy(rows, stored);
    stream.copy(stored, rows);
    if (linear.weight.dtype === precision) stream.copy(stored, linear.weight);
    const data = await stream.read(stored);
    await this.#options.writer.write(name, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
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

/** Magnitude pruning without calibration. */
async function keepLargestWeights(
  model: DecoderModel,
  group: { layers: { name: string; outputs: number }[]; weight: Tensor<'float32'> },
  parsed: ParsedPruningOptions,
): Promise<GroupResult> {
  const { stream, device } = model;
  const { shape } = group.weight;
  using bad = device.tensor('uint32', [1]);
  stream.countNonFinite(group.weight, bad);
  const [count = 0] = await stream.read(bad);
  if (count > 0) {
    throw new AlpsError(
      'NOT_FINITE',
      `${count} weights of ${group.layers.map(({ name }) => name).join(', ')} are NaN or infinite`,
    );
  }
  const weight = device.tensor('float32', shape, 'the pruned weights');
  const mask = device.tensor('uint8', shape, 'the support');
  const segments = segmentsOf({ ...group, gram: weight }, parsed.pattern);
  stream.copy(group.weight, weight);
  stream.project(weight, mask, nativePattern(parsed.pattern), segments);
  stream.applyMask(weight, mask);
  const layers: LayerResult[] = group.layers.map(({ name, outputs }, i) => {
    const kept = segments.keep[i]!;
    return { name, kept, sparsity: 1 - kept / (outputs * shape[1]!), error: 0, errorWithRidge: 0 };
  });
  const time = { factorise: 0, admm: 0, refine: 0, error: 0 };
  return {
    layers,
    weight,
    mask,
    iterations: 0,
    refineIterations: 0,
    trace: [],
    capped: false,
    ridge: 0,
    dampingSteps: 0,
    time,
  };
}
