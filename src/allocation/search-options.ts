import type { CalibrationOptions } from '../calibration/calibration.js';
import { mostSeed } from '../calibration/windows.js';
import { AlpsError, folderPath, invalidArgument, type Names, optionsObject } from '../errors.js';
import { type PruneEvent, type PruneOptions, parsePruneOptions, pruneNames } from '../prune.js';
import { integerFrom, numberIn, oneOf, type ParsedPruningOptions } from '../pruning/options.js';
import type { Pattern } from '../pruning/pattern.js';
import type { LayerSparsities } from './allocation.js';
import type { UnitSensitivity } from './units.js';

/** `crossEntropy`: of the text's own next tokens. `kl`: KL(dense ‖ pruned) of the next token's distribution. Nats, mean over the tokens. */
export type SearchObjective = 'crossEntropy' | 'kl';

/** What a search measures sensitivities and losses on. */
export interface SearchEvaluation
  extends Pick<CalibrationOptions, 'text' | 'tokenIds' | 'shares' | 'field' | 'length' | 'seed'> {
  /**
   * Windows for the sensitivities; as many others choose among the candidates. Default 2, or what a mix needs for one of each text. `text`, `tokenIds`, `shares` and `field` are the
   * calibration's where neither text nor ids are given, `length` is the calibration's, `seed` is one above the calibration's. Of token ids
   * the first windows are taken.
   */
  windows?: number;
}

export interface AllocationSearchOptions
  extends Omit<PruneOptions, 'out' | 'allocation' | 'overwrite' | 'resume' | 'restart' | 'onEvent'> {
  /**
   * Folder for what the search does: models in the making, and `search.json`, with which another call goes on. It is made where it is
   * missing. In the end only `search.json` is left in it.
   */
  work: string;
  evaluation?: SearchEvaluation;
  /** What chooses among the candidates. Default `crossEntropy`. */
  objective?: SearchObjective;
  /**
   * Milliseconds after which nothing new is begun: no block's sensitivities, no candidate. The base is always made. Another call with the
   * same `work` goes on. Default: none.
   */
  timeLimit?: number;
  /** Drop what an earlier search left in `work`. Default false. */
  restart?: boolean;
  /** Called for each step; must not throw. */
  onEvent?: (event: AllocationSearchEvent) => void;
}

const searchEvaluationNames: Names<SearchEvaluation> = {
  text: true,
  tokenIds: true,
  shares: true,
  field: true,
  length: true,
  seed: true,
  windows: true,
};

const { out: _out, allocation: _allocation, overwrite: _overwrite, resume: _resume, ...sharedNames } = pruneNames;
const searchNames: Names<AllocationSearchOptions> = {
  ...sharedNames,
  work: true,
  evaluation: true,
  objective: true,
  timeLimit: true,
};

/** A candidate: the model pruned by the sparsities that a gain gives. */
export interface AllocationCandidate {
  /** 0: the base, all layers alike. */
  gain: number;
  /** On the windows that choose, nats a token. */
  loss: number;
}

/** What happens during {@link searchAllocation}, as it happens. */
export type AllocationSearchEvent =
  | { type: 'start'; model: string; work: string; pattern: string; objective: SearchObjective; blocks: number }
  /** With `calibration.ownWindows`: the share of them that the model has written. */
  | { type: 'generate'; share: number }
  | { type: 'evaluation'; windows: number; length: number; hash: string; note?: string }
  /** What an earlier call with this work folder finished. */
  | { type: 'resume'; blocks: number; candidates: number }
  /** A model is pruned: uniformly at the target (`base`) or at the next level (`next`), or by a candidate's sparsities. */
  | { type: 'prune'; what: 'base' | 'next' | 'candidate'; gain?: number; event: PruneEvent }
  /** A block's units were measured ({@link UnitSensitivity}). */
  | { type: 'block'; block: number; blocks: number; divergence: number[] }
  | ({ type: 'candidate' } & AllocationCandidate)
  | { type: 'done'; ended: 'done' | 'time'; gain: number; loss: number; milliseconds: number };

/** What {@link searchAllocation} found. As JSON it is a file for `alps prune --allocation`. */
export interface AllocationSearch {
  /** A sparsity for each layer, for `prune({ allocation })`; all alike where nothing better than that was found. */
  layers: LayerSparsities;
  /** Of the best candidate; 0: all layers alike. */
  gain: number;
  /** `time`: the time limit ended it, and another call goes on. */
  ended: 'done' | 'time';
  pattern: Pattern;
  objective: SearchObjective;
  /** The base and what was tried, with losses on the windows that choose. */
  candidates: AllocationCandidate[];
  /** Those measured by now, in the order of the dataflow. */
  sensitivities: UnitSensitivity[];
  /** `windows`: for the sensitivities, and for the choice. `hash`: of all their tokens. */
  evaluation: { windows: [number, number]; length: number; hash: string; note?: string };
}

export interface ParsedSearch {
  parsed: ParsedPruningOptions;
  objective: SearchObjective;
  windows: number;
  /** Milliseconds. */
  timeLimit: number;
}

/** Checks all options that can be checked without reading the model. */
export function parseSearchOptions(given: AllocationSearchOptions): ParsedSearch {
  optionsObject(given, searchNames);
  const { work, evaluation = {}, objective = 'crossEntropy', timeLimit = Infinity, ...pruning } = given;
  const { model, calibration } = pruning;
  for (const [name, path] of Object.entries({ model, work })) folderPath(name, path);
  optionsObject(evaluation, searchEvaluationNames, 'evaluation');
  const { length, seed, text, tokenIds, shares, field } = evaluation;
  // Each text of a mix gives one at least.
  const texts = (text === undefined && tokenIds === undefined ? calibration?.shares : shares)?.length ?? 1;
  const { windows = Math.max(2, Math.ceil(texts / 2)) } = evaluation;
  integerFrom('evaluation.windows', windows, 1);
  if (length !== undefined) integerFrom('evaluation.length', length, 2);
  if (seed !== undefined) integerFrom('evaluation.seed', seed, 0, mostSeed);
  if (text !== undefined && tokenIds !== undefined)
    throw new AlpsError('INVALID_ARGUMENT', 'Expected at most one of evaluation.text and evaluation.tokenIds');
  for (const [name, value] of Object.entries({ shares, field }))
    if (value !== undefined && text === undefined)
      throw invalidArgument(`evaluation.${name}`, 'none without evaluation.text', value);
  oneOf('objective', ['crossEntropy', 'kl'], objective);
  numberIn('timeLimit', timeLimit, 0, Infinity);
  const parsed = parsePruneOptions({ ...pruning, onEvent: undefined, out: work, resume: true });
  if (calibration === undefined && text === undefined && tokenIds === undefined)
    throw invalidArgument('evaluation', 'text or token ids, as there is no calibration', given.evaluation);
  return { parsed, objective, windows, timeLimit };
}
