import { loadCalibration } from '../calibration/calibration.js';
import { mostSeed, type TokenWindows } from '../calibration/windows.js';
import { Scope } from '../device/tensor.js';
import { AlpsError } from '../errors.js';
import { meanDivergences, runBehind } from '../evaluation/divergence.js';
import { meanTokenLoss } from '../evaluation/perplexity.js';
import { Activations, type Windows } from '../model/block-run.js';
import type { DecoderConfig } from '../model/config.js';
import type { DecoderModel } from '../model/decoder.js';
import type { AllocationSearch, AllocationSearchOptions } from './search-options.js';

/** The tokens of a search: windows that give the sensitivities, and others that choose among the candidates. */
export interface SearchWindows {
  sensitivity: Windows;
  choice: Windows;
  described: AllocationSearch['evaluation'];
}

/**
 * Draws the windows; those for either purpose alternate in the order of the text, or of a mix's texts.
 * @param calibration the calibration's tokens
 * @param windows for either purpose
 * @throws AlpsError `INVALID_TEXT` when there are fewer than two windows
 */
export async function loadSearchWindows(
  config: DecoderConfig,
  options: AllocationSearchOptions,
  calibration: TokenWindows | undefined,
  windows: number,
): Promise<SearchWindows> {
  const { model, signal, evaluation = {} } = options;
  const own = evaluation.text !== undefined || evaluation.tokenIds !== undefined;
  const from = options.calibration;
  const length = evaluation.length ?? calibration?.length;
  const loaded = await loadCalibration(
    model,
    config,
    {
      ...(own ? evaluation : from),
      windows: 2 * windows,
      ...(length === undefined ? {} : { length }),
      seed: evaluation.seed ?? ((from?.seed ?? 0) + 1) % (mostSeed + 1),
    },
    { signal },
  );
  const { hash, note } = loaded;
  const taken = Math.min(loaded.windows, 2 * windows);
  if (taken < 2)
    throw new AlpsError('INVALID_TEXT', 'The text gives one window for the evaluation; at least two are needed');
  const [sensitivity, choice] = [0, 1].map((first) => everySecond(loaded, first, taken)) as [Windows, Windows];
  return {
    sensitivity,
    choice,
    described: {
      windows: [sensitivity.windows, choice.windows],
      length: loaded.length,
      hash,
      ...(note ? { note } : {}),
    },
  };
}

function everySecond({ tokens, length }: Windows, first: number, end: number): Windows {
  const windows = Math.ceil((end - first) / 2);
  const chosen = new Uint32Array(windows * length);
  for (let i = 0; i < windows; i++)
    chosen.set(tokens.subarray((first + 2 * i) * length, (first + 2 * i + 1) * length), i * length);
  return { tokens: chosen, windows, length };
}

/** The loss of a model on windows, in nats a token. @param dense for KL(dense ‖ model) in place of the cross-entropy */
export async function lossOn(windows: Windows, model: DecoderModel, dense: DecoderModel | undefined): Promise<number> {
  using scope = new Scope();
  const reference = dense && (await runBehind(dense, windows));
  if (reference) scope.hold(reference.residual);
  const activations = scope.hold(await Activations.create(model, windows));
  await activations.runAll();
  if (!reference) return await meanTokenLoss(activations, windows);
  const [divergence] = await meanDivergences(reference, model, [activations.residual]);
  return divergence!;
}
