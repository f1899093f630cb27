import type { Device, DeviceName } from '../device/device.js';
import { invalidArgument, type Names } from '../errors.js';
import type { Logger } from '../logger.js';
import { type PruneOptions, pruneNames } from '../prune.js';
import { type PruneLayerOptions, pruneLayerNames } from '../pruning/prune-layer.js';
import type { JobEvent } from './events.js';

export interface JobQueueOptions {
  /** What all jobs run on. Default `auto`. */
  device?: DeviceName | Device;
  /** Jobs that run at once. Default 2: one computes while the other reads, writes or waits. They share the device in turn, op by op. */
  concurrency?: number;
  /** Bytes of tensors that running jobs may take together. Default, and at most: the device's memory limit. */
  memoryBudget?: number;
  /** Jobs that may wait; one more is refused with `QUEUE_FULL`. Default 1000. */
  maxQueued?: number;
  logger?: Logger;
  /** Called for each event of every job; must not throw. */
  onEvent?: (event: JobEvent) => void;
}

export const jobQueueNames: Names<JobQueueOptions> = {
  device: true,
  concurrency: true,
  memoryBudget: true,
  maxQueued: true,
  logger: true,
  onEvent: true,
};

export interface JobOptions {
  /** The highest goes first, whatever waits below. Default 0. */
  priority?: number;
  /** Whose job it is. Among jobs of one priority the keys are served in turn; within a key first come, first served. Default ''. */
  key?: string;
  /** For people. Default: the layer's name or the model's folder. */
  name?: string;
  /** Bytes of the memory budget. Default for layers and models: an estimate that is an upper bound. */
  bytes?: number;
  /** Takes the job out of the queue, or stops it. */
  signal?: AbortSignal;
  /** Called for each event of this job; must not throw. */
  onEvent?: (event: JobEvent) => void;
}

export const jobNames: Names<JobOptions> = {
  priority: true,
  key: true,
  name: true,
  bytes: true,
  signal: true,
  onEvent: true,
};

/** What the queue chooses for a job: where it runs, and what stops it. */
type Given = 'device' | 'signal';

export type LayerOptions = Omit<PruneLayerOptions, Given>;
export type ModelOptions = Omit<PruneOptions, Given | 'threads' | 'memoryLimit'>;

const { device: _layerDevice, signal: _layerSignal, ...layerNames } = pruneLayerNames;
const { device: _device, signal: _signal, threads: _threads, memoryLimit: _limit, ...modelNames } = pruneNames;

export { layerNames, modelNames };

/** Checks an integer option. */
export function integer(name: string, value: unknown, low: number): void {
  if (!Number.isSafeInteger(value) || (value as number) < low)
    throw invalidArgument(name, `an integer of at least ${low}`, value);
}
