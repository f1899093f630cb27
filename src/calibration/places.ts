import type { Tokenizer } from '../model/tokenizer.js';
import { joinedText, type TextOptions, type TextSource } from './text.js';
import { join, randomNumbers, type TokenWindows } from './windows.js';

/** Characters of the text that windows are drawn from: some hundred milliseconds of reading. */
const mostCharacters = 1 << 26;

/** A place has the characters of a window to itself; hardly any text has more of them to a token. */
const charactersOfPlace = 8;

/** What is tokenised first for a window: of usual text enough. */
const firstCharacters = 6;

/** The tokens at the end of a text that is cut anywhere may be others than those of the whole. */
const unsureTokens = 8;

/**
 * Where windows begin in the joined text of files of which not all is tokenised: at random, by the seed, at least 8 characters a token apart.
 *
 * @param characters the text counts as far as this; at most some 67 million
 * @returns numbers of characters, ascending; undefined where all of the text is to be tokenised: where it is short, or may be there only once
 * @throws AlpsError as `readText()`
 */
export async function drawPlaces(
  source: TextSource,
  options: TextOptions & { windows: number; length: number; characters: number; seed: number },
): Promise<number[] | undefined> {
  if (!isThereTwice(source)) return undefined;
  const { windows, length, characters, seed, ...reading } = options;
  const most = Math.min(characters, mostCharacters);
  let total = 0;
  for await (const text of joinedText(source, reading)) {
    total += text.length;
    if (total > most) break;
  }
  const size = charactersOfPlace * length;
  const places = Math.floor(Math.min(total, most) / size);
  if (places < 2 * windows) return undefined;
  const random = randomNumbers(seed);
  const drawn = new Set<number>();
  // Each of the sets of so many places is equally likely (Floyd).
  for (let last = places - windows; last < places; last++) {
    const place = Math.floor(random() * (last + 1));
    drawn.add(drawn.has(place) ? last : place);
  }
  return [...drawn].sort((a, b) => a - b).map((place) => place * size);
}

/** Whether a text can be read a second time. */
function isThereTwice(source: TextSource): boolean {
  if (typeof source === 'string' || Array.isArray(source)) return true;
  return typeof source === 'object' && source !== null && 'documents' in source && Array.isArray(source.documents);
}

/**
 * Windows of a text's tokens, from the end of the word at each place on. Where a text has more than 8 characters to a token, they may overlap.
 *
 * @param places numbers of characters, ascending
 * @returns undefined where the text ends too early behind one of the places
 * @throws AlpsError as `readText()`
 */
export async function windowsAt(
  tokenizer: Tokenizer,
  source: TextSource,
  { places, length, ...reading }: TextOptions & { places: readonly number[]; length: number },
): Promise<TokenWindows | undefined> {
  const text = new Passages(joinedText(source, reading));
  const windows: Uint32Array[] = [];
  try {
    for (const place of places) {
      const window = await windowAt(tokenizer, text, { place, length, signal: reading.signal });
      if (!window) return undefined;
      windows.push(window);
    }
  } finally {
    await text.close();
  }
  return join(windows, length);
}

async function windowAt(
  tokenizer: Tokenizer,
  text: Passages,
  { place, length, signal }: { place: number; length: number; signal: AbortSignal | undefined },
): Promise<Uint32Array | undefined> {
  for (let size = firstCharacters * length; ; size *= 2) {
    const { passage, isEnd } = await text.from(place, size);
    const tokens = await tokenizer.encodeAsync(passage, { signal, inside: place > 0 });
    if (tokens.length >= length + (isEnd ? 0 : unsureTokens)) return tokens.subarray(0, length);
    if (isEnd) return undefined;
  }
}

/** A text that arrives in pieces, of which passages are asked for in its order; what lies before one is forgotten. */
class Passages {
  readonly #pieces: AsyncGenerator<string>;
  #buffer = '';
  /** Characters before the buffer. */
  #before = 0;
  #isEnd = false;

  constructor(pieces: AsyncGenerator<string>) {
    this.#pieces = pieces;
  }

  /** At most `length` characters from `start` on; `isEnd` where the text has no more behind them. */
  async from(start: number, length: number): Promise<{ passage: string; isEnd: boolean }> {
    while (!this.#isEnd && this.#before + this.#buffer.length <= start + length) {
      const { value, done } = await this.#pieces.next();
      this.#isEnd = done === true;
      const passed = Math.min(start - this.#before, this.#buffer.length);
      this.#buffer = this.#buffer.slice(passed) + (value ?? '');
      this.#before += passed;
    }
    const at = start - this.#before;
    const passage = this.#buffer.slice(at, at + length);
    return { passage, isEnd: this.#isEnd && at + length >= this.#buffer.length };
  }

  async close(): Promise<void> {
    await this.#pieces.return(undefined);
  }
}
