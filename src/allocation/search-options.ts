import type { CalibrationOptions } from '../calibration/calibration.js';
import { textInside } from '../calibration/text.js';
import { mostSeed } from '../calibration/windows.js';
import { AlpsError, folderPath, invalidArgument, type Names, optionalFunction, optionsObject } from '../errors.js';
import { type PruneEvent, type PruneOptions, parsePruneOptions, pruneNames } from '../prune.js';
import { integerFrom, numberIn, oneOf, type ParsedPruningOptions } from '../pruning/options.js';
import type { Pattern } from '../pruning/pattern.js';
import { listInside, optionsInside } from '../snapshot.js';
import type { LayerSparsities } from './allocation.js';
import type { UnitSensitivity } from './units.js';

/**
 * The loss that chooses among candidates, in nats, mean over the tokens. `crossEntropy`: of the text's own next tokens. `kl`: KL(dense ‖ pruned) of
 * the next token's distribution.
 */
export type SearchObjective = 'crossEntropy' | 'kl';

/** Text or token ids that a search measures sensitivities and losses on. */
export interface SearchEvaluation
  extends Pick<CalibrationOptions, 'text' | 'tokenIds' | 'shares' | 'field' | 'length' | 'seed'> {
  /**
   * Number of windows for the sensitivities; as many others choose among the candidates. Default 2, or more if a mix of texts needs them so that each
   * text gives one. More of them make the choice more reliable; compare the candidates' `standardError`. If neither `text` nor `tokenIds` is given,
   * these, `shares` and `field` are the calibration's. `length` defaults to the calibration's, `seed` to the calibration's plus 1. Of token ids the
   * first windows are taken; of the calibration's own token ids those that it leaves (see `calibration.windows`). If it leaves fewer than two, or of a
   * text of a mix none, the calibration's windows are used again, and the result's `evaluation.note` says so.
   */
  windows?: number;
}

/** Options of {@link searchAllocation}: how the model is pruned, as for {@link prune}, and how the search works. */
export interface AllocationSearchOptions
  extends Omit<PruneOptions, 'out' | 'allocation' | 'overwrite' | 'resume' | 'restart' | 'onEvent'> {
  /**
   * Path of a folder for the models of the search and for `search.json`, from which another call resumes. It is created if needed. At the end only
   * `search.json` is left in it.
   */
  work: string;
  /** Default: the calibration's text, with windows by another seed, or token ids behind those of the calibration. Required without `calibration`. */
  evaluation?: SearchEvaluation;
  /** The loss that chooses among the candidates. Default `crossEntropy`. */
  objective?: SearchObjective;
  /**
   * Milliseconds after which the search starts no further step: no block's sensitivities, no candidate. The uniform model is always made. Another
   * call with the same `work` resumes the search. Default: no limit.
   */
  timeLimit?: number;
  /** Discard what an earlier search left in `work` and start over. Default false. */
  restart?: boolean;
  /** Called for each step; must not throw. */
  onEvent?: (event: AllocationSearchEvent) => void;
}

const searchEvaluationNames: Names<SearchEvaluation> = {
  text: textInside,
  tokenIds: listInside(),
  shares: listInside(),
  field: true,
  length: true,
  seed: true,
  windows: true,
};

const { out: _out, allocation: _allocation, overwrite: _overwrite, resume: _resume, ...sharedNames } = pruneNames;
export const searchNames: Names<AllocationSearchOptions> = {
  ...sharedNames,
  work: true,
  evaluation: optionsInside('evaluation', searchEvaluationNames),
  objective: true,
  timeLimit: true,
};

/** A candidate: the model pruned to the sparsities of one gain, the strength with which sparsities follow the sensitivities. */
export interface AllocationCandidate {
  /** 0: the uniform model. */
  gain: number;
  /** On the windows that choose, in nats per token. */
  loss: number;
  /**
   * Standard error of `loss`, from how much it differs between these windows; missing if there is only one. All candidates are measured on the same
   * windows, so a difference of losses is more certain than this.
   */
  standardError?: number;
}

/** The steps of {@link searchAllocation}, reported as they happen. */
export type AllocationSearchEvent =
  | { type: 'start'; model: string; work: string; pattern: string; objective: SearchObjective; blocks: number }
  /** With `calibration.ownWindows`: the share of their tokens that the model has written, from 0 to 1. */
  | { type: 'generate'; share: number }
  | { type: 'evaluation'; windows: number; length: number; hash: string; note?: string }
  /** Number of blocks and candidates that an earlier call with this work folder finished. */
  | { type: 'resume'; blocks: number; candidates: number }
  /** A step of pruning a model: uniformly at the target (`base`), uniformly a little sparser (`next`), or to a candidate's sparsities. */
  | { type: 'prune'; what: 'base' | 'next' | 'candidate'; gain?: number; event: PruneEvent }
  /** A block's units were measured; see {@link UnitSensitivity}. */
  | { type: 'block'; block: number; blocks: number; divergence: number[] }
  | ({ type: 'candidate' } & AllocationCandidate)
  | { type: 'done'; ended: 'done' | 'time'; gain: number; loss: number; milliseconds: number };

/** Result of {@link searchAllocation}. As JSON it is a file for `alps prune --allocation`. */
export interface AllocationSearch {
  /** A sparsity for each layer, for `prune({ allocation })`; all the same if no candidate was better than the uniform model. */
  layers: LayerSparsities;
  /** Gain of the best candidate; 0: the uniform model. */
  gain: number;
  /** `time`: the time limit ended the search, and another call resumes it. */
  ended: 'done' | 'time';
  pattern: Pattern;
  objective: SearchObjective;
  /** The uniform model and the candidates that were tried, with their losses. */
  candidates: AllocationCandidate[];
  /** Of the units measured so far, in the order in which a token passes through them. */
  sensitivities: UnitSensitivity[];
  /**
   * `windows`: number for the sensitivities, and for the choice. `length`: tokens per window. `hash`: SHA-256 of all their tokens. `note`: how they
   * differ from the request, such as that the calibration uses them as well.
   */
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
  optionalFunction('onEvent', given.onEvent);
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
