import { invalidArgument } from './errors.js';

/** What is to be called when a signal fires, and the one listener that calls it. */
interface Waiting {
  callbacks: Set<() => void>;
  listener: () => void;
}

const waiting = new WeakMap<AbortSignal, Waiting>();

/**
 * Refuses what is neither an AbortSignal nor undefined.
 * @throws AlpsError `INVALID_ARGUMENT`
 */
export function optionalSignal(signal: AbortSignal | undefined): void {
  if (signal === undefined) return;
  if (typeof signal?.addEventListener !== 'function' || typeof signal.aborted !== 'boolean')
    throw invalidArgument('signal', 'an AbortSignal', signal);
}

/**
 * Calls back when the signal fires. All callers share one listener: Node warns of a leak when a signal has more than ten, and a server may
 * well give one signal to hundreds of jobs.
 * @returns takes the callback back; may be called more than once
 * @throws AlpsError `INVALID_ARGUMENT` for what is no AbortSignal
 */
export function onAbort(signal: AbortSignal | undefined, callback: () => void): () => void {
  optionalSignal(signal);
  if (signal === undefined) return () => undefined;
  const { callbacks, listener } = waiting.get(signal) ?? listenTo(signal);
  callbacks.add(callback);
  return () => {
    if (!callbacks.delete(callback) || callbacks.size > 0) return;
    signal.removeEventListener('abort', listener);
    if (waiting.get(signal)?.callbacks === callbacks) waiting.delete(signal);
  };
}

function listenTo(signal: AbortSignal): Waiting {
  const callbacks = new Set<() => void>();
  const listener = () => {
    waiting.delete(signal);
    // A callback may take others back.
    for (const callback of [...callbacks]) if (callbacks.delete(callback)) callback();
  };
  signal.addEventListener('abort', listener, { once: true });
  const made = { callbacks, listener };
  waiting.set(signal, made);
  return made;
}
