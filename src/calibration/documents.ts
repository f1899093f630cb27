import { readText, type TextOptions, type TextSource } from './text.js';
import { randomNumbers } from './windows.js';

/** Characters of the text that documents are drawn from: some hundred milliseconds of reading. */
const mostCharacters = 1 << 26;

/**
 * Which documents of files are read where that is not all of them: drawn at random, so that of files that are sorted, by date or by topic, more counts than
 * their beginning.
 *
 * @param characters that the drawn documents have together at least
 * @returns numbers of documents, for `joinedText()`; undefined where all count: few or one, or strings that may be there only once
 * @throws AlpsError as `readText()`
 */
export async function drawDocuments(
  source: TextSource,
  { characters, seed, ...options }: TextOptions & { characters: number; seed: number },
): Promise<ReadonlySet<number> | undefined> {
  if (typeof source !== 'string' && !Array.isArray(source)) return undefined;
  const lengths: number[] = [];
  let total = 0;
  let before = 0;
  for await (const { text, end } of readText(source, options)) {
    total += text.length;
    if (end) {
      lengths.push(total - before);
      before = total;
    }
    if (total > mostCharacters) break;
  }
  if (total <= characters || lengths.length < 2) return undefined;
  const random = randomNumbers(seed ^ 0x9e3779b9);
  const drawn = new Set<number>();
  const numbers = lengths.map((_, i) => i);
  for (let i = 0, sum = 0; i < numbers.length && sum < characters; i++) {
    const j = i + Math.floor(random() * (numbers.length - i));
    const number = numbers[j]!;
    numbers[j] = numbers[i]!;
    drawn.add(number);
    sum += lengths[number]!;
  }
  return drawn;
}
