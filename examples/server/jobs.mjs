// The jobs that clients know by an id: their state, their events, their results on the disk.
import { randomUUID } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { HttpError, responseOf } from './errors.mjs';

/** Events of a job that are kept for clients that come later; a model has one for each of its layers. */
const mostEvents = 2000;

export class Jobs {
  #jobs = new Map();
  #folder;
  #kept;

  /**
   * @param folder where uploads and results are; it is the server's own
   * @param kept finished jobs whose results stay; older ones are removed
   */
  constructor(folder, kept) {
    this.#folder = folder;
    this.#kept = kept;
  }

  /** A place for a job's files, before it is known whether the job is taken. */
  async open(kind) {
    const id = randomUUID();
    const folder = join(this.#folder, id);
    await mkdir(folder, { recursive: true });
    return {
      id,
      kind,
      folder,
      state: 'queued',
      events: [],
      emitter: new EventEmitter().setMaxListeners(0),
      controller: new AbortController(),
    };
  }

  drop(job) {
    return rm(job.folder, { recursive: true, force: true });
  }

  /**
   * Hands the job to the library, and settles when that has queued it, or rejects when it has refused it.
   * @param work gets options for the queue, and gives the job's promise for what `summary` holds in the end
   */
  async start(job, work) {
    await new Promise((queued, refused) => {
      const onEvent = (event) => {
        if (event.type === 'queued') {
          this.#jobs.set(job.id, job);
          queued();
        }
        if (event.type === 'started') job.state = 'running';
        // The end is told below, once the results are there.
        if (event.type !== 'finished' && event.type !== 'refused') this.#tell(job, event);
      };
      work({ signal: job.controller.signal, onEvent }).then(
        (summary) => this.#end(job, 'done', { summary }),
        (error) => {
          if (!this.#jobs.has(job.id)) return refused(error);
          this.#end(job, error?.code === 'ABORTED' ? 'cancelled' : 'failed', { error: responseOf(error).body });
        },
      );
    });
  }

  #tell(job, { type, ...facts }) {
    const { event, waited, load } = facts;
    const data =
      type === 'progress' ? event : { type, ...(waited === undefined ? {} : { waited }), ...(load ? { load } : {}) };
    const entry = { id: (job.events.at(-1)?.id ?? 0) + 1, data };
    job.events.push(entry);
    if (job.events.length > mostEvents) job.events.shift();
    job.emitter.emit('event', entry);
  }

  #end(job, state, facts) {
    job.state = state;
    Object.assign(job, facts);
    this.#tell(job, { type: 'progress', event: { type: state, ...facts } });
    job.emitter.emit('end');
    // The map is in the order of their ends: a long job must not be the oldest at once.
    this.#jobs.delete(job.id);
    this.#jobs.set(job.id, job);
    const ended = [...this.#jobs.values()].filter((one) => isEnded(one));
    for (const old of ended.slice(0, Math.max(0, ended.length - this.#kept))) {
      this.#jobs.delete(old.id);
      this.drop(old).catch(() => {});
    }
  }

  find(id) {
    const job = this.#jobs.get(id);
    if (!job) throw new HttpError(404, 'NOT_FOUND', 'There is no such job, or its result is not kept any more');
    return job;
  }

  /** What a client sees of a job. */
  static describe({ id, kind, state, summary, error }) {
    return { id, kind, state, ...(summary ? { summary } : {}), ...(error ? { error } : {}) };
  }
}

export const isEnded = ({ state }) => state !== 'queued' && state !== 'running';
