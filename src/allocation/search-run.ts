import { eachWindow, type TokenWindows } from '../calibration/windows.js';
import { Checkpoint } from '../checkpoint/folder.js';
import type { Device } from '../device/device.js';
import type { Stream } from '../device/stream.js';
import { throwIfAborted } from '../errors.js';
import { withOwnWindows } from '../generation/own-windows.js';
import { DecoderModel, type Precision } from '../model/decoder.js';
import { type PruneOptions, prune } from '../prune.js';
import { isRowwise } from '../pruning/options.js';
import { isNm, type Pattern } from '../pruning/pattern.js';
import { allocate, type LayerSparsities } from './allocation.js';
import type {
  AllocationCandidate,
  AllocationSearch,
  AllocationSearchEvent,
  AllocationSearchOptions,
  ParsedSearch,
} from './search-options.js';
import type { SearchState } from './search-state.js';
import { lossOn, type SearchWindows } from './search-windows.js';
import { unitDivergences } from './sensitivity.js';
import { logSensitivities, nextGain, sparsitiesAt, type Unit, type UnitSensitivity, unitsOf } from './units.js';

/** A little sparser than the target. */
function nextLevel(pattern: Pattern): Pattern {
  if (isNm(pattern)) return { ...pattern, keep: Math.max(0, pattern.keep - 1) };
  return { sparsity: pattern.sparsity + Math.min(0.05, (1 - pattern.sparsity) / 4) };
}

export interface SearchParts {
  given: AllocationSearchOptions;
  parsed: ParsedSearch;
  devices: readonly Device[];
  /** Of the pruning; losses are in float32. */
  precision: Precision;
  stream: Stream;
  dense: DecoderModel;
  /** Without what the model writes itself. */
  calibration: TokenWindows | undefined;
  windows: SearchWindows;
  state: SearchState;
  announce: (event: AllocationSearchEvent) => void;
  began: number;
}

/** One call's way through a search: what the record has is not done again. */
export class Search {
  readonly #parts: SearchParts;
  readonly #units: Unit[];
  readonly #blocks: number;
  readonly #pattern: Pattern;

  constructor(parts: SearchParts) {
    this.#parts = parts;
    this.#units = unitsOf(parts.dense);
    this.#blocks = parts.dense.config.layers;
    this.#pattern = parts.parsed.parsed.pattern;
  }

  async run(): Promise<AllocationSearch> {
    const { state, announce } = this.#parts;
    const { record } = state;
    const { divergences, candidates } = record;
    if (candidates.length > 0)
      announce({ type: 'resume', blocks: divergences.length, candidates: candidates.length - 1 });
    else await this.#tryGain(0);
    if (divergences.length < this.#blocks && !(await this.#measureUnits())) return this.#end('time');
    const measured = record.candidates.map(({ gain }) => `candidate-${gain}`);
    await state.removeModels((name) => name.startsWith('candidate') && !measured.includes(name));
    const logs = logSensitivities(this.#sensitivities());
    // Where no unit is more sensitive than another each candidate is the base.
    while (logs.some((log) => log !== 0)) {
      const gain = nextGain(new Map(record.candidates.map(({ gain, loss }) => [gain, loss])), isNm(this.#pattern));
      if (gain === undefined) break;
      if (this.#isTimeUp()) return this.#end('time');
      await this.#tryGain(gain);
    }
    return this.#end('done');
  }

  #isTimeUp(): boolean {
    const { began, parsed } = this.#parts;
    throwIfAborted(this.#parts.given.signal);
    return performance.now() - began >= parsed.timeLimit;
  }

  /** Divergences of the blocks that are not measured yet. @returns false when the time is up before the last */
  async #measureUnits(): Promise<boolean> {
    if (this.#isTimeUp()) return false;
    const { given, stream, windows, state, announce } = this.#parts;
    const { signal } = given;
    const measured = state.record.divergences;
    const folders = [await this.#pruned('base', this.#pattern), await this.#pruned('next', nextLevel(this.#pattern))];
    if (this.#isTimeUp()) return false;
    await using baseFiles = await Checkpoint.open(folders[0]!, { signal });
    await using nextFiles = await Checkpoint.open(folders[1]!, { signal });
    const [base, next] = [DecoderModel.open(baseFiles, stream), DecoderModel.open(nextFiles, stream)];
    for await (const divergence of unitDivergences(base, next, windows.sensitivity, measured.length)) {
      measured.push(divergence);
      await state.save();
      announce({ type: 'block', block: measured.length - 1, blocks: this.#blocks, divergence });
      if (measured.length < this.#blocks && this.#isTimeUp()) return false;
    }
    return true;
  }

  /** The model pruned by what a gain gives, and its loss. The base, gain 0, is kept for the sensitivities. */
  async #tryGain(gain: number): Promise<void> {
    const { state, announce } = this.#parts;
    const { candidates } = state.record;
    const measured =
      gain === 0
        ? await this.#lossOf(await this.#pruned('base', this.#pattern))
        : await this.#candidateLoss(gain, this.#sparsities(gain));
    const candidate = { gain, ...measured };
    candidates.push(candidate);
    await state.save();
    announce({ type: 'candidate', ...candidate });
    if (gain !== 0) await state.removeModels(() => false);
  }

  async #candidateLoss(gain: number, allocation: LayerSparsities): Promise<Omit<AllocationCandidate, 'gain'>> {
    if (this.#isBase(allocation)) {
      const { gain: _, ...base } = this.#parts.state.record.candidates[0]!;
      return base;
    }
    return await this.#lossOf(await this.#pruned('candidate', this.#pattern, { gain, allocation }));
  }

  /** Whether an allocation leaves each layer what it has when all are alike. */
  #isBase(allocation: LayerSparsities): boolean {
    const { dense, parsed } = this.#parts;
    const budgetsOf = (wanted: LayerSparsities) =>
      allocate(dense.layerSizes(), this.#pattern, wanted, isRowwise(parsed.parsed));
    const alike = budgetsOf(this.#sparsities(0));
    return [...budgetsOf(allocation)].every(([name, { keep }]) => keep === alike.get(name)!.keep);
  }

  #sensitivities(): UnitSensitivity[] {
    const { divergences } = this.#parts.state.record;
    return divergences.flat().map((divergence, i) => {
      const unit = this.#units[i]!;
      return { ...unit, divergence, sensitivity: divergence / unit.weights };
    });
  }

  #sparsities(gain: number): LayerSparsities {
    const pattern = this.#pattern;
    const sparsity = isNm(pattern) ? 1 - pattern.keep / pattern.of : pattern.sparsity;
    // Gain 0 is asked for before all is measured as well.
    const logs = gain === 0 ? this.#units.map(() => 0) : logSensitivities(this.#sensitivities());
    return sparsitiesAt(gain, sparsity, this.#units, logs, isNm(pattern));
  }

  /** The folder of a model of this search, pruned where it is not there yet. */
  async #pruned(
    what: 'base' | 'next' | 'candidate',
    pattern: Pattern,
    candidate?: { gain: number; allocation: LayerSparsities },
  ): Promise<string> {
    const { given, state, devices, precision, announce } = this.#parts;
    const { gain, allocation } = candidate ?? {};
    const { path, isThere } = await state.model(gain === undefined ? what : `${what}-${gain}`);
    if (isThere) return path;
    const calibration = await this.#calibration();
    const { work: _, evaluation: _e, objective: _o, timeLimit: _t, restart: _r, ...pruning } = given;
    const asked = isNm(pattern) ? { pattern, sparsity: undefined } : { pattern: undefined, ...pattern };
    const options: PruneOptions = {
      ...pruning,
      ...asked,
      out: path,
      allocation,
      calibration: calibration && { tokenIds: eachWindow(calibration) },
      device: devices,
      precision,
      overwrite: false,
      resume: true,
      onEvent: (event) => announce({ type: 'prune', what, ...(gain === undefined ? {} : { gain }), event }),
    };
    await prune(options);
    return path;
  }

  /** The calibration's windows; what of them the model writes itself is kept in the record. */
  async #calibration(): Promise<TokenWindows | undefined> {
    const { given, calibration, dense, stream, precision, state, announce } = this.#parts;
    if (!calibration) return undefined;
    const model = DecoderModel.open(dense.checkpoint, stream, precision);
    return await withOwnWindows(model, calibration, given.calibration!, {
      signal: given.signal,
      onProgress: (share) => announce({ type: 'generate', share }),
      found: state.record.ownWindows,
      keep: async (ids) => {
        state.record.ownWindows = ids;
        await state.save();
      },
    });
  }

  /** On the windows that choose. */
  async #lossOf(folder: string): Promise<Omit<AllocationCandidate, 'gain'>> {
    const { given, parsed, dense, stream, windows } = this.#parts;
    await using checkpoint = await Checkpoint.open(folder, { signal: given.signal });
    const model = DecoderModel.open(checkpoint, stream);
    return await lossOn(windows.choice, model, parsed.objective === 'kl' ? dense : undefined);
  }

  #end(ended: 'done' | 'time'): AllocationSearch {
    const { state, windows, parsed, announce, began } = this.#parts;
    const { candidates } = state.record;
    const best = candidates.reduce((a, b) => (b.loss < a.loss ? b : a));
    announce({ type: 'done', ended, gain: best.gain, loss: best.loss, milliseconds: performance.now() - began });
    return {
      layers: this.#sparsities(best.gain),
      gain: best.gain,
      ended,
      pattern: this.#pattern,
      objective: parsed.objective,
      candidates,
      sensitivities: this.#sensitivities(),
      evaluation: windows.described,
    };
  }
}
