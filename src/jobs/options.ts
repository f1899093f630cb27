import { optionalSignal } from '../abort.js';
import type { Device, DeviceName } from '../device/device.js';
import { invalidArgument, type Names, optionalFunction } from '../errors.js';
import type { Logger } from '../logger.js';
import { type PruneOptions, pruneNames } from '../prune.js';
import { type PruneLayerOptions, pruneLayerNames } from '../pruning/prune-layer.js';
import { snapshot } from '../snapshot.js';
import type { JobEvent } from './events.js';

/** Options of {@link JobQueue}. */
export interface JobQueueOptions {
  /** The device of all jobs. Default `auto`. */
  device?: DeviceName | Device;
  /** Most jobs that run at once, at least 1. Default 2: one computes while the other reads, writes or waits. They share the device in turn, op by op. */
  concurrency?: number;
  /** Bytes of tensors that running jobs may take together. Default and maximum: the device's memory limit. */
  memoryBudget?: number;
  /** Most jobs that wait, at least 0; one more is refused with `QUEUE_FULL`. Default 1000. */
  maxQueued?: number;
  /** Receives the events of jobs. Default: none. */
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

/** Options of one job of a {@link JobQueue}. */
export interface JobOptions {
  /** Any finite number; jobs of the highest priority start first. Default 0. */
  priority?: number;
  /** Owner of the job. Among jobs of one priority the keys are served in turn; within a key, first come, first served. Default ''. */
  key?: string;
  /** For display. Default: the layer's name or the model's folder. */
  name?: string;
  /** Bytes of the memory budget that the job takes. Default for layers and models: an estimate that is an upper bound; for `run()`: 0. */
  bytes?: number;
  /** Removes the waiting job from the queue, or stops the running job. */
  signal?: AbortSignal;
  /** Called for each event of this job; must not throw. */
  onEvent?: (event: JobEvent) => void;
}

const jobNames: Names<JobOptions> = {
  priority: true,
  key: true,
  name: true,
  bytes: true,
  signal: true,
  onEvent: true,
};

/** A job's own copy of its options, checked. */
export function parseJob(given: JobOptions): JobOptions {
  const job = snapshot(given, jobNames, 'job');
  const { priority = 0, key = '', name = '', bytes = 0, signal, onEvent } = job;
  if (typeof priority !== 'number' || !Number.isFinite(priority))
    throw invalidArgument('priority', 'a finite number', priority);
  for (const [option, value] of Object.entries({ key, name }))
    if (typeof value !== 'string') throw invalidArgument(option, 'a string', value);
  integer('bytes', bytes, 0);
  optionalSignal(signal);
  optionalFunction('onEvent', onEvent);
  return job;
}

/** Options that the queue sets for a job. */
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
