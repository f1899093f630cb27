import { loadCalibration } from '../calibration/calibration.js';
import { mostSeed, type TokenWindows } from '../calibration/windows.js';
import { Scope } from '../device/tensor.js';
import { AlpsError } from '../errors.js';
import { runBehind, tokenDivergences } from '../evaluation/divergence.js';
import { finiteLoss, tokenLosses } from '../evaluation/perplexity.js';
import { Activations, type Windows } from '../model/block-run.js';
import type { DecoderConfig } from '../model/config.js';
import type { DecoderModel } from '../model/decoder.js';
import type { AllocationCandidate, AllocationSearch, AllocationSearchOptions } from './search-options.js';

/** The tokens of a search: windows that give the sensitivities, and others that choose among the candidates. */
export interface SearchWindows {
  sensitivity: Windows;
  choice: Windows;
  described: AllocationSearch['evaluation'];
}

/**
 * Draws the windows; those for either purpose alternate in the order of the text, or of a mix's texts. Of token ids that are the calibration as well
 * those are taken that it leaves, if there are enough.
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
  // Token ids have a length of their own.
  const length = evaluation.length ?? (evaluation.tokenIds ? undefined : calibration?.length);
  const loaded = await loadCalibration(
    model,
    config,
    {
      ...(own ? evaluation : from),
      windows: 2 * windows,
      ...(length === undefined ? {} : { length }),
      seed: evaluation.seed ?? ((from?.seed ?? 0) + 1) % (mostSeed + 1),
    },
    { signal, ...(own ? {} : { behind: { ...from, least: 2 } }) },
  );
  const { hash, note, windows: taken } = loaded;
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

/**
 * The loss of a model on windows, in nats a token, and its standard error from how it differs between them.
 * @param dense for KL(dense ‖ model) in place of the cross-entropy
 */
export async function lossOn(
  windows: Windows,
  model: DecoderModel,
  dense: DecoderModel | undefined,
): Promise<Pick<AllocationCandidate, 'loss' | 'standardError'>> {
  using scope = new Scope();
  const reference = dense && (await runBehind(dense, windows));
  if (reference) scope.hold(reference.residual);
  const activations = scope.hold(await Activations.create(model, windows));
  await activations.runAll();
  const losses = reference
    ? (await tokenDivergences(reference, model, [activations.residual]))[0]!
    : await tokenLosses(activations, windows);
  const { windows: count, length } = windows;
  const scored = reference ? length : length - 1; // the last token of a window has none behind it
  let sum = 0;
  const means = Array.from({ length: count }, (_, i) => {
    let own = 0;
    for (const loss of losses.subarray(i * length, i * length + scored)) {
      sum += loss;
      own += loss;
    }
    return own / scored;
  });
  const loss = await finiteLoss(model, sum / (count * scored));
  const squares = means.reduce((total, mean) => total + (mean - loss) ** 2, 0);
  return { loss, ...(count > 1 ? { standardError: Math.sqrt(squares / (count - 1) / count) } : {}) };
}
