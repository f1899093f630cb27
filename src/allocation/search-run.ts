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
  AllocationSearch,
  AllocationSearchEvent,
  AllocationSearchOptions,
  ParsedSearch,
} from './search-options.js';
import type { SearchState } from './search-state.js';
import { type SearchWindows, WindowLoss } from './search-windows.js';
import { unitLosses } from './sensitivity.js';
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
    if (record.baseLoss !== undefined)
      announce({ type: 'resume', blocks: record.blocks.length, candidates: record.candidates.length - 1 });
    else await this.#measureBase();
    if (record.blocks.length < this.#blocks && !(await this.#measureUnits())) return this.#end('time');
    const measured = record.candidates.map(({ gain }) => `candidate-${gain}`);
    await state.removeModels((name) => name.startsWith('candidate') && !measured.includes(name));
    const logs = logSensitivities(this.#sensitivities());
    // Without a unit that loses more than others each candidate is the base.
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

  /** The base, and its loss on both sets of windows. */
  async #measureBase(): Promise<void> {
    const { windows, state, announce } = this.#parts;
    const folder = await this.#pruned('base', this.#pattern);
    const baseLoss = await this.#lossOf(folder, windows.sensitivity);
    const loss = await this.#lossOf(folder, windows.choice);
    state.record.baseLoss = baseLoss;
    state.record.candidates = [{ gain: 0, loss }];
    await state.save();
    announce({ type: 'base', loss: baseLoss });
    announce({ type: 'candidate', gain: 0, loss });
  }

  /** Losses of the blocks that are not measured yet. @returns false when the time is up before the last */
  async #measureUnits(): Promise<boolean> {
    if (this.#isTimeUp()) return false;
    const { given, stream, windows, state, announce } = this.#parts;
    const { signal } = given;
    const { blocks: measured, baseLoss } = state.record;
    const folders = [await this.#pruned('base', this.#pattern), await this.#pruned('next', nextLevel(this.#pattern))];
    if (this.#isTimeUp()) return false;
    await using baseFiles = await Checkpoint.open(folders[0]!, { signal });
    await using nextFiles = await Checkpoint.open(folders[1]!, { signal });
    const [base, next] = [DecoderModel.open(baseFiles, stream), DecoderModel.open(nextFiles, stream)];
    using loss = await this.#windowLoss(windows.sensitivity);
    for await (const losses of unitLosses(base, next, loss, measured.length)) {
      measured.push(losses);
      await state.save();
      const lossIncrease = losses.map((value) => value - baseLoss!);
      announce({ type: 'block', block: measured.length - 1, blocks: this.#blocks, lossIncrease });
      if (measured.length < this.#blocks && this.#isTimeUp()) return false;
    }
    return true;
  }

  async #tryGain(gain: number): Promise<void> {
    const { windows, state, announce } = this.#parts;
    const allocation = this.#sparsities(gain);
    const loss = this.#isBase(allocation)
      ? state.record.candidates[0]!.loss
      : await this.#lossOf(await this.#pruned('candidate', this.#pattern, { gain, allocation }), windows.choice);
    state.record.candidates.push({ gain, loss });
    await state.save();
    announce({ type: 'candidate', gain, loss });
    await state.removeModels(() => false);
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
    const { baseLoss, blocks } = this.#parts.state.record;
    return blocks.flat().map((loss, i) => {
      const { block, stage, weights } = this.#units[i]!;
      const lossIncrease = loss - baseLoss!;
      return { block, stage, weights, lossIncrease, sensitivity: lossIncrease / weights };
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

  #windowLoss(windows: SearchWindows['choice']): Promise<WindowLoss> {
    const { parsed, dense } = this.#parts;
    return WindowLoss.create(windows, parsed.objective === 'kl' ? dense : undefined);
  }

  async #lossOf(folder: string, windows: SearchWindows['choice']): Promise<number> {
    const { given, stream } = this.#parts;
    await using checkpoint = await Checkpoint.open(folder, { signal: given.signal });
    using loss = await this.#windowLoss(windows);
    return await loss.of(DecoderModel.open(checkpoint, stream));
  }

  #end(ended: 'done' | 'time'): AllocationSearch {
    const { state, windows, parsed, announce, began } = this.#parts;
    const { baseLoss, candidates } = state.record;
    const best = candidates.reduce((a, b) => (b.loss < a.loss ? b : a));
    announce({ type: 'done', ended, ...best, milliseconds: performance.now() - began });
    return {
      layers: this.#sparsities(best.gain),
      gain: best.gain,
      ended,
      pattern: this.#pattern,
      objective: parsed.objective,
      baseLoss: baseLoss!,
      candidates,
      sensitivities: this.#sensitivities(),
      evaluation: windows.described,
    };
  }
}
