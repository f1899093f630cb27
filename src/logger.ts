import { invalidArgument } from './errors.js';

/**
 * Where messages for operators go, shaped like `pino`: an object of facts, then a sentence. A pino logger fits as it is; nothing is logged
 * without one.
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
