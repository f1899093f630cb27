import type { TokenWindows } from '../calibration/windows.js';
import type { Checkpoint } from '../checkpoint/folder.js';
import type { Device } from '../device/device.js';
import { calibrationKey, ownWindowsOf, withOwnWindows } from '../generation/own-windows.js';
import { DecoderModel, type Precision } from '../model/decoder.js';
import { version } from '../package-version.js';
import type { CellStore } from './cell-store.js';
import type { CompareOptions } from './comparison.js';

/**
 * The windows that all cells are pruned with. Those that the model writes itself are kept in the store, and written once.
 * @param given those of the text
 */
export async function comparisonCalibration(
  given: TokenWindows,
  { calibration, signal, onEvent }: Pick<CompareOptions, 'calibration' | 'signal' | 'onEvent'>,
  parts: { checkpoint: Checkpoint; device: Device; precision: Precision; fingerprint: string; store: CellStore },
): Promise<TokenWindows> {
  if (ownWindowsOf(calibration) === 0) return given;
  const { checkpoint, device, precision, fingerprint, store } = parts;
  const key = { version, weights: fingerprint, precision, written: [calibrationKey(given, calibration), given.length] };
  await using stream = device.stream({ signal });
  return await withOwnWindows(DecoderModel.open(checkpoint, stream, precision), given, calibration, {
    signal,
    onProgress: (share) => onEvent?.({ type: 'generate', share }),
    found: await store.find(key),
    keep: (ids) => store.save(key, ids),
  });
}
