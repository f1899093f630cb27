import { channel } from 'node:diagnostics_channel';
import type { AlpsErrorCode } from '../errors.js';
import type { PruneEvent } from '../prune.js';

/** One job of a {@link JobQueue}, for its events. */
export interface JobInfo {
  /** Counted from 1 in each queue. */
  id: number;
  kind: 'layer' | 'model' | 'task';
  /** For people: the layer's name, the model's folder, or what the caller chose. */
  name: string;
  /** Whose job it is; keys of the same priority are served in turn. */
  key: string;
  priority: number;
  /** Bytes of the memory budget that it takes while it runs. */
  bytes: number;
}

/** How full a {@link JobQueue} is. */
export interface QueueLoad {
  running: number;
  queued: number;
  /** Of the memory budget, taken by the jobs that run. */
  bytes: number;
}

/**
 * What happens in a {@link JobQueue}, as it happens. A job that is taken has one `queued`, at most one `started`, and one `finished` at the
 * end; one that is refused for want of room has `refused` alone. `load` is what holds behind the event.
 */
export type JobEvent =
  | { type: 'queued'; job: JobInfo; load: QueueLoad }
  | { type: 'refused'; job: JobInfo; load: QueueLoad }
  /** `waited`: milliseconds in the queue. */
  | { type: 'started'; job: JobInfo; load: QueueLoad; waited: number }
  /** Of a model: an event of its {@link prune}. */
  | { type: 'progress'; job: JobInfo; load: QueueLoad; event: PruneEvent }
  /** `milliseconds`: since it started, 0 for a job that never did. `code`: of the error of a job that is not done. */
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
