import { invalidArgument } from '../errors.js';
import { addon, type DType, type NativeDevice } from './addon.js';
import { Stream } from './stream.js';
import { native, Tensor } from './tensor.js';

export interface DeviceOptions {
  /** Threads that compute. Default: as many as the machine offers. Results do not depend on it. */
  threads?: number;
  /** Bytes that tensors may take together; an allocation beyond fails with `OUT_OF_MEMORY`. Default: 90 % of the machine's memory. */
  memoryLimit?: number;
  /** Instruction set of the hand-written loops, for tests and comparison. Default: the best the processor has. */
  isa?: string;
}

export interface DeviceInfo {
  name: string;
  /** One line for people. */
  details: string;
  isa: string;
  /** Whether matrix products of bfloat16 run in hardware. */
  bf16Products: boolean;
  threads: number;
  /** Bytes, as are the next two. */
  memoryLimit: number;
  memoryUsed: number;
  memoryPeak: number;
}

/** Names that {@link Device.open} takes: `auto` is the best device that works here. */
export type DeviceName = 'auto' | 'cpu' | `cuda:${number}`;

/**
 * A processor with its memory. One native thread of the process serves it; jobs reach it through streams and share it fairly.
 * Opening the same device with the same options again gives the same native device.
 */
export class Device {
  readonly name: string;
  /** @internal */
  readonly handle: NativeDevice;

  private constructor(name: string, handle: NativeDevice) {
    this.name = name;
    this.handle = handle;
  }

  /**
   * @throws AlpsError `NO_DEVICE` when the machine lacks it, `ADDON_NOT_LOADED` when the addon cannot be loaded.
   */
  static open(name: DeviceName = 'auto', options: DeviceOptions = {}): Device {
    if (name !== 'auto' && name !== 'cpu' && !/^cuda:\d{1,3}$/.test(name))
      throw invalidArgument('device', '"auto", "cpu" or "cuda:N"', name);
    const { threads = 0, memoryLimit = 0, isa = '' } = options;
    if (!Number.isInteger(threads) || threads < 0 || threads > 1024) {
      throw invalidArgument('threads', 'an integer from 1 to 1024', threads);
    }
    if (!Number.isSafeInteger(memoryLimit) || memoryLimit < 0) {
      throw invalidArgument('memoryLimit', 'a number of bytes', memoryLimit);
    }
    const device = name === 'auto' ? 'cpu' : name;
    const where = { kernels: process.env.ALPS_CUDA_LIBRARY ?? '', folders: [''] };
    return new Device(
      device,
      native(() => addon().openDevice(device, { threads, memoryLimit, isa }, where)),
    );
  }

  info(): DeviceInfo {
    return native(() => addon().deviceInfo(this.handle));
  }

  /** Starts the measurement of `memoryPeak` anew, for all jobs on the device. */
  resetPeak(): void {
    native(() => addon().resetPeak(this.handle));
  }

  /** Opens a first-in-first-out queue of work. Aborting the signal cancels what is queued and running. */
  stream(options: { signal?: AbortSignal } = {}): Stream {
    return new Stream(this, options.signal);
  }

  /**
   * A new tensor, all zero.
   * @param label names it in an `OUT_OF_MEMORY` error
   */
  tensor<D extends DType>(dtype: D, shape: readonly number[], label = 'a tensor'): Tensor<D> {
    for (const d of shape)
      if (!Number.isSafeInteger(d) || d < 0) throw invalidArgument('shape', 'non-negative integers', shape);
    return new Tensor(
      this,
      dtype,
      [...shape],
      native(() => addon().makeTensor(this.handle, dtype, [...shape], label)),
    );
  }
}
