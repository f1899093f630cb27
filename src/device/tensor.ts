import { AlpsError, type AlpsErrorCode, invalidArgument } from '../errors.js';
import { addon, type DType, type NativeTensor } from './addon.js';
import type { Device } from './device.js';

/** The typed array that carries a dtype's values; bfloat16 and float16 travel as raw 16-bit patterns. */
export type TypedArrayOf<D extends DType> = D extends 'float32'
  ? Float32Array<ArrayBuffer>
  : D extends 'float64'
    ? Float64Array<ArrayBuffer>
    : D extends 'uint32'
      ? Uint32Array<ArrayBuffer>
      : D extends 'uint8'
        ? Uint8Array<ArrayBuffer>
        : Uint16Array<ArrayBuffer>;

const arrays = {
  float32: Float32Array,
  float64: Float64Array,
  uint32: Uint32Array,
  uint8: Uint8Array,
  bfloat16: Uint16Array,
  float16: Uint16Array,
} as const;

/** A typed array for `length` values of the dtype. */
export function allocateArray<D extends DType>(dtype: D, length: number): TypedArrayOf<D> {
  return new arrays[dtype](length) as TypedArrayOf<D>;
}

/** Number of elements of a shape. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, d) => product * d, 1);
}

const codes: ReadonlySet<string> = new Set<AlpsErrorCode>([
  'INVALID_ARGUMENT',
  'NOT_POSITIVE_DEFINITE',
  'OUT_OF_MEMORY',
  'DISPOSED',
  'ABORTED',
  'NO_DEVICE',
  'DEVICE_FAILED',
  'INTERNAL',
]);

/** The public error for one that native code made. */
export function fromNative(error: unknown): AlpsError {
  if (error instanceof AlpsError) return error;
  const { code, message } = error as { code?: string; message?: string };
  const known = code !== undefined && codes.has(code) ? (code as AlpsErrorCode) : 'INTERNAL';
  return new AlpsError(known, message ?? String(error), { cause: error });
}

/** Runs a call into the addon; its errors leave as AlpsError. */
export function native<R>(call: () => R): R {
  try {
    return call();
  } catch (error) {
    throw fromNative(error);
  }
}

/**
 * Numbers in a device's memory: a dtype and a shape, row-major and contiguous.
 *
 * Made by {@link Device.tensor}, freed by `dispose()` (or `using`, or a {@link Scope}). Work that was queued with it before keeps the
 * memory alive until it has run.
 */
export class Tensor<D extends DType = DType> {
  readonly device: Device;
  readonly dtype: D;
  readonly shape: readonly number[];
  /** @internal */
  readonly handle: NativeTensor;
  #disposed = false;

  /** @internal Use {@link Device.tensor}. */
  constructor(device: Device, dtype: D, shape: readonly number[], handle: NativeTensor) {
    this.device = device;
    this.dtype = dtype;
    this.shape = shape;
    this.handle = handle;
  }

  /** Number of elements. */
  get size(): number {
    return sizeOf(this.shape);
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Rows `start` to `end` (exclusive) of the first dimension, on the same memory. */
  rows(start: number, end: number): Tensor<D> {
    const [first = 0, ...rest] = this.shape;
    if (!(Number.isInteger(start) && Number.isInteger(end) && start >= 0 && end >= start && end <= first)) {
      throw invalidArgument('rows', `a range inside 0..${first}`, `${start}..${end}`);
    }
    return this.view(start * sizeOf(rest), [end - start, ...rest]);
  }

  /** The same memory under another shape of as many elements. */
  reshape(...shape: number[]): Tensor<D> {
    if (sizeOf(shape) !== this.size) throw invalidArgument('shape', `${this.size} elements`, shape);
    return this.view(0, shape);
  }

  private view(firstElement: number, shape: number[]): Tensor<D> {
    const handle = native(() => addon().viewTensor(this.handle, firstElement, shape));
    return new Tensor(this.device, this.dtype, shape, handle);
  }

  /** Gives the memory back. Safe to call twice. Views on the same memory stay usable. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    addon().disposeTensor(this.handle);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Frees what it holds, last first, on `dispose()`. */
export class Scope {
  #held: { dispose(): void }[] = [];

  hold<T extends { dispose(): void }>(resource: T): T {
    this.#held.push(resource);
    return resource;
  }

  dispose(): void {
    const held = this.#held;
    this.#held = [];
    for (const resource of held.reverse()) resource.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
