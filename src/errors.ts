import { getSystemErrorMap, types } from 'node:util';

/**
 * What went wrong, as a stable string.
 *
 * - `INVALID_ARGUMENT`: an option or argument has the wrong type, range or shape
 * - `INVALID_CHECKPOINT`: a model folder or safetensors file breaks the format
 * - `UNSUPPORTED_MODEL`: a model that this package can read, but not run or prune
 * - `INVALID_TEXT`: calibration or evaluation data is empty, too short or malformed
 * - `FILE_SYSTEM`: a call of the operating system failed (its error is the `cause`), or another process uses the files
 * - `NOT_FINITE`: NaN or infinity in weights, activations or a Gram matrix
 * - `NOT_POSITIVE_DEFINITE`: a Gram matrix cannot be factorised, even with damping
 * - `OUT_OF_MEMORY`: an allocation would exceed the device's limit, or a job a queue's memory budget
 * - `QUEUE_FULL`: `maxQueued` jobs wait in a job queue already
 * - `DISPOSED`: a tensor, stream, file or queue was used after it was closed
 * - `ABORTED`: the caller's AbortSignal fired
 * - `NO_DEVICE`: the requested device cannot be used on this machine
 * - `DEVICE_FAILED`: a GPU failed during work; the process cannot use it any more
 * - `ADDON_NOT_LOADED`: the native addon could not be loaded
 * - `INTERNAL`: a bug in this package
 */
export type AlpsErrorCode =
  | 'INVALID_ARGUMENT'
  | 'INVALID_CHECKPOINT'
  | 'UNSUPPORTED_MODEL'
  | 'INVALID_TEXT'
  | 'FILE_SYSTEM'
  | 'NOT_FINITE'
  | 'NOT_POSITIVE_DEFINITE'
  | 'OUT_OF_MEMORY'
  | 'QUEUE_FULL'
  | 'DISPOSED'
  | 'ABORTED'
  | 'NO_DEVICE'
  | 'DEVICE_FAILED'
  | 'ADDON_NOT_LOADED'
  | 'INTERNAL';

/** The class of all errors that this package throws. `message` names the file, tensor or option and, where possible, a remedy. */
export class AlpsError extends Error {
  override readonly name = 'AlpsError';
  /** What went wrong. */
  readonly code: AlpsErrorCode;

  constructor(code: AlpsErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.code = code;
  }
}

/** A value as it is shown in a message: short, quoted, never multi-line. */
export function describe(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 80 ? `${value.slice(0, 77)}...` : value);
  if (typeof value === 'function') return 'a function';
  if (ArrayBuffer.isView(value)) return `${value.constructor.name}(${(value as { length?: number }).length})`;
  if (typeof value === 'object' && value !== null) {
    try {
      const text = JSON.stringify(value) ?? String(value);
      return text.length > 80 ? `${text.slice(0, 77)}...` : text;
    } catch {
      return 'an object';
    }
  }
  return String(value);
}

/** `Expected <what> for <name> but received <value> of type <type>`. */
export function invalidArgument(name: string, what: string, value: unknown): AlpsError {
  const type = value === null ? 'null' : typeof value;
  return new AlpsError(
    'INVALID_ARGUMENT',
    `Expected ${what} for ${name} but received ${describe(value)} of type ${type}`,
  );
}

/** Refuses what is neither a function nor undefined. */
export function optionalFunction(name: string, value: unknown): void {
  if (value !== undefined && typeof value !== 'function') throw invalidArgument(name, 'a function', value);
}

/** The names of a type's options, all of them and no other. */
export type Names<T> = { readonly [K in keyof T]-?: unknown };

/**
 * Refuses what is no object, such as the options of a call without any, and an option that is not among the known ones: misspelt it would do
 * nothing in silence. Those that are undefined are as if they were not there.
 */
export function optionsObject(value: unknown, known: Names<object>, name = 'options'): void {
  if (typeof value !== 'object' || value === null) throw invalidArgument(name, 'an object', value);
  const kind = kindOf(value);
  if (isBuiltIn(value) || (kind !== 'Object' && !Object.keys(known).some((key) => key in value)))
    throw invalidArgument(name, `an object with options, no ${kind},`, value);
  const isUnknown = (key: string) =>
    !Object.hasOwn(known, key) && (value as Record<string, unknown>)[key] !== undefined;
  const unknown = Object.keys(value).find(isUnknown);
  if (unknown === undefined) return;
  const all = Object.keys(known).sort().join(', ');
  const where = name === 'options' ? '' : ` of ${name}`;
  throw new AlpsError('INVALID_ARGUMENT', `Unknown option ${describe(unknown)}${where}; the options are ${all}`);
}

/** Such as Object, also for instances of most classes, Date or Map. */
function kindOf(value: object): string {
  return Object.prototype.toString.call(value).slice('[object '.length, -1);
}

/** Whether a value has properties of its own that are called as options are, but mean something else. */
function isBuiltIn(value: object): boolean {
  return (
    Array.isArray(value) || ArrayBuffer.isView(value) || types.isNativeError(value) || types.isBoxedPrimitive(value)
  );
}

/** Refuses what is no list. */
export function anyList(name: string, value: unknown): void {
  if (!Array.isArray(value)) throw invalidArgument(name, 'a list', value);
}

/** Refuses what is no list of objects that have known properties. */
export function listOfObjects(name: string, value: readonly unknown[], known: Names<object>): void {
  anyList(name, value);
  for (const item of value) optionsObject(item, known, name);
}

/** Refuses what cannot be the path of a folder. */
export function folderPath(name: string, value: unknown): void {
  textOf(name, 'the path of a folder', value);
}

/** Refuses what cannot be the path of a file. */
export function filePath(name: string, value: unknown): void {
  textOf(name, 'the path of a file', value);
}

/** Refuses what is no text, or an empty one. */
export function textOf(name: string, what: string, value: unknown): void {
  if (typeof value !== 'string' || value === '') throw invalidArgument(name, what, value);
}

/** The error of a cancelled call; the signal's own reason is its cause. */
export function aborted(signal?: Pick<AbortSignal, 'reason'>): AlpsError {
  return new AlpsError('ABORTED', 'The operation was aborted', { cause: signal?.reason });
}

/** Throws the `ABORTED` error when the signal has fired. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw aborted(signal);
}

/** Whether an error of the system has one of these codes, such as ENOENT. */
export function isCode(error: unknown, ...codes: string[]): boolean {
  return codes.includes((error as { code?: string } | null | undefined)?.code ?? '');
}

/** Wraps an error of the operating system with the path it is about. */
export function fileSystemError(action: string, path: string, cause: unknown): AlpsError {
  if (cause instanceof AlpsError) return cause;
  const { code, errno } = (cause ?? {}) as { code?: unknown; errno?: unknown };
  const words = typeof errno === 'number' ? getSystemErrorMap().get(errno)?.[1] : undefined;
  const plain = cause instanceof Error ? cause.message : String(cause);
  const detail = typeof code !== 'string' ? plain : words ? `${words} (${code})` : code;
  return new AlpsError('FILE_SYSTEM', `Could not ${action} ${path}: ${detail}`, { cause });
}
