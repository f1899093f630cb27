import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Tokenizer as Library } from '@huggingface/tokenizers';
import { randomNumbers } from '../src/calibration/windows.js';
import { loadTokenizer } from '../src/model/tokenizer.js';
import { readTokenizerFiles } from '../src/model/tokenizer-json.js';
import { byteLevelKinds, spaceMarkKinds, tinyTokenizer, trickyText, writeTokenizer } from './helpers/tokenizers.js';

const kinds = [...Object.keys(byteLevelKinds), ...Object.keys(spaceMarkKinds)];
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'alps-tokenizer-'));
  for (const kind of kinds) await writeTokenizer(join(folder, kind), tinyTokenizer(kind));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** The whole text in one go, as the library does it. */
async function wholeIds(path: string, text: string): Promise<number[]> {
  const files = await readTokenizerFiles(path);
  return new Library(files.tokenizer, files.config).encode(text, { add_special_tokens: false }).ids;
}

/** Made of what could upset a cut: all sorts of spaces, letters, digits, marks and special tokens. */
const atoms = [
  ...[
    ' ',
    ' ',
    ' ',
    '  ',
    '\n',
    '\r\n',
    '\n\n',
    '\t',
    '.',
    ',',
    '!',
    '"',
    "'s",
    "'",
    '-',
    '\u00A0',
    '\u0085',
    '\uFEFF',
    '\u3002',
  ],
  ...['the', 'and', 'Word', 'don', 'x', 'A', '\u4F60', '\u00E9', 'e\u0301', '\u0301', '\u{1F600}', '1', '12', '\u00BD'],
  ...['<|end|>', '<|end', '\u2581', '\u03A3', '\u{1D400}'],
];
function randomText(seed: number): string {
  const random = randomNumbers(seed);
  return Array.from({ length: 15_000 }, () => atoms[Math.floor(random() * atoms.length)]).join('');
}

describe('ids', () => {
  test.each([...kinds, 'union'])('%s: equal to those of the Rust library', async (kind) => {
    const path = kind === 'union' ? 'models/union-4m' : join(folder, kind);
    if (!existsSync(path)) return;
    const golden = JSON.parse(await readFile('test/fixtures/text/ids.json', 'utf8')) as Record<string, number[]>;
    const tokenizer = await loadTokenizer(path);
    expect([...tokenizer.encode(trickyText)]).toEqual(golden[kind]);
  });

  test.each(kinds)('%s: a text in pieces gives the ids of the whole', async (kind) => {
    const path = join(folder, kind);
    const tokenizer = await loadTokenizer(path);
    const files = await readTokenizerFiles(path);
    const library = new Library(files.tokenizer, files.config);
    for (const text of [randomText(1), randomText(2), `a  b \n ${'1 2  '.repeat(5000)}`, 'x '.repeat(9000)]) {
      const whole: number[] = library.encode(text, { add_special_tokens: false }).ids;
      const ids = tokenizer.encode(text);
      expect(whole.findIndex((id, index) => id !== ids[index])).toBe(-1);
      expect(ids.length).toBe(whole.length);
    }
  });

  test('the same whether at once, asynchronously or as a stream of parts of any size', async () => {
    const text = trickyText.repeat(150);
    for (const kind of ['gpt2', 'llama2']) {
      const tokenizer = await loadTokenizer(join(folder, kind));
      const ids = tokenizer.encode(text);
      expect([...ids]).toEqual(await wholeIds(join(folder, kind), text));
      expect(await tokenizer.encodeAsync(text)).toEqual(ids);
      for (const size of [7, 5000, 40_000]) {
        const parts = Array.from({ length: Math.ceil(text.length / size) }, (_, i) =>
          text.slice(i * size, (i + 1) * size),
        );
        const found: number[] = [];
        for await (const piece of tokenizer.encodeStream(parts)) found.push(...piece);
        expect(found).toEqual([...ids]);
      }
    }
  });

  test('a giant line without any safe place is cut, the same way each time', async () => {
    const tokenizer = await loadTokenizer(join(folder, 'gpt2'));
    const text = `${'\u{1F600}'.repeat(30_000)}${'A'.repeat(100_000)}`;
    expect(await tokenizer.encodeAsync(text)).toEqual(tokenizer.encode(text));
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
  });

  test('decode gives the text back, special tokens in it included', async () => {
    const tokenizer = await loadTokenizer(join(folder, 'smollm'));
    expect(tokenizer.decode(tokenizer.encode(trickyText))).toBe(trickyText);
    expect(tokenizer.decode([])).toBe('');
    expect(tokenizer.encode('').length).toBe(0);
    expect([...tokenizer.encode('<|end|>')]).toEqual([0]);
    expect(tokenizer).toMatchObject({ bosToken: '<|end|>', bosId: 0, vocabSize: expect.any(Number) });
  });

  test('half surrogate pairs become U+FFFD', async () => {
    const tokenizer = await loadTokenizer(join(folder, 'gpt2'));
    expect(tokenizer.decode(tokenizer.encode('a\uD83D b\uDE00 \u{1F600}'))).toBe('a\uFFFD b\uFFFD \u{1F600}');
  });
});

test('the event loop gets its turns, and an abort ends the work', async () => {
  const tokenizer = await loadTokenizer(join(folder, 'gpt2'));
  const text = 'the end and the beginning. '.repeat(40_000);
  const work = tokenizer.encodeAsync(text);
  let turns = 0;
  let isDone = false;
  work.then(() => {
    isDone = true;
  });
  while (!isDone) {
    await new Promise((resolve) => setImmediate(resolve));
    turns++;
  }
  expect(turns).toBeGreaterThan(20);
  const controller = new AbortController();
  const aborted = tokenizer.encodeAsync(text, { signal: controller.signal });
  setImmediate(() => controller.abort());
  await expect(aborted).rejects.toMatchObject({ code: 'ABORTED' });
});

describe('complaints', () => {
  test('an id beyond the model', async () => {
    const tokenizer = await loadTokenizer(join(folder, 'gpt2'), { vocabSize: 257 });
    expect(() => tokenizer.encode('in the end')).toThrow(
      /Token id \d+ \("in"\) is outside the model's vocabulary of 257/,
    );
    expect(() => tokenizer.decode([257])).toThrow(expect.objectContaining({ code: 'INVALID_TEXT' }));
    expect(() => tokenizer.encode(5 as unknown as string)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });

  const good = tinyTokenizer('gpt2');
  const model = good.model as object;
  test.each<[string, unknown, string, RegExp]>([
    ['not JSON', '{"model":', 'INVALID_CHECKPOINT', /tokenizer.json is not JSON/],
    ['a list', '[]', 'INVALID_CHECKPOINT', /not a JSON object/],
    ['no model', { ...good, model: undefined }, 'INVALID_CHECKPOINT', /has no "model"/],
    ['Unigram', { ...good, model: { type: 'Unigram', vocab: [] } }, 'UNSUPPORTED_MODEL', /"Unigram", only "BPE"/],
    ['dropout', { ...good, model: { ...model, dropout: 0.1 } }, 'UNSUPPORTED_MODEL', /dropout/],
    ['no vocabulary', { ...good, model: { type: 'BPE', merges: [] } }, 'INVALID_CHECKPOINT', /model.vocab/],
    ['a bad id', { ...good, model: { ...model, vocab: { a: -1 } } }, 'INVALID_CHECKPOINT', /the id of "a" is -1/],
    ['bad merges', { ...good, model: { ...model, merges: [1] } }, 'INVALID_CHECKPOINT', /model.merges/],
    ['bad added tokens', { ...good, added_tokens: [{ id: 'x' }] }, 'INVALID_CHECKPOINT', /added_tokens/],
    [
      'a whole word',
      { ...good, added_tokens: [{ id: 0, content: 'wordy', single_word: true }] },
      'UNSUPPORTED_MODEL',
      /the added token "wordy", which is taken in whole words only/,
    ],
    ['a normalizer', { ...good, normalizer: { type: 'Precompiled' } }, 'UNSUPPORTED_MODEL', /normalizer "Precompiled"/],
    ['a pre-tokenizer', { ...good, pre_tokenizer: { type: 'Odd' } }, 'UNSUPPORTED_MODEL', /pre-tokenizer "Odd"/],
    ['a decoder', { ...good, decoder: { type: 'Odd' } }, 'UNSUPPORTED_MODEL', /Unknown Decoder type: Odd/],
  ])('%s', async (name, tokenizer, code, message) => {
    const path = await writeTokenizer(join(folder, `bad ${name}`), tokenizer);
    const error = await loadTokenizer(path).catch((reason) => reason);
    expect(error).toMatchObject({ code, message: expect.stringMatching(message) });
  });

  test('no tokenizer.json', async () => {
    await expect(loadTokenizer(join(folder, 'absent'))).rejects.toMatchObject({ code: 'FILE_SYSTEM' });
    await expect(loadTokenizer('')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(loadTokenizer(folder, { vocabSize: 0 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});
