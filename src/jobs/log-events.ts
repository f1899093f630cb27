import type { Logger } from '../logger.js';
import type { JobEvent } from './events.js';

/** Failures are errors, what a queue refuses is a warning, starts and ends are information, all else is for debugging. */
export function logJobEvent(logger: Logger, event: JobEvent, error: unknown): void {
  const { job, load } = event;
  const facts = { job, load };
  if (event.type === 'queued') logger.debug(facts, `${job.name} is queued`);
  else if (event.type === 'refused') logger.warn(facts, `${job.name} was refused: the queue is full`);
  else if (event.type === 'started') logger.info({ ...facts, waited: event.waited }, `${job.name} started`);
  else if (event.type === 'progress') logger.debug({ job, event: event.event }, `${job.name}: ${event.event.type}`);
  else {
    const { outcome, milliseconds, code } = event;
    const ended = { ...facts, outcome, milliseconds, ...(code ? { code } : {}) };
    if (outcome === 'failed') logger.error({ ...ended, err: error }, `${job.name} failed`);
    else logger.info(ended, `${job.name} is ${outcome}`);
  }
}
