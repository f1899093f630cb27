import { invalidArgument } from './errors.js';

/**
 * Receives messages for operators: an object of facts, then a sentence. A `pino` logger can be passed as it is. Without a logger nothing is
 * logged.
 */
export interface Logger {
  debug(facts: object, message?: string): void;
  info(facts: object, message?: string): void;
  warn(facts: object, message?: string): void;
  error(facts: object, message?: string): void;
}

/** Checks a `logger` option. */
export function parseLogger(logger: Logger | undefined): Logger | undefined {
  if (logger === undefined) return undefined;
  for (const level of ['debug', 'info', 'warn', 'error'] as const) {
    if (typeof logger?.[level] !== 'function')
      throw invalidArgument('logger', 'an object with the functions debug, info, warn and error', logger);
  }
  return logger;
}
