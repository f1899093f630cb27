import type { LayerBudget } from './allocation/allocation.js';
import type { CheckpointWriter } from './checkpoint/writer.js';
import { makesOnDemand, sumsOutputs } from './dense-collector.js';
import { PhaseClock } from './device/phase-clock.js';
import type { Team } from './device/team.js';
import { Scope } from './device/tensor.js';
import { divide, type Group, type Task } from './division.js';
import { throwIfAborted } from './errors.js';
import { refitFinalNorm } from './final-norm.js';
import { type GroupInputs, pruneGroup } from './group-pruning.js';
import { groupInputs, type Member, membersOf } from './members.js';
import { type Block, type Linear, stageCount, withCopies } from './model/block.js';
import { BlockReader } from './model/block-reader.js';
import type { Activations, Windows } from './model/block-run.js';
import type { DecoderModel } from './model/decoder.js';
import type { DenseTarget } from './pruning/dense-target.js';
import { needsGram, type ParsedPruningOptions } from './pruning/options.js';
import { handled } from './together.js';

/** Source of a layer's inputs: the pruned layers before it (`sequential`), or the still dense block (`block`). */
export type Propagation = 'sequential' | 'block';

/** A pruned layer in a report of {@link prune}. */
export interface LayerReport {
  block: number;
  /** Tensor name without ".weight", with `[expert]` if one tensor holds all experts. */
  name: string;
  outputs: number;
  inputs: number;
  /** Number of weights that are kept. */
  kept: number;
  /** Share of zeros, from 0 to 1. */
  sparsity: number;
  /**
   * Relative error of the layer's outputs on the calibration inputs, with the weights as they are stored; null without
   * calibration inputs and with `errors: false`.
   */
  error: number | null;
  /** ADMM iterations; 0 for methods without ADMM. */
  iterations: number;
  /** Conjugate gradient iterations of the refit. */
  refineIterations: number;
  /** Number of times the ridge was raised tenfold because the Gram matrix could not be factorised. */
  dampingSteps: number;
  /** Whether ADMM reached its iteration limit. */
  capped: boolean;
  /** Set if another method was used: an expert that no calibration token reached is pruned by magnitude. */
  fallback?: 'magnitude';
  /** Time of all layers that share this layer's input and were solved with it. */
  milliseconds: number;
}

/** A pruned block in the events of {@link prune}. */
export interface BlockReport {
  /** Number of the block, from 0. */
  block: number;
  milliseconds: number;
  /** Milliseconds by phase, summed over the devices. */
  phases: { read: number; forward: number; solve: number; write: number };
}

export interface TraversalOptions {
  /** Calibration tokens; undefined for methods that look at the weights alone. */
  windows: Windows | undefined;
  propagation: Propagation;
  /** How the dense model's activations are reproduced; undefined: layers reproduce their own weights. */
  target: DenseTarget | undefined;
  /** Whether outputs count by what the block makes of them (row-weights.ts). */
  rowWeights: boolean;
  /** Whether the norm in front of the head is refitted to the dense model's outputs; needs `target`. */
  finalNorm: boolean;
  /** What each layer keeps, by name; undefined: what the pattern says. */
  budgets: ReadonlyMap<string, LayerBudget> | undefined;
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
 * @param models the decoder on each of the team's devices
 */
export async function pruneBlocks(
  team: Team,
  models: readonly DecoderModel[],
  parsed: ParsedPruningOptions,
  options: TraversalOptions,
): Promise<void> {
  using scope = new Scope();
  const members = await membersOf(team, models, options.windows, scope, options.target !== undefined);
  const finished = options.writer.finishedSteps as LayerReport[][];
  await using reader = new BlockReader(team, models, options.signal);
  for (let layer = 0; layer < models[0]!.config.layers; layer++) {
    throwIfAborted(options.signal);
    const layers = finished[layer];
    if (layers) {
      if (options.windows) await team.each((place) => replay(members[place]!, layer, options.writer));
      options.onResumed(layers);
      continue;
    }
    const run = new BlockPruning(team, members, reader, parsed, options, layer);
    const { layers: pruned, ...report } = await run.execute();
    await options.writer.step(pruned);
    options.onBlock(report);
  }
  if (options.finalNorm) await refitFinalNorm(team, members, options.writer);
}

/** Runs a block with the weights that were written for it. */
async function replay({ model, activations, dense }: Member, layer: number, writer: CheckpointWriter): Promise<void> {
  const block = await model.loadBlock(layer);
  try {
    await dense?.run(block);
    for (const linear of block.stages.flat(2)) {
      using written = await model.loadLinear(linear.spec, model.precision, (name, out, offset) =>
        writer.readBack(name, out, offset),
      );
      model.stream.copy(written, linear.weight);
      linear.isPruned = true;
    }
    await activations!.run(block);
  } finally {
    block.dispose();
  }
}

/** A layer's bytes as one member wrote them, for the others. */
interface Stored {
  stage: number;
  group: number;
  layer: number;
  member: number;
  bytes: Uint8Array<ArrayBuffer>;
}

type Phase = keyof BlockReport['phases'];

/** One block's way through the traversal, with its clock. */
class BlockPruning {
  readonly #team: Team;
  readonly #members: readonly Member[];
  readonly #reader: BlockReader;
  readonly #parsed: ParsedPruningOptions;
  readonly #options: TraversalOptions;
  readonly #layer: number;
  /** Of each member. */
  readonly #clocks: readonly PhaseClock<Phase>[];
  readonly #layers: LayerReport[] = [];
  /** The reports of what was solved last, where nobody waits for them yet. */
  #reported: Promise<void> | undefined;
  /** The block on each member's device. */
  #blocks: readonly Block[] = [];
  /** The same with the dense model's weights. */
  #denseBlocks: readonly Block[] = [];

  constructor(
    team: Team,
    members: readonly Member[],
    reader: BlockReader,
    parsed: ParsedPruningOptions,
    options: TraversalOptions,
    layer: number,
  ) {
    this.#team = team;
    this.#members = members;
    this.#reader = reader;
    this.#parsed = parsed;
    this.#options = options;
    this.#layer = layer;
    this.#clocks = members.map(({ model }) => new PhaseClock(model.stream));
  }

  async execute(): Promise<BlockReport & { layers: LayerReport[] }> {
    const began = performance.now();
    {
      using scope = new Scope();
      this.#blocks = await this.#timed('read', () => this.#reader.read(this.#layer, scope));
      this.#denseBlocks = this.#blocks.map((block, place) => {
        const { model } = this.#members[place]!;
        const { propagation, target } = this.#options;
        // With `block` all is summed before the block is pruned.
        const needsCopies = target !== undefined && makesOnDemand(model.config) && propagation === 'sequential';
        return needsCopies ? scope.hold(withCopies(model, block)) : block;
      });
      if (!this.#options.windows) await this.#solve(this.#divide(this.#groups().flat()), undefined);
      else if (this.#options.propagation === 'sequential') await this.#sequential();
      else await this.#fromDenseBlock();
      await this.#settled();
    }
    const spent = (phase: Phase) => this.#clocks.reduce((sum, clock) => sum + clock.spent(phase), 0);
    return {
      block: this.#layer,
      milliseconds: performance.now() - began,
      phases: { read: spent('read'), forward: spent('forward'), solve: spent('solve'), write: spent('write') },
      layers: this.#layers,
    };
  }

  /** By stage. */
  #groups(): Group[][] {
    return this.#blocks[0]!.stages.map((groups, stage) => groups.map((layers, group) => ({ stage, group, layers })));
  }

  /** Each layer is applied once, after it was pruned. As many groups of a stage as there are devices are solved at a time. */
  async #sequential(): Promise<void> {
    for (const [stage, groups] of this.#groups().entries()) {
      await this.#begin(stage);
      for (let first = 0; first < groups.length; first += this.#team.size) {
        await this.#reported;
        using scope = new Scope();
        const division = this.#divide(groups.slice(first, first + this.#team.size));
        const inputs = await this.#inputs(division, scope);
        // Where the dense model keeps what layers see, it goes ahead while the stage's weights are still its own.
        if (first === 0) await this.#advanceDense(stage);
        await this.#solve(division, inputs);
      }
      await this.#advance(stage);
      await this.#reported; // what was solved is free, what was queued behind it is not done yet
      if (stage === stageCount - 1) await this.#reader.ahead(this.#layer + 1);
    }
  }

  /** All Gram matrices come from the dense block; then it is pruned and run again. */
  async #fromDenseBlock(): Promise<void> {
    using scope = new Scope();
    const groups = this.#groups();
    const division = this.#divide(groups.flat());
    const inputs = new Map<Task, GroupInputs>();
    {
      using before = new Scope();
      const copies = this.#members.map(({ model, activations }) => {
        const label = 'the residual stream before the block';
        const copy = before.hold(model.device.tensor('float32', activations!.residual.shape, label));
        model.stream.copy(activations!.residual, copy);
        return copy;
      });
      for (const stage of groups.keys()) {
        await this.#begin(stage);
        const ofStage = division.map((tasks) => tasks.filter((task) => task.stage === stage));
        for (const [task, seen] of await this.#inputs(ofStage, scope)) inputs.set(task, seen);
        await this.#advanceDense(stage);
        if (stage < stageCount - 1) await this.#advance(stage);
        await this.#settled();
      }
      for (const [place, { model, activations }] of this.#members.entries())
        model.stream.copy(copies[place]!, activations!.residual);
    }
    await this.#solve(division, inputs);
    await this.#timed('forward', () =>
      this.#team.each((place) => this.#members[place]!.activations!.run(this.#blocks[place]!)),
    );
  }

  async #begin(stage: number): Promise<void> {
    await this.#timed('forward', () =>
      this.#team.each(async (place) => {
        const { activations, dense } = this.#members[place]!;
        await activations!.begin(this.#blocks[place]!, stage);
        await dense?.begin(this.#denseBlocks[place]!, stage);
      }),
    );
  }

  #advance(stage: number): Promise<void> {
    return this.#apply(stage, this.#blocks, ({ activations }) => activations);
  }

  async #advanceDense(stage: number): Promise<void> {
    // Where outputs are summed, it went ahead with the inputs.
    const isAhead = sumsOutputs(this.#members[0]!.model.config, stage, this.#blocks[0]!.router !== undefined);
    if (this.#options.target && !isAhead) await this.#apply(stage, this.#denseBlocks, ({ dense }) => dense);
  }

  async #apply(
    stage: number,
    blocks: readonly Block[],
    which: (member: Member) => Activations | undefined,
  ): Promise<void> {
    await this.#timed('forward', () =>
      this.#team.each(async (place) => {
        which(this.#members[place]!)?.advance(blocks[place]!, stage);
      }),
    );
  }

  /** Waits for the reports, and for all that was queued. */
  async #settled(): Promise<void> {
    await this.#reported;
    await this.#team.each((place) => this.#members[place]!.model.stream.sync());
  }

  /** Who solves what. The published schedule of ρ looks at all layers of a group, so they stay together. */
  #divide(groups: Group[]): Task[][] {
    const { method, schedule } = this.#parsed;
    return divide(groups, this.#team.size, method === 'alps' && schedule === 'alps');
  }

  /** What the tasks' groups see, each on the device that solves it. `scope` gets all of it. */
  async #inputs(division: Task[][], scope: Scope): Promise<Map<Task, GroupInputs>> {
    const inputs = new Map<Task, GroupInputs>();
    for (const [i, tasks] of byGroup(division).entries()) {
      // What one group's sums take meanwhile is free for the next one's.
      if (i > 0) await this.#settled();
      const { stage, group } = tasks[0]!.task;
      const seen = await this.#timed('forward', () =>
        groupInputs(this.#team, this.#members, {
          blocks: this.#blocks,
          denseBlocks: this.#denseBlocks,
          stage,
          group,
          solvers: tasks.map(({ member }) => member),
          moments: this.#parsed.method === 'dsnot',
          target: this.#options.target,
          int8: this.#parsed.int8,
          gram: needsGram(this.#parsed), // which holds wherever dense targets or row weights are possible
        }),
      );
      for (const [i, { task }] of tasks.entries()) inputs.set(task, scope.hold(seen[i]!));
    }
    return inputs;
  }

  /**
   * Each member prunes its tasks and writes them; then every member has the pruned weights. Without inputs only the weights decide. A device alone
   * need not be waited for before the weights are used: see {@link #reported}.
   */
  async #solve(division: Task[][], inputs: Map<Task, GroupInputs> | undefined): Promise<void> {
    const stored: Stored[] = [];
    const report = this.#inOrder(division);
    await this.#team.each(async (member) => {
      const { model } = this.#members[member]!;
      for (const task of division[member]!) {
        await this.#reported;
        const { stage, group, layers } = task;
        const linears = this.#linearsOf(member, task);
        const { reports } = await pruneGroup(model, linears, inputs?.get(task), {
          parsed: forStage(this.#parsed, stage),
          budgets: this.#options.budgets,
          place: this.#options.rowWeights ? { block: this.#blocks[member]!, stage, group } : undefined,
          writer: this.#options.writer,
          clock: this.#clocks[member]!,
          onStored: (linear, bytes) => {
            const layer = layers[linears.indexOf(linear)]!;
            if (inputs && this.#team.size > 1) stored.push({ stage, group, layer, member, bytes });
          },
        });
        const reported = handled(reports.then((all) => report(this.#linearsOf(0, task), all)));
        if (this.#team.size > 1) await reported;
        else this.#reported = reported;
      }
    });
    if (stored.length > 0) await this.#timed('write', () => this.#share(stored));
  }

  #linearsOf(member: number, { stage, group, layers }: Task): Linear[] {
    return layers.map((layer) => this.#blocks[member]!.stages[stage]![group]![layer]!);
  }

  /** Hands on the reports in the order of the dataflow, whichever device is done first. */
  #inOrder(division: Task[][]) {
    const { stages } = this.#blocks[0]!;
    const waiting = byGroup(division).flatMap((tasks) => stages[tasks[0]!.task.stage]![tasks[0]!.task.group]!);
    const ready = new Map<Linear, Omit<LayerReport, 'block'>>();
    return (linears: Linear[], reports: Omit<LayerReport, 'block'>[]) => {
      for (const [i, linear] of linears.entries()) ready.set(linear, reports[i]!);
      for (let next = ready.get(waiting[0]!); next; next = ready.get(waiting[0]!)) {
        waiting.shift();
        const layer = { block: this.#layer, ...next };
        this.#layers.push(layer);
        this.#options.onLayer(layer);
      }
    };
  }

  /** Puts pruned weights into the blocks of the members that did not solve them. */
  async #share(stored: readonly Stored[]): Promise<void> {
    await this.#team.each(async (place) => {
      const { model } = this.#members[place]!;
      for (const { stage, group, layer, member, bytes } of stored) {
        if (member === place) continue;
        const linear = this.#blocks[place]!.stages[stage]![group]![layer]!;
        using pruned = model.linearOf(linear.spec, bytes, model.precision);
        model.stream.copy(pruned, linear.weight);
        linear.isPruned = true;
        await model.stream.sync();
      }
    });
  }

  async #timed<T>(phase: Phase, action: () => Promise<T>): Promise<T> {
    for (const clock of this.#clocks) clock.enter(phase);
    try {
      return await action();
    } finally {
      for (const clock of this.#clocks) clock.leave();
    }
  }
}

/** The tasks of each group with the members that solve them, groups in the order of the dataflow. */
function byGroup(division: Task[][]): { task: Task; member: number }[][] {
  const groups = new Map<string, { task: Task; member: number }[]>();
  const tasks = division.flatMap((ofMember, member) => ofMember.map((task) => ({ task, member })));
  tasks.sort((a, b) => a.task.stage - b.task.stage || a.task.group - b.task.group);
  for (const one of tasks) {
    const key = `${one.task.stage} ${one.task.group}`;
    groups.set(key, [...(groups.get(key) ?? []), one]);
  }
  return [...groups.values()];
}

/** DSnoT without swaps in the stages that it is to leave out. */
function forStage(parsed: ParsedPruningOptions, stage: number): ParsedPruningOptions {
  const { dsnot } = parsed;
  return dsnot.skip === (stage < 2 ? 'attention' : 'mlp') ? { ...parsed, dsnot: { ...dsnot, maxCycles: 0 } } : parsed;
}
