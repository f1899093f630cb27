import { isObject } from '../checkpoint/json.js';
import { AlpsError, describe, invalidArgument, type Names } from '../errors.js';
import type { DecoderConfig } from '../model/config.js';
import { loadTokenizer } from '../model/tokenizer.js';
import { integerFrom } from '../pruning/options.js';
import { listInside } from '../snapshot.js';
import { drawPlaces, windowsAt } from './places.js';
import { joinedBy, type PerplexityProtocol, protocolNames, protocols } from './protocols.js';
import { joinedText, type TextOptions, type TextSource, textInside } from './text.js';
import { readPieces } from './text-file.js';
import {
  consecutiveWindows,
  firstWindows,
  joinWindows,
  lengthOfWindows,
  mostSeed,
  sampleWindows,
  type TokenWindows,
  windowsOfIds,
} from './windows.js';

/** Text or token ids that a model reads while it is pruned. Give exactly one of `text` and `tokenIds`. */
export interface CalibrationOptions {
  /**
   * Text files (.txt, .jsonl, each also .gz, .parquet), documents, or one `.json` file with token ids: a list of windows, or an object with such a
   * list as `calibration`.
   */
  text?: TextSource;
  /** Windows of token ids, all of the same length, at least 2. All are used, or the first `windows`. */
  tokenIds?: readonly (readonly number[] | Uint32Array)[];
  /**
   * Relative number of windows to take from each entry of `text`, such as [3, 1]. Each entry is then a separate text, or a `.json` file with token ids
   * (see {@link generateText}), of which the first windows are taken. Default: all entries are one text.
   */
  shares?: readonly number[];
  /** Text field of .jsonl and .parquet files. Default `text`. */
  field?: string;
  /** Number of token windows to draw from the text. Default 128. Of token ids the first ones are taken; default: all of them. */
  windows?: number;
  /**
   * Tokens per window, at least 2. Default 2048; at most the model's maximum and the length of the text. Token ids keep the length that they have, and
   * `note` of the report says so if it is another one.
   */
  length?: number;
  /** An integer from 0 to 2³² − 1 that selects the windows and seeds `ownWindows`. Default 0. The same text and seed give the same windows. */
  seed?: number;
  /**
   * Windows are drawn from about this many tokens at the start of the text. Default: the first 67 million characters of files and lists of documents;
   * of an iterable that can be read only once, 16 × windows × length tokens.
   */
  maxTokens?: number;
  /**
   * Number of extra windows that the dense model writes before it is pruned, to preserve what it knows beyond the text (docs/quality.md). Each continues
   * the first eighth of another window, taken evenly from all of them. The device must hold the whole model meanwhile. Default 0.
   */
  ownWindows?: number;
}

export const calibrationNames: Names<CalibrationOptions> = {
  text: textInside,
  tokenIds: listInside(), // the windows themselves stay the caller's
  shares: listInside(),
  field: true,
  windows: true,
  length: true,
  seed: true,
  maxTokens: true,
  ownWindows: true,
};

/** Of usual text, about. */
const charactersOfToken = 4;

const mostEvaluationTokens = 1 << 27;

/** Of a file with token ids, which is parsed as a whole: some 40 million ids. */
const mostTokenFileCharacters = 1 << 28;

/** The calibration as reports show it. */
export interface CalibrationReport {
  /** All windows, including `ownWindows`. */
  windows: number;
  /** Windows that the model wrote. */
  ownWindows: number;
  /** Tokens per window. */
  length: number;
  /** `windows` × `length`. */
  tokens: number;
  seed: number;
  /** SHA-256 of the token ids. */
  hash: string;
  /** How the windows differ from the request, in words. */
  note?: string;
}

/** Of all windows, with those that the model wrote itself. */
export function calibrationReport(
  { windows, length, hash, note }: TokenWindows,
  { ownWindows = 0, seed = 0 }: CalibrationOptions,
): CalibrationReport {
  return { windows, ownWindows, length, tokens: windows * length, seed, hash, ...(note ? { note } : {}) };
}

/**
 * What can be said of calibration options without the model and the text.
 * @throws AlpsError `INVALID_ARGUMENT`, and `INVALID_TEXT` for windows of token ids that are no such lists
 */
export function checkCalibration(options: CalibrationOptions): void {
  const { text, tokenIds, windows = 128, length = 2, seed = 0, shares, maxTokens = 1, ownWindows = 0 } = options;
  if ((text === undefined) === (tokenIds === undefined)) {
    throw invalidArgument('calibration', 'exactly one of text and tokenIds', text === undefined ? 'none' : 'both');
  }
  if (tokenIds !== undefined) lengthOfWindows(tokenIds, 'tokenIds');
  integerFrom('windows', windows, 1);
  integerFrom('length', length, 2);
  integerFrom('seed', seed, 0, mostSeed);
  integerFrom('maxTokens', maxTokens, 1);
  integerFrom('calibration.ownWindows', ownWindows, 0);
  if (shares === undefined) return;
  const texts = listOf(text);
  if (!Array.isArray(shares) || shares.length !== texts.length)
    throw invalidArgument('shares', `a number for each of the ${texts.length} texts`, shares);
  for (const share of shares) {
    if (typeof share !== 'number' || !(share > 0 && share < Number.POSITIVE_INFINITY))
      throw invalidArgument('shares', 'numbers above 0', share);
  }
  if (windows < texts.length)
    throw invalidArgument('windows', `at least one for each of ${texts.length} texts`, windows);
}

function listOf(text: TextSource | undefined): readonly string[] {
  return typeof text === 'string' ? [text] : Array.isArray(text) ? text : [];
}

interface LoadingOptions {
  signal?: AbortSignal | undefined;
  /** Of the same source: of token ids those are taken that are behind the windows that these options take, where there are any. */
  behind?: Pick<CalibrationOptions, 'windows'> & { least?: number };
}

/** Windows of token ids: as many as are asked for, in the length that they have. */
function chosenWindows(
  ids: unknown,
  name: string,
  config: DecoderConfig,
  { windows, length }: CalibrationOptions,
  behind: LoadingOptions['behind'],
): TokenWindows {
  const all = checkedLength(windowsOfIds(ids, config.vocabulary, name), config);
  const { least } = behind ?? {};
  const chosen =
    windows === undefined
      ? all
      : firstWindows(all, windows, name, { behind: behind && (behind.windows ?? all.windows), least });
  if (length === undefined || length === all.length) return chosen;
  return withNote(chosen, `${name} has windows of ${all.length} tokens, not ${length}`);
}

/** The calibration windows of a model, but for `ownWindows`; see {@link CalibrationOptions}. */
export async function loadCalibration(
  folder: string,
  config: DecoderConfig,
  options: CalibrationOptions,
  { signal, behind }: LoadingOptions = {},
): Promise<TokenWindows> {
  checkCalibration(options);
  const { text, tokenIds, windows = 128, seed = 0, shares } = options;
  if (shares !== undefined) return loadMix(folder, config, { ...options, shares, windows, seed }, { signal, behind });
  const ids = tokenIds ?? (await readTokenFile(text!, 'calibration', signal));
  if (ids) return chosenWindows(ids, tokenIds ? 'tokenIds' : String(text), config, options, behind);
  const length = windowLength(options.length, config);
  const { maxTokens } = options;
  if (maxTokens !== undefined && maxTokens < length) {
    throw invalidArgument('maxTokens', `an integer of at least ${length}, one window,`, maxTokens);
  }
  const reading = { field: options.field, signal };
  const characters = maxTokens === undefined ? Number.POSITIVE_INFINITY : charactersOfToken * maxTokens;
  const places = await drawPlaces(text!, { ...reading, windows, length, characters, seed });
  const tokenizer = await loadTokenizer(folder, { vocabSize: config.vocabulary });
  const drawn =
    (places && (await windowsAt(tokenizer, text!, { ...reading, places, length }))) ??
    (await sampleWindows(tokenizer.encodeStream(joinedText(text!, reading), { signal }), {
      windows,
      length,
      seed,
      maxTokens: maxTokens ?? 16 * windows * length,
    }));
  return withCapNote(drawn, options.length, config);
}

/** Windows of each text in its share, one text behind the other. */
async function loadMix(
  folder: string,
  config: DecoderConfig,
  options: CalibrationOptions & { shares: readonly number[]; windows: number },
  { signal, behind }: LoadingOptions,
): Promise<TokenWindows> {
  const { text, shares, windows, maxTokens, ...rest } = options;
  const texts = listOf(text);
  const parts: TokenWindows[] = [];
  const before = behind && divideWindows(behind.windows ?? 128, shares);
  for (const [i, count] of divideWindows(windows, shares).entries()) {
    const limit = maxTokens === undefined ? {} : { maxTokens: Math.ceil((maxTokens * count) / windows) };
    const part = await loadCalibration(
      folder,
      config,
      { ...rest, ...limit, text: texts[i]!, windows: count },
      { signal, ...(before ? { behind: { windows: before[i]! } } : {}) },
    );
    parts.push(part);
  }
  const [{ length }] = parts as [TokenWindows];
  for (const [i, part] of parts.entries()) {
    if (part.length !== length)
      throw new AlpsError(
        'INVALID_TEXT',
        `Texts of a mix give windows of different lengths: ${length} tokens, and ${part.length} of text ${i}`,
      );
  }
  return joinWindows(parts);
}

/** Windows in proportion to the shares, at least one each, all together exactly `windows`. */
export function divideWindows(windows: number, shares: readonly number[]): number[] {
  const total = shares.reduce((sum, share) => sum + share, 0);
  // Nearly all go by the shares themselves, the others one by one where the share is least fulfilled (Sainte-Laguë).
  const counts = shares.map((share) => Math.max(1, Math.floor((windows * share) / total) - 2 * shares.length));
  for (let left = windows - counts.reduce((sum, count) => sum + count, 0); left > 0; left--) {
    const need = shares.map((share, i) => share / total / (2 * counts[i]! + 1));
    counts[need.indexOf(Math.max(...need))]!++;
  }
  return counts;
}

/**
 * What can be said of how a perplexity is to be measured without the model and the text.
 * @throws AlpsError `INVALID_ARGUMENT`
 */
export function checkEvaluation(options: { length?: number; windows?: number; protocol?: PerplexityProtocol }): void {
  const { length = 2, windows = 1, protocol = 'text' } = options;
  integerFrom('windows', windows, 1);
  integerFrom('length', length, 2);
  if (!protocolNames.includes(protocol))
    throw invalidArgument('protocol', protocolNames.map((name) => `"${name}"`).join(' or '), protocol);
}

/** The windows that a perplexity is measured on. */
export async function loadEvaluationWindows(
  folder: string,
  config: DecoderConfig,
  options: {
    text: TextSource;
    field?: string;
    length?: number;
    windows?: number;
    protocol?: PerplexityProtocol;
  },
  { signal }: { signal?: AbortSignal } = {},
): Promise<TokenWindows> {
  checkEvaluation(options);
  const { text, windows, protocol = 'text', field } = options;
  const ids = await readTokenFile(text, 'evaluation', signal);
  if (ids) {
    if (protocol !== 'text')
      throw invalidArgument('protocol', `none for ${String(text)}, which holds token ids,`, protocol);
    return checkedLength(windowsOfIds(ids.slice(0, windows), config.vocabulary, String(text)), config);
  }
  const length = windowLength(options.length, config);
  const most = protocols[protocol].windows;
  const stream = encodedBy(folder, config, protocol, text, { ...(field === undefined ? {} : { field }), signal });
  const all = await consecutiveWindows(stream, {
    length,
    windows: most === undefined ? windows : Math.min(windows ?? most, most),
    maxTokens: mostEvaluationTokens,
  });
  return withCapNote(all, options.length, config);
}

/** The tokens of a protocol: the tokenizer's special tokens for a published one, then the text. */
async function* encodedBy(
  folder: string,
  config: DecoderConfig,
  protocol: PerplexityProtocol,
  text: TextSource,
  options: TextOptions,
): AsyncGenerator<Uint32Array> {
  const tokenizer = await loadTokenizer(folder, { vocabSize: config.vocabulary });
  if (protocols[protocol].prefix && tokenizer.prefix.length > 0) yield Uint32Array.from(tokenizer.prefix);
  const parts = protocol === 'text' ? joinedText(text, options) : joinedBy(protocol, text, options);
  yield* tokenizer.encodeStream(parts, { signal: options.signal });
}

/** 2048 unless asked otherwise, and never more positions than the model has. */
export function windowLength(asked: number | undefined, config: DecoderConfig): number {
  if (asked !== undefined && (!Number.isSafeInteger(asked) || asked < 2)) {
    throw invalidArgument('length', 'an integer of at least 2', asked);
  }
  return Math.min(asked ?? 2048, config.maxPositions);
}

/** Says so where a length that was asked for does not fit the model. */
export function lengthNote(asked: number | undefined, config: DecoderConfig): string | undefined {
  if (asked === undefined || asked <= config.maxPositions) return undefined;
  return `windows are capped at the model's ${config.maxPositions} positions, not ${asked}`;
}

function withCapNote(windows: TokenWindows, asked: number | undefined, config: DecoderConfig): TokenWindows {
  const note = lengthNote(asked, config);
  return note === undefined ? windows : withNote(windows, note);
}

function withNote(windows: TokenWindows, note: string): TokenWindows {
  return { ...windows, note: windows.note ? `${note}; ${windows.note}` : note };
}

/** Windows of given ids cannot be cut without changing what they are. */
function checkedLength(windows: TokenWindows, config: DecoderConfig): TokenWindows {
  if (windows.length > config.maxPositions) {
    throw invalidArgument(
      'tokenIds',
      `windows of at most the model's ${config.maxPositions} positions`,
      windows.length,
    );
  }
  return windows;
}

/**
 * Token ids of a `.json` file, which must be alone: a list of windows, or an object with such lists by name.
 * @throws AlpsError `INVALID_TEXT`, `FILE_SYSTEM`, `ABORTED`
 */
export async function readTokenFile(
  text: TextSource,
  name: 'calibration' | 'evaluation',
  signal?: AbortSignal,
): Promise<unknown[] | undefined> {
  const paths = typeof text === 'string' ? [text] : Array.isArray(text) ? (text as readonly unknown[]) : [];
  const path = paths.find((one): one is string => typeof one === 'string' && one.endsWith('.json'));
  if (path === undefined) return undefined;
  if (paths.length > 1) {
    const remedy = name === 'calibration' ? 'give it alone, or each its share (shares, --shares)' : 'give it alone';
    throw new AlpsError('INVALID_TEXT', `${path} holds token ids, which are not joined with other files: ${remedy}`);
  }
  return windowsIn(await readTokenJson(path, signal), path, name);
}

/** The windows of a value that a token file holds. @param name of the list, where there are several */
export function windowsIn(value: unknown, path: string, name: string): unknown[] {
  if (Array.isArray(value)) return value;
  const lists = isObject(value) ? value : {};
  const windows = Object.hasOwn(lists, name) ? lists[name] : undefined;
  if (Array.isArray(windows)) return windows;
  const names = Object.keys(lists).slice(0, 8).join(', ');
  const found = names ? `an object with ${names}` : describe(value);
  throw new AlpsError(
    'INVALID_TEXT',
    `${path} has no list of token windows: expected a list of lists of ids, or an object that has one as "${name}", but found ${found}`,
  );
}

/** @throws AlpsError `INVALID_TEXT`, `FILE_SYSTEM`, `ABORTED` */
export async function readTokenJson(path: string, signal?: AbortSignal): Promise<unknown> {
  const parts: string[] = [];
  let length = 0;
  for await (const part of readPieces(path, signal)) {
    length += part.length;
    if (length > mostTokenFileCharacters)
      throw new AlpsError('INVALID_TEXT', `${path} has more than ${mostTokenFileCharacters} characters of token ids`);
    parts.push(part);
  }
  try {
    return JSON.parse(parts.join(''));
  } catch (cause) {
    throw new AlpsError('INVALID_TEXT', `${path} is not JSON: ${(cause as Error).message}`, { cause });
  }
}
