import { onAbort } from '../abort.js';
import { invalidArgument } from '../errors.js';
import { Device, type DeviceName, type DeviceOptions } from './device.js';
import type { Stream } from './stream.js';

/** A device by name or open, or a list of different devices that work together. */
export type DeviceChoice = DeviceName | Device | readonly (DeviceName | Device)[];

/**
 * Opens the devices of a choice, in its order.
 * @param options of the devices that are given by name
 * @throws AlpsError `INVALID_ARGUMENT` for an empty list and for a device that is listed twice; see also {@link Device.open}
 */
export function openDevices(choice: DeviceChoice = 'auto', options: DeviceOptions): Device[] {
  const open = (one: DeviceName | Device) => (one instanceof Device ? one : Device.open(one, options));
  if (!Array.isArray(choice)) return [open(choice as DeviceName | Device)];
  const devices = choice.map(open);
  if (devices.length === 0 || new Set(devices.map(identity)).size < devices.length) {
    const names = choice.map((one) => (one instanceof Device ? one.name : one));
    throw invalidArgument('device', 'a device or a list of different devices', names);
  }
  return devices;
}

/** A GPU is one whatever its options; the processor stands for several devices when it is opened with different ones. */
function identity(device: Device): string {
  if (device.name !== 'cpu') return device.name;
  const { name, isa, threads, memoryLimit } = device.info();
  return [name, isa, threads, memoryLimit].join();
}

/** One line for people about all devices. */
export function describeDevices(devices: readonly Device[]): string {
  if (devices.length === 1) return devices[0]!.info().details;
  return devices.map((device) => `${device.name}: ${device.info().details}`).join('; ');
}

/** A stream on each device of a job. */
export class Team {
  readonly streams: readonly Stream[];
  /** Of several streams: fires when the job is aborted, or when the work on one device fails. */
  readonly #stop: AbortController | undefined;
  #release: () => void = () => undefined;

  constructor(devices: readonly Device[], signal?: AbortSignal) {
    const streams: Stream[] = [];
    this.streams = streams;
    if (devices.length > 1) {
      this.#stop = new AbortController();
      const stop = () => this.#stop?.abort(signal?.reason);
      if (signal?.aborted) stop();
      this.#release = onAbort(signal, stop);
    }
    try {
      for (const device of devices) streams.push(device.stream({ signal: this.#stop?.signal ?? signal }));
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  get size(): number {
    return this.streams.length;
  }

  /**
   * Runs an action for each device's place, side by side, and waits for all of them. The first failure cancels the work on the other
   * devices and is the one thrown.
   */
  async each<T>(action: (place: number) => Promise<T>): Promise<T[]> {
    const failures: unknown[] = [];
    const results = await Promise.allSettled(
      this.streams.map(async (_, place) => {
        try {
          return await action(place);
        } catch (error) {
          failures.push(error);
          this.#stop?.abort();
          throw error;
        }
      }),
    );
    if (failures.length > 0) throw failures[0];
    return results.map((result) => (result as PromiseFulfilledResult<T>).value);
  }

  dispose(): void {
    this.#release();
    for (const stream of this.streams) stream.dispose();
  }

  /** Drops what a failed job has queued and waits for what runs, so that all memory is back afterwards. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.streams.map((stream) => stream[Symbol.asyncDispose]()));
    this.dispose();
  }
}
