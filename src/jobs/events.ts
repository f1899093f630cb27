import { channel } from 'node:diagnostics_channel';
import type { AlpsErrorCode } from '../errors.js';
import type { PruneEvent } from '../prune.js';

/** A job of a {@link JobQueue}, as events show it. */
export interface JobInfo {
  /** Number of the job in its queue, from 1. */
  id: number;
  kind: 'layer' | 'model' | 'task';
  /** For display: the caller's choice, the layer's name or the model's folder. */
  name: string;
  /** Owner of the job; keys of the same priority are served in turn. */
  key: string;
  priority: number;
  /** Bytes of the memory budget that the job takes while it runs. */
  bytes: number;
}

/** How full a {@link JobQueue} is. */
export interface QueueLoad {
  /** Number of running jobs. */
  running: number;
  /** Number of waiting jobs. */
  queued: number;
  /** Bytes of the memory budget taken by the running jobs. */
  bytes: number;
}

/**
 * The events of a {@link JobQueue}, reported as they happen. An accepted job has one `queued`, at most one `started`, and finally one `finished`
 * event; a job refused because the queue is full has only `refused`. `load` is the load after the event.
 */
export type JobEvent =
  | { type: 'queued'; job: JobInfo; load: QueueLoad }
  | { type: 'refused'; job: JobInfo; load: QueueLoad }
  /** `waited`: milliseconds in the queue. */
  | { type: 'started'; job: JobInfo; load: QueueLoad; waited: number }
  /** Of a model: an event of its run of {@link prune}. */
  | { type: 'progress'; job: JobInfo; load: QueueLoad; event: PruneEvent }
  /** `milliseconds`: since the start, 0 for a job that never started. `code`: of the error, unless `outcome` is `done`. */
  | {
      type: 'finished';
      job: JobInfo;
      load: QueueLoad;
      outcome: 'done' | 'failed' | 'cancelled';
      milliseconds: number;
      code?: AlpsErrorCode | 'UNKNOWN';
    };

/** `alps-prune:job`: every {@link JobEvent} of every queue of the process. */
export const jobChannel = channel('alps-prune:job');

/** `alps-prune:prune`: every {@link PruneEvent}, as `{ model, out, event }`. */
export const pruneChannel = channel('alps-prune:prune');
