import { isObject } from '../checkpoint/json.js';
import { AlpsError, describe, invalidArgument, type Names } from '../errors.js';
import type { DecoderConfig } from '../model/config.js';
import { loadTokenizer } from '../model/tokenizer.js';
import { integerFrom } from '../pruning/options.js';
import { drawPlaces, windowsAt } from './places.js';
import { joinedBy, type PerplexityProtocol, protocolNames, protocols } from './protocols.js';
import { joinedText, type TextOptions, type TextSource } from './text.js';
import { readPieces } from './text-file.js';
import {
  consecutiveWindows,
  firstWindows,
  joinWindows,
  mostSeed,
  sampleWindows,
  type TokenWindows,
  windowsOfIds,
} from './windows.js';

/** What a model reads while it is pruned: text or token ids. */
export interface CalibrationOptions {
  /** Files (.txt, .jsonl, .parquet, .gz), strings, or one `.json` file with token ids: a list of windows, or an object that has one as `calibration`. */
  text?: TextSource;
  /** Windows of token ids, all of one length, instead of text. */
  tokenIds?: readonly (readonly number[] | Uint32Array)[];
  /**
   * How many of the windows each entry of `text` gives, relative to the others, such as [3, 1]: each entry is then a text of its own, or the
   * first windows of a `.json` file with token ids ({@link generateText}). Default: all entries are one text.
   */
  shares?: readonly number[];
  /** The text field of .jsonl and .parquet files. Default `text`. */
  field?: string;
  /** Number of token windows. Default 128. */
  windows?: number;
  /** Tokens of a window. Default 2048, at most what the model takes; shortened where the text is shorter. */
  length?: number;
  /** Which windows of the text are taken, and what the model writes beside them. Below 2³², default 0. The same text and seed give the same tokens. */
  seed?: number;
  /**
   * The text counts up to about this many tokens. Default: the first 67 million characters of files and lists, in all of which the windows' places
   * are drawn; of an iterable, which may be there only once, 16 × windows × length tokens.
   */
  maxTokens?: number;
  /**
   * So many windows more that the model writes itself before it is pruned, for what it knows beyond the text (docs/quality.md). Each goes on from the
   * first eighth of one of the other windows, evenly over all. The device must hold the whole model meanwhile. Default 0.
   */
  ownWindows?: number;
}

export const calibrationNames: Names<CalibrationOptions> = {
  text: true,
  tokenIds: true,
  shares: true,
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

/** What a report says of the calibration. */
export interface CalibrationReport {
  windows: number;
  /** Of these: what the model wrote itself. */
  ownWindows: number;
  length: number;
  tokens: number;
  seed: number;
  /** Of the token ids. */
  hash: string;
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
 * @throws AlpsError `INVALID_ARGUMENT`
 */
export function checkCalibration(options: CalibrationOptions): void {
  const { text, tokenIds, windows = 128, length = 2, seed = 0, shares, maxTokens = 1, ownWindows = 0 } = options;
  if ((text === undefined) === (tokenIds === undefined)) {
    throw invalidArgument('calibration', 'exactly one of text and tokenIds', text === undefined ? 'none' : 'both');
  }
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

/** The calibration windows of a model, but for `ownWindows`; see {@link CalibrationOptions}. */
export async function loadCalibration(
  folder: string,
  config: DecoderConfig,
  options: CalibrationOptions,
  { signal }: { signal?: AbortSignal } = {},
): Promise<TokenWindows> {
  checkCalibration(options);
  const { text, tokenIds, windows = 128, seed = 0, shares } = options;
  if (shares !== undefined) return loadMix(folder, config, { ...options, shares, windows, seed }, { signal });
  if (tokenIds !== undefined) return checkedLength(windowsOfIds(tokenIds, config.vocabulary, 'tokenIds'), config);
  const ids = await readTokenFile(text!, 'calibration', signal);
  if (ids) return checkedLength(windowsOfIds(ids, config.vocabulary, String(text)), config);
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
  { signal }: { signal?: AbortSignal },
): Promise<TokenWindows> {
  const { text, shares, windows, maxTokens, ...rest } = options;
  const texts = listOf(text);
  const parts: TokenWindows[] = [];
  for (const [i, count] of divideWindows(windows, shares).entries()) {
    const limit = maxTokens === undefined ? {} : { maxTokens: Math.ceil((maxTokens * count) / windows) };
    const part = await loadCalibration(
      folder,
      config,
      { ...rest, ...limit, text: texts[i]!, windows: count },
      { signal },
    );
    parts.push(part.given ? firstWindows(part, count, texts[i]!) : part);
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
  if (note === undefined) return windows;
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
