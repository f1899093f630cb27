import { type CalibrationOptions, loadCalibration } from '../calibration/calibration.js';
import { join, joinWindows, shortened, type TokenWindows } from '../calibration/windows.js';
import type { DecoderModel } from '../model/decoder.js';
import { integerFrom } from '../pruning/options.js';
import { passageLength, type WritingControl, writeWindows } from './writer.js';

/** How many windows the model is to write itself. */
export function ownWindowsOf({ ownWindows = 0 }: CalibrationOptions): number {
  return integerFrom('calibration.ownWindows', ownWindows, 0);
}

/**
 * All calibration windows: those of the text or ids, and behind them those that the model writes itself, which go on from the first tokens of the former.
 * @param model dense; its weights are loaded for the writing
 * @throws AlpsError as {@link loadCalibration} and {@link writeWindows}
 */
export async function calibrationWindows(
  model: DecoderModel,
  options: CalibrationOptions,
  control: WritingControl,
): Promise<TokenWindows> {
  const windows = ownWindowsOf(options);
  const { signal } = control;
  const given = await loadCalibration(model.checkpoint.folder, model.config, options, signal ? { signal } : {});
  if (windows === 0) return given;
  const { length } = given;
  const prompts = shortened(given, passageLength(length));
  const plan = { windows, length, seed: options.seed ?? 0, temperature: 1, prompts };
  const onProgress = inSteps(control.onProgress);
  onProgress(0);
  const own = await writeWindows(model, plan, { signal, onProgress });
  onProgress(1);
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
