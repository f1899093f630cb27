import { AlpsError, invalidArgument, type Names, optionsObject } from '../errors.js';
import { addon, type CudaLocation, type DType, type NativeDevice } from './addon.js';
import { cudaForAuto, findCuda, noCudaError } from './cuda.js';
import { Stream } from './stream.js';
import { native, Tensor } from './tensor.js';

/** Instruction sets of the processor's hand-written loops; each includes those after it. */
export const instructionSets = ['avx512bf16', 'avx512', 'avx2', 'scalar'] as const;
export type InstructionSet = (typeof instructionSets)[number];

/** Options of {@link Device.open}. */
export interface DeviceOptions {
  /** Threads that compute on the processor, from 1 to 1024. Default, also for 0: all cores. Results do not depend on it; GPUs ignore it. */
  threads?: number;
  /**
   * Bytes that tensors may take together; beyond that an allocation fails with `OUT_OF_MEMORY`. Default, also for 0: 90 % of the machine's or
   * the GPU's memory.
   */
  memoryLimit?: number;
  /** Instruction set of the processor's hand-written loops, for tests and comparison; with it, `auto` is `cpu`. Only `avx512bf16` multiplies
   * bfloat16 in hardware. Default: the best available. */
  isa?: InstructionSet;
}

const deviceNames: Names<DeviceOptions> = { threads: true, memoryLimit: true, isa: true };

/** What a {@link Device} is and how much of its memory is used. */
export interface DeviceInfo {
  /** `cpu` or `cuda:N`. */
  name: string;
  /** One line for display. */
  details: string;
  /** Instruction set or compute capability. */
  isa: string;
  /** Whether bfloat16 matrix products run in hardware. */
  bf16Products: boolean;
  /** Whether 8-bit integer matrix products run in hardware, so that `mixedPrecision` uses them. */
  int8Products: boolean;
  threads: number;
  /** Bytes that tensors may take together. */
  memoryLimit: number;
  /** Bytes that tensors take now. */
  memoryUsed: number;
  /** Most bytes that tensors took together since the start or {@link Device.resetPeak}. */
  memoryPeak: number;
  /** Of a device opened as `auto`: why it is the processor and not a GPU. */
  fallback?: string;
}

/**
 * A device's name. `cuda` is the first NVIDIA GPU (`cuda:0`), `cuda:1` the second; `auto` is the first GPU if it works, else the
 * processor.
 */
export type DeviceName = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`;

/** The device of a job, and its options. */
export interface JobDevice extends Pick<DeviceOptions, 'threads' | 'memoryLimit'> {
  /** Name of the device. Default `auto`. */
  device?: DeviceName;
}

export const jobDeviceNames: Names<JobDevice> = { device: true, threads: true, memoryLimit: true };

/** As the addon takes them; 0 and '' stand for the default. */
type Settings = { threads: number; memoryLimit: number; isa: string };

/** What the processor needs of CUDA. */
const nowhere: CudaLocation = { kernels: '', folders: [] };

/**
 * A processor or GPU with its memory. One native thread of the process serves it; jobs use it through streams and share it fairly.
 * Opening the same device with the same options again gives the same native device. The last four opened devices stay alive, with their threads and
 * some memory for the next tensors; the others are freed once nothing uses them and their `Device` is garbage collected.
 * A {@link Device.stream} that is not disposed keeps its device.
 */
export class Device {
  /** `cpu` or `cuda:N`. */
  readonly name: string;
  /** Of a device opened as `auto`: why it is the processor and not a GPU. */
  readonly fallback: string | undefined;
  /** @internal */
  readonly handle: NativeDevice;

  private constructor(name: string, handle: NativeDevice, fallback?: string) {
    this.name = name;
    this.handle = handle;
    this.fallback = fallback;
  }

  /**
   * Opens a device. `cuda` and `cuda:N` never fall back to the processor; `auto` does, and {@link Device.fallback} tells why.
   *
   * @param name default `auto`
   * @throws AlpsError `INVALID_ARGUMENT`; `NO_DEVICE` if the machine does not have the device, with all that was tried; `ADDON_NOT_LOADED` if the
   * native addon cannot be loaded
   */
  static open(name: DeviceName = 'auto', options: DeviceOptions = {}): Device {
    if (typeof name !== 'string' || !/^(auto|cpu|cuda(:\d{1,3})?)$/.test(name))
      throw invalidArgument('device', '"auto", "cpu", "cuda" or "cuda:N"', name);
    optionsObject(options, deviceNames);
    const { threads = 0, memoryLimit = 0, isa = '' } = options;
    if (!Number.isInteger(threads) || threads < 0 || threads > 1024) {
      throw invalidArgument('threads', 'an integer from 1 to 1024, or 0 for all cores,', threads);
    }
    if (!Number.isSafeInteger(memoryLimit) || memoryLimit < 0) {
      throw invalidArgument('memoryLimit', 'a number of bytes', memoryLimit);
    }
    if (isa !== '' && !instructionSets.includes(isa)) {
      throw invalidArgument('isa', instructionSets.map((name) => `"${name}"`).join(' or '), isa);
    }
    const settings = { threads, memoryLimit, isa };
    if (name === 'cpu' || (name === 'auto' && isa !== '')) return Device.#open('cpu', settings);
    if (isa !== '') throw invalidArgument('isa', 'no instruction set of the processor on a GPU', isa);
    return name === 'auto' ? Device.#auto(settings) : Device.#cuda(name, settings);
  }

  /**
   * A GPU, or the kernels on the processor, with settings for tests: "block=96" sets the threads a block of loops over elements,
   * "order=3" the order in which blocks and threads run on the processor, "memory=65536" the bytes that it has there, "refuse=12" the
   * allocation that it refuses.
   * @internal
   */
  static openKernels(name: `cuda:${number}`, settings: string): Device {
    return Device.#cuda(name, { threads: 0, memoryLimit: 0, isa: settings });
  }

  static #open(name: string, settings: Settings, where = nowhere, fallback?: string): Device {
    const handle = native(() => addon().openDevice(name, settings, where));
    return new Device(name, handle, fallback);
  }

  static #cuda(name: string, settings: Settings): Device {
    const device = name === 'cuda' ? 'cuda:0' : name;
    const found = findCuda();
    if (found.failure) throw noCudaError(device, found);
    return Device.#open(device, settings, found.where);
  }

  static #auto(settings: Settings): Device {
    const choice = cudaForAuto();
    if ('reason' in choice) return Device.#open('cpu', settings, nowhere, choice.reason);
    try {
      return Device.#open('cuda:0', settings, choice.where);
    } catch (error) {
      if (!(error instanceof AlpsError)) throw error;
      return Device.#open('cpu', settings, nowhere, error.message);
    }
  }

  /** What the device is and how much of its memory is used. */
  info(): DeviceInfo {
    const info = native(() => addon().deviceInfo(this.handle));
    return this.fallback === undefined ? info : { ...info, fallback: this.fallback };
  }

  /** Resets `memoryPeak` to the memory in use, for all jobs on the device. */
  resetPeak(): void {
    native(() => addon().resetPeak(this.handle));
  }

  /** Opens a first-in-first-out queue of work. Aborting the signal cancels its queued and running work. */
  stream(options: { signal?: AbortSignal } = {}): Stream {
    return new Stream(this, options.signal);
  }

  /**
   * Creates a tensor of zeros.
   *
   * @param label name of the tensor in error messages
   * @throws AlpsError `INVALID_ARGUMENT`, `OUT_OF_MEMORY`
   */
  tensor<D extends DType>(dtype: D, shape: readonly number[], label = 'a tensor'): Tensor<D> {
    return this.#make(dtype, shape, label, true);
  }

  /**
   * Creates a tensor with undefined content, for outputs of ops that write all of it. Writing memory that is zeroed, or touched for the
   * first time, takes some three times as long.
   *
   * @param label name of the tensor in error messages
   * @throws AlpsError `INVALID_ARGUMENT`, `OUT_OF_MEMORY`
   */
  empty<D extends DType>(dtype: D, shape: readonly number[], label = 'a tensor'): Tensor<D> {
    return this.#make(dtype, shape, label, false);
  }

  #make<D extends DType>(dtype: D, shape: readonly number[], label: string, zero: boolean): Tensor<D> {
    for (const d of shape)
      if (!Number.isSafeInteger(d) || d < 0) throw invalidArgument('shape', 'non-negative integers', shape);
    return new Tensor(
      this,
      dtype,
      [...shape],
      native(() => addon().makeTensor(this.handle, dtype, [...shape], label, zero)),
    );
  }
}
