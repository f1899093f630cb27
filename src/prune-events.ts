import { AlpsError } from './errors.js';
import { pruneChannel } from './jobs/events.js';
import type { Logger } from './logger.js';
import type { PruneEvent, PruneOptions } from './prune.js';

/** Layers and steps of the writing are for debugging, all else is information. */
function logPruneEvent(logger: Logger, { type, ...facts }: PruneEvent, model: string): void {
  const level = type === 'layer' || type === 'generate' ? 'debug' : 'info';
  logger[level]({ model, type, ...facts }, `pruning ${model}: ${type}`);
}

/** What tells a run's events to its listener, its logger and the channel `alps-prune:prune`. */
export function announcerOf({ model, out, onEvent, logger }: PruneOptions): (event: PruneEvent) => void {
  return (event) => {
    onEvent?.(event);
    if (logger) logPruneEvent(logger, event, model);
    if (pruneChannel.hasSubscribers) pruneChannel.publish({ model, out, event });
  };
}

/** An abort is information, all else an error. */
export function logPruneFailure({ model, out, logger }: PruneOptions, error: unknown): void {
  if (!logger) return;
  const code = error instanceof AlpsError ? error.code : 'UNKNOWN';
  if (code === 'ABORTED') logger.info({ model, out, code }, `pruning ${model} was aborted`);
  else logger.error({ model, out, code, err: error }, `pruning ${model} failed`);
}
