import { AsyncResource } from 'node:async_hooks';
import { onAbort } from '../abort.js';
import { Device } from '../device/device.js';
import { AlpsError, aborted, invalidArgument, optionalFunction, optionsObject } from '../errors.js';
import { type Logger, parseLogger } from '../logger.js';
import { type PruneReport, parsePruneOptions, prune } from '../prune.js';
import { flag } from '../pruning/options.js';
import { type PruneLayerResult, parseLayer, pruneLayer } from '../pruning/prune-layer.js';
import { snapshot } from '../snapshot.js';
import { estimateLayerBytes, estimateModelBytes } from './estimate.js';
import { type JobEvent, type JobInfo, jobChannel, type QueueLoad } from './events.js';
import { logJobEvent } from './log-events.js';
import {
  integer,
  type JobOptions,
  type JobQueueOptions,
  jobQueueNames,
  type LayerOptions,
  layerNames,
  type ModelOptions,
  modelNames,
  parseJob,
} from './options.js';
import { Room } from './room.js';
import { WaitingLine } from './waiting-line.js';

interface Job extends JobInfo {
  start(signal: AbortSignal): Promise<unknown>;
  resolve(value: unknown): void;
  reject(error: unknown): void;
  /** Once it runs. */
  controller: AbortController | undefined;
  onEvent: JobOptions['onEvent'];
  queuedAt: number;
  /** Runs what belongs to the job in the async context that it was queued in. */
  context: AsyncResource;
  /** The caller's signal, and what lets go of it. */
  signal: AbortSignal | undefined;
  release(): void;
}

/**
 * Runs many jobs on one device: a queue with priorities, a memory budget, and limits on running and waiting jobs.
 *
 * ```ts
 * const queue = new JobQueue({ device: 'auto', concurrency: 2, maxQueued: 100 });
 * const { weight, mask } = await queue.pruneLayer({ weight: w, shape, gram, sparsity: 0.7 }, { priority: 1, signal });
 * ```
 *
 * A job starts when it is next in line, fewer than `concurrency` jobs run, and its bytes fit into the rest of the budget. A smaller job never
 * overtakes the next in line, so large jobs are not starved; only a job of higher priority does.
 */
export class JobQueue {
  /** The device of all jobs. */
  readonly device: Device;
  /** Most jobs that run at once. */
  readonly concurrency: number;
  /** Bytes of tensors that running jobs may take together. */
  readonly memoryBudget: number;
  /** Most jobs that wait. */
  readonly maxQueued: number;
  readonly #logger: Logger | undefined;
  readonly #onEvent: JobQueueOptions['onEvent'];
  readonly #line = new WaitingLine<Job>();
  readonly #running = new Set<Job>();
  readonly #room = new Room(() => this.#places());
  /** Events that came while listeners were told of one before them. */
  #unpublished: (() => void)[] | undefined;
  #idle: (() => void)[] = [];
  #bytes = 0;
  /** Models whose headers are being read for their bytes: each has a place already. */
  #estimating = 0;
  #lastId = 0;
  #startsSoon = false;
  #closed = false;
  /** Closed with `cancel`. */
  #stopped = false;

  /** @throws AlpsError `INVALID_ARGUMENT`, and as {@link Device.open} */
  constructor(options: JobQueueOptions = {}) {
    optionsObject(options, jobQueueNames);
    const { device = 'auto', concurrency = 2, memoryBudget, maxQueued = 1000, logger, onEvent } = options;
    integer('concurrency', concurrency, 1);
    integer('maxQueued', maxQueued, 0);
    if (memoryBudget !== undefined) integer('memoryBudget', memoryBudget, 1);
    optionalFunction('onEvent', onEvent);
    this.#logger = parseLogger(logger);
    this.device = device instanceof Device ? device : Device.open(device);
    const { memoryLimit } = this.device.info();
    this.concurrency = concurrency;
    this.memoryBudget = Math.min(memoryBudget ?? memoryLimit, memoryLimit);
    this.maxQueued = maxQueued;
    this.#onEvent = onEvent;
  }

  /** How full the queue is. */
  get load(): QueueLoad {
    return { running: this.#running.size, queued: this.#line.size, bytes: this.#bytes };
  }

  /**
   * Runs {@link pruneLayer} on the queue's device. Options that it would refuse are refused at once, before the job is queued.
   *
   * @param options the options of pruneLayer, or a function that returns them when the job starts, so that no data is held while the job waits;
   * `bytes` must then be given ({@link estimateLayerBytes})
   * @throws AlpsError as {@link pruneLayer} and {@link run}
   */
  async pruneLayer(
    options: LayerOptions | ((signal: AbortSignal) => Promise<LayerOptions>),
    job: JobOptions = {},
  ): Promise<PruneLayerResult> {
    const asked = parseJob(job);
    if (typeof options === 'function') {
      integer('bytes', asked.bytes, 0);
      const start = async (signal: AbortSignal) =>
        pruneLayer({ ...snapshot(await options(signal), layerNames), device: this.device, signal });
      return this.#submit('layer', start, { name: 'a layer', ...asked });
    }
    const layer = snapshot(options, layerNames);
    parseLayer(layer);
    const estimate = estimateLayerBytes(layer);
    const { name = layer.name ?? 'a layer', bytes = estimate } = asked;
    const start = (signal: AbortSignal) => pruneLayer({ ...layer, device: this.device, signal });
    return this.#submit('layer', start, { ...asked, name, bytes });
  }

  /**
   * Runs {@link prune} on the queue's device. Unless `bytes` is given, the model's headers are read to estimate them before the job is queued. The
   * events of the run come as `progress`.
   *
   * @throws AlpsError as {@link prune} and {@link run}
   */
  async prune(options: ModelOptions, job: JobOptions = {}): Promise<PruneReport> {
    const run = snapshot(options, modelNames);
    parsePruneOptions(run);
    const asked = parseJob(job);
    const { signal, name = run.model, onEvent } = asked;
    const reserved = asked.bytes === undefined;
    let { bytes } = asked;
    if (bytes === undefined) {
      this.#reserve({ ...asked, name });
      try {
        bytes = await estimateModelBytes({ ...run, signal }, this.device);
      } catch (error) {
        this.#estimating--;
        this.#startWhatFits();
        throw error;
      }
      this.#estimating--; // #submit takes the place at once
    }
    const start = (own: AbortSignal, info: JobInfo) =>
      prune({
        ...run,
        device: this.device,
        signal: own,
        onEvent: (event) => {
          run.onEvent?.call(options, event); // a method of the caller's object as well
          this.#publish({ type: 'progress', job: info, load: this.load, event }, onEvent);
        },
      });
    try {
      return this.#submit('model', start, { ...asked, name, bytes }, reserved);
    } catch (error) {
      if (reserved) this.#startWhatFits(); // the place is free again
      throw error;
    }
  }

  /**
   * Runs any function as a job. It should stop when its signal fires, and take at most the job's `bytes` (default 0) of memory for tensors.
   *
   * @returns what `work` returns
   * @throws AlpsError `QUEUE_FULL` if `maxQueued` jobs wait already, `OUT_OF_MEMORY` for more bytes than the whole budget, `ABORTED`,
   * `DISPOSED` if the queue was closed; or what `work` throws
   */
  async run<T>(work: (context: { device: Device; signal: AbortSignal }) => Promise<T> | T, job: JobOptions = {}) {
    if (typeof work !== 'function') throw invalidArgument('work', 'a function', work);
    return this.#submit('task', async (signal) => work({ device: this.device, signal }), parseJob(job));
  }

  /**
   * Resolves when the queue accepts a job: at once, or when a job leaves it. Callers that wait are let in one per free slot, in their order.
   *
   * @throws AlpsError `DISPOSED` if the queue is or gets closed, `ABORTED`
   */
  async ready(options: { signal?: AbortSignal } = {}): Promise<void> {
    optionsObject(options, { signal: true });
    if (this.#closed) throw closedError();
    await this.#room.wait(options.signal);
  }

  /** Resolves when no job runs or waits, and no model's headers are being read for one. */
  async idle(): Promise<void> {
    if (this.#isIdle()) return;
    await new Promise<void>((resolve) => this.#idle.push(resolve));
  }

  /** Accepts no more jobs, and resolves when the accepted ones are done or, with `cancel`, stopped with `ABORTED`. Default of `cancel`: false. */
  async close(options: { cancel?: boolean } = {}): Promise<void> {
    optionsObject(options, { cancel: true });
    const { cancel = false } = options;
    flag('cancel', cancel);
    this.#closed = true;
    this.#stopped ||= cancel;
    this.#room.close(closedError());
    if (cancel) {
      const reason = new AlpsError('ABORTED', 'The queue was closed');
      for (const job of [...this.#line.items(), ...this.#running]) this.#cancel(job, reason);
    }
    await this.idle();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close({ cancel: true });
  }

  /** Takes a place for a model before its files are opened: a full queue opens none. */
  #reserve({ name, key = '', priority = 0, signal, onEvent }: JobOptions & { name: string }): void {
    if (signal?.aborted) throw aborted(signal);
    if (this.#closed) throw closedError();
    if (!this.#room.taken() && this.#places() <= 0)
      throw this.#refusal({ id: ++this.#lastId, kind: 'model', name, key, priority, bytes: 0 }, onEvent);
    this.#estimating++;
  }

  /** Tells that the queue is full. */
  #refusal(job: JobInfo, onEvent: JobOptions['onEvent']): AlpsError {
    this.#publish({ type: 'refused', job, load: this.load }, onEvent);
    const text = `The queue is full: ${this.maxQueued} jobs wait. Wait for ready(), or try again later`;
    return new AlpsError('QUEUE_FULL', text);
  }

  #submit<T>(
    kind: JobInfo['kind'],
    start: (signal: AbortSignal, info: JobInfo) => Promise<T>,
    { priority = 0, key = '', name = 'a task', bytes = 0, signal, onEvent }: JobOptions,
    reserved = false,
  ): Promise<T> {
    integer('bytes', bytes, 0);
    if (signal?.aborted) throw aborted(signal);
    if (reserved ? this.#stopped : this.#closed) throw closedError(); // what has a place already is one of its jobs
    if (bytes > this.memoryBudget) {
      const text = `${name} needs ${bytes} bytes, more than the queue's whole memory budget of ${this.memoryBudget}`;
      throw new AlpsError('OUT_OF_MEMORY', text);
    }
    const info: JobInfo = { id: ++this.#lastId, kind, name, key, priority, bytes };
    return new Promise<T>((resolve, reject) => {
      const job: Job = {
        ...info,
        start: (own) => start(own, info),
        resolve: resolve as (value: unknown) => void,
        reject,
        controller: undefined,
        onEvent,
        queuedAt: performance.now(),
        context: new AsyncResource('alps-prune job'),
        signal,
        release: onAbort(signal, () => this.#cancel(job, signal?.reason)),
      };
      this.#enter(job, reserved);
    });
  }

  #enter(job: Job, reserved: boolean): void {
    const hasPlace = reserved || this.#room.taken();
    this.#line.add(job);
    const starts = this.#line.peek() === job && this.#fits(job);
    if (this.#line.size + this.#estimating > this.maxQueued && !starts && !hasPlace) {
      this.#line.remove(job);
      job.release();
      job.reject(this.#refusal(infoOf(job), job.onEvent));
      return;
    }
    this.#publish({ type: 'queued', job: infoOf(job), load: this.load }, job.onEvent);
    this.#startWhatFits();
  }

  #fits(job: Job): boolean {
    return this.#running.size < this.concurrency && this.#bytes + job.bytes <= this.memoryBudget;
  }

  /** Once for all that happens until then. */
  #startSoon(): void {
    if (this.#startsSoon) return;
    this.#startsSoon = true;
    queueMicrotask(() => {
      this.#startsSoon = false;
      this.#startWhatFits();
    });
  }

  #startWhatFits(): void {
    if (this.#unpublished) {
      this.#startSoon(); // when all listeners have heard of what came before
      return;
    }
    for (let next = this.#line.peek(); next && this.#fits(next); next = this.#line.peek()) {
      if (next.signal?.aborted) {
        this.#cancel(next, next.signal.reason);
        continue;
      }
      this.#line.take();
      void next.context.runInAsyncScope(() => this.#execute(next));
    }
    this.#room.changed();
    if (!this.#isIdle()) return;
    const idle = this.#idle;
    this.#idle = [];
    for (const resolve of idle) resolve();
  }

  /** Never rejects. */
  async #execute(job: Job): Promise<void> {
    const began = performance.now();
    const controller = new AbortController();
    job.controller = controller;
    this.#running.add(job);
    this.#bytes += job.bytes;
    this.#publish({ type: 'started', job: infoOf(job), load: this.load, waited: began - job.queuedAt }, job.onEvent);
    let settle: () => void;
    let failure: { error: unknown } | undefined;
    try {
      const value = await job.start(controller.signal);
      settle = () => job.resolve(value);
    } catch (error) {
      failure = { error };
      settle = () => job.reject(error);
    }
    this.#running.delete(job);
    this.#bytes -= job.bytes;
    job.release();
    this.#finish(job, performance.now() - began, failure);
    settle();
    this.#startWhatFits();
  }

  #cancel(job: Job, reason: unknown): void {
    if (!this.#line.remove(job)) {
      job.controller?.abort(reason);
      return;
    }
    job.release();
    const error = aborted({ reason });
    job.context.runInAsyncScope(() => this.#finish(job, 0, { error }));
    job.reject(error);
    this.#startSoon(); // one that was behind it may fit
  }

  #finish(job: Job, milliseconds: number, failure: { error: unknown } | undefined): void {
    const event = { type: 'finished', job: infoOf(job), load: this.load, milliseconds } as const;
    if (failure) {
      const code = failure.error instanceof AlpsError ? failure.error.code : 'UNKNOWN';
      const outcome = !job.controller || job.controller.signal.aborted ? 'cancelled' : 'failed';
      this.#publish({ ...event, outcome, code }, job.onEvent, failure.error);
    } else this.#publish({ ...event, outcome: 'done' }, job.onEvent);
  }

  /** All listeners are told of an event before any is of the next, which one of them may cause. */
  #publish(event: JobEvent, onJobEvent: JobOptions['onEvent'], error?: unknown): void {
    const tell = () => this.#tell(event, onJobEvent, error);
    if (this.#unpublished) {
      this.#unpublished.push(AsyncResource.bind(tell));
      return;
    }
    this.#unpublished = [];
    try {
      tell();
      for (let next = this.#unpublished.shift(); next; next = this.#unpublished.shift()) next();
    } finally {
      this.#unpublished = undefined;
    }
  }

  /** A listener that throws must not bring the queue out of step: its error is uncaught, as one of a diagnostics channel is. */
  #tell(event: JobEvent, onJobEvent: JobOptions['onEvent'], error?: unknown): void {
    const logger = this.#logger;
    const listeners = [onJobEvent, this.#onEvent, logger && (() => logJobEvent(logger, event, error))];
    for (const listener of listeners) {
      try {
        listener?.(event);
      } catch (thrown) {
        process.nextTick(() => {
          throw thrown;
        });
      }
    }
    if (jobChannel.hasSubscribers) jobChannel.publish(event);
  }

  #isIdle(): boolean {
    return this.#running.size === 0 && this.#line.size === 0 && this.#estimating === 0;
  }

  /** Jobs that would be taken now. */
  #places(): number {
    const free = this.#line.size === 0 ? this.concurrency - this.#running.size : 0;
    return this.maxQueued - this.#line.size - this.#estimating + free;
  }
}

function infoOf({ id, kind, name, key, priority, bytes }: Job): JobInfo {
  return { id, kind, name, key, priority, bytes };
}

function closedError(): AlpsError {
  return new AlpsError('DISPOSED', 'The queue was closed');
}
