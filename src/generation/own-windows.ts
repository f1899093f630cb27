import type { CalibrationOptions } from '../calibration/calibration.js';
import { eachWindow, join, joinWindows, type TokenWindows, windowsOfIds } from '../calibration/windows.js';
import { invalidArgument } from '../errors.js';
import type { DecoderModel } from '../model/decoder.js';
import { passageLength, type WritingControl, writeWindows } from './writer.js';

/** How many windows the model is to write itself, in options that were checked. */
export function ownWindowsOf({ ownWindows = 0 }: CalibrationOptions): number {
  return ownWindows;
}

/** All that the calibration windows depend on beside the model and the device, for a run's fingerprint. @param given without own windows */
export function calibrationKey(given: TokenWindows, options: CalibrationOptions): string {
  const own = ownWindowsOf(options);
  return own === 0 ? given.hash : `${given.hash} and ${own} of its own, seed ${options.seed ?? 0}`;
}

/** Where windows that were written are kept, for a run that goes on. */
export interface KeptWindows {
  /** What an earlier run kept. */
  found: unknown;
  keep(ids: number[][]): Promise<void>;
}

/**
 * The given windows, and behind them those that the model writes itself: they go on from the first tokens of the given ones, of as many of these as
 * there are to be, evenly over all.
 * @param model dense; its weights are loaded for the writing
 * @throws AlpsError `INVALID_ARGUMENT` for windows of two tokens, and as {@link writeWindows}
 */
export async function withOwnWindows(
  model: DecoderModel,
  given: TokenWindows,
  options: CalibrationOptions,
  { signal, onProgress, found, keep }: WritingControl & KeptWindows,
): Promise<TokenWindows> {
  const windows = ownWindowsOf(options);
  if (windows === 0) return given;
  if (found !== undefined)
    return joinWindows([given, windowsOfIds(found, model.config.vocabulary, 'the windows of an earlier run')]);
  const { length } = given;
  const tokens = passageLength(length);
  if (tokens >= length)
    throw invalidArgument(
      'calibration.ownWindows',
      'none for windows of two tokens, which leave none to write',
      windows,
    );
  const all = eachWindow(given);
  const count = Math.min(windows, given.windows);
  const passages = Array.from({ length: count }, (_, i) => all[Math.floor((i * given.windows) / count)]!);
  const prompts = join(
    passages.map((window) => window.subarray(0, tokens)),
    tokens,
  );
  const told = inSteps(onProgress);
  told(0);
  const plan = { windows, length, seed: options.seed ?? 0, temperature: 1, prompts };
  const own = await writeWindows(model, plan, { signal, onProgress: told });
  await keep(own.map((ids) => [...ids]));
  told(1);
  return joinWindows([given, join(own, length)]);
}

/** Tells every fiftieth. */
function inSteps(onProgress: WritingControl['onProgress']): (share: number) => void {
  let told = -1;
  return (share) => {
    const step = Math.floor(50 * share);
    if (step > told) onProgress?.(step / 50);
    told = step;
  };
}
