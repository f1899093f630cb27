import { addon } from './addon.js';
import type { Device } from './device.js';
import { native } from './tensor.js';

/** Device time of the calls of an op with the same arguments in the same phase ({@link Stream.enterPhase}). */
export interface ProfileEntry {
  phase: string;
  /** Name of the op, `upload` or `download`. */
  op: string;
  /** The op's tensors ("float32 [3, 4]", "-" for none) and integers, in the order of native/core/backend.h. */
  arguments: string[];
  calls: number;
  milliseconds: number;
}

/**
 * Turns the profile of a device on or off and gives what was measured until now. It holds all streams of the device.
 * @internal
 */
export function profile(device: Device, on: boolean): ProfileEntry[] {
  return native(() => addon().profileDevice(device.handle, on)).map(({ key, ...measured }) => {
    const [phase = '', op = '', list = ''] = key.split('\t');
    return { phase, op, arguments: list.split(';').slice(0, -1), ...measured };
  });
}
