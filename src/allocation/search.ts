import { dirname, resolve } from 'node:path';
import { loadCalibration } from '../calibration/calibration.js';
import { Checkpoint } from '../checkpoint/folder.js';
import { checkOutput, makeFolder } from '../checkpoint/output-folder.js';
import { openDevices } from '../device/team.js';
import { AlpsError, aborted, throwIfAborted } from '../errors.js';
import { calibrationKey } from '../generation/own-windows.js';
import { DecoderModel } from '../model/decoder.js';
import { checkWidths, choosePrecision, deviceOptions, fingerprintOf, reportedOptions } from '../prune.js';
import { describePattern } from '../pruning/pattern.js';
import { withPreset } from '../pruning/preset.js';
import { snapshot } from '../snapshot.js';
import {
  type AllocationSearch,
  type AllocationSearchEvent,
  type AllocationSearchOptions,
  parseSearchOptions,
  searchNames,
} from './search-options.js';
import { Search } from './search-run.js';
import { SearchState } from './search-state.js';
import { loadSearchWindows } from './search-windows.js';

/**
 * Searches for a sparsity for each layer with which a model loses less than with the same sparsity for all layers (docs/algorithm.md, "Search for an
 * allocation").
 *
 * ```ts
 * const { layers } = await searchAllocation({ model, work: './search', sparsity: 0.7, calibration });
 * await prune({ model, out: './pruned', sparsity: 0.7, calibration, allocation: layers });
 * ```
 *
 * The model is pruned uniformly at the target and a little sparser. Each layer of the sparser model (corresponding layers of all experts together) is
 * then put into the other model, and the search measures in float32 how far the predictions move. Candidates with more zeros in the layers that move
 * them less are pruned, their losses are measured on other windows, and the best one is the result. That takes up to four runs of {@link prune}, and
 * for each layer a forward pass from its block to the end of the model.
 *
 * After an interruption, a call with the same `work` resumes after the last finished block or candidate, with the same result.
 *
 * The rule is this package's own; related work: OWL (*Outlier Weighed Layerwise Sparsity*, ICML 2024), EvoPress (ICML 2025).
 *
 * @throws AlpsError as {@link prune}; `INVALID_ARGUMENT` also if `work` holds a search of another model, text or options; `FILE_SYSTEM` also if another
 * process works in it
 */
export async function searchAllocation(asked: AllocationSearchOptions): Promise<AllocationSearch> {
  const began = performance.now();
  const given = snapshot(asked, searchNames);
  const parsed = parseSearchOptions(given);
  const options = withPreset({ ...given, onEvent: undefined, out: given.work });
  const { signal } = given;
  throwIfAborted(signal);
  const announce = announcerOf(given);
  try {
    await using checkpoint = await Checkpoint.open(given.model, { signal });
    const devices = openDevices(given.device, deviceOptions(given));
    const precision = choosePrecision(given.precision, checkpoint, ...devices);
    await using stream = devices[0]!.stream({ signal });
    const dense = DecoderModel.open(checkpoint, stream);
    checkWidths(checkpoint, dense, parsed.parsed.pattern);
    await makeFolder(dirname(resolve(given.work)));
    await checkOutput(checkpoint.folder, given.work, true);
    announce({
      type: 'start',
      model: given.model,
      work: given.work,
      pattern: describePattern(parsed.parsed.pattern),
      objective: parsed.objective,
      blocks: dense.config.layers,
    });
    const calibration =
      given.calibration && (await loadCalibration(given.model, dense.config, given.calibration, { signal }));
    const windows = await loadSearchWindows(dense.config, given, calibration, parsed.windows);
    const { windows: counts, ...evaluated } = windows.described;
    announce({ type: 'evaluation', windows: counts[0] + counts[1], ...evaluated });
    const fingerprint = await fingerprintOf({
      checkpoint,
      devices,
      parsed: parsed.parsed,
      reported: reportedOptions(options, parsed.parsed, precision),
      calibration: calibration && calibrationKey(calibration, given.calibration!),
      signal,
    });
    const { objective } = parsed;
    await using state = await SearchState.open(
      given.work,
      { ...fingerprint, objective, evaluation: [...counts, evaluated.length, evaluated.hash] },
      given.restart ?? false,
    );
    const search = new Search({
      given,
      parsed,
      devices,
      precision,
      stream,
      dense,
      calibration,
      windows,
      state,
      announce,
      began,
    });
    return await search.run();
  } catch (error) {
    const stopped = signal?.aborted && !(error instanceof AlpsError && error.code === 'ABORTED');
    const failure = stopped ? aborted(signal) : error;
    const facts = { model: given.model, code: failure instanceof AlpsError ? failure.code : 'UNKNOWN' };
    if (facts.code === 'ABORTED') given.logger?.info(facts, `searching an allocation for ${given.model} was aborted`);
    else given.logger?.error({ ...facts, err: failure }, `searching an allocation for ${given.model} failed`);
    throw failure;
  }
}

/** What tells events to the listener and the logger; those of {@link prune} reach the logger from there. */
function announcerOf({ model, onEvent, logger }: AllocationSearchOptions) {
  return (event: AllocationSearchEvent) => {
    onEvent?.(event);
    if (event.type === 'prune') return;
    logger?.[event.type === 'generate' ? 'debug' : 'info'](
      { model, ...event },
      `searching an allocation for ${model}: ${event.type}`,
    );
  };
}
