import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Tokenizer as Library } from '@huggingface/tokenizers';
import { randomNumbers } from '../src/calibration/windows.js';
import { loadTokenizer } from '../src/model/tokenizer.js';
import { readTokenizerFiles } from '../src/model/tokenizer-json.js';
import {
  addedToken,
  byteLevelKinds,
  bytes,
  byteTokenizer,
  plainTokenizer,
  sequence,
  spaceMarkKinds,
  tinyTokenizer,
  trickyText,
  writeTokenizer,
} from './helpers/tokenizers.js';

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

describe('where the JavaScript library alone gives other ids than the Rust library', () => {
  const wordSplit = { pre_tokenizer: { type: 'WhitespaceSplit' } };
  const replace = (content: string) => ({ normalizer: { type: 'Replace', pattern: { String: 'x' }, content } });
  const space = { type: 'Split', pattern: { String: ' ' }, behavior: 'Removed', invert: false };
  const first = { type: 'Metaspace', replacement: '\u2581', prepend_scheme: 'first', split: false };
  const unknown = { unk_token: '?', fuse_unk: true };
  const special = addedToken(256, '<|end|>', { special: true });
  const stripped = { added_tokens: [addedToken(256, '<tok>', { lstrip: true, rstrip: true })] };
  const marked = { type: 'Metaspace', replacement: '^', prepend_scheme: 'always', split: true };

  test.each<[string, unknown, string, number[]]>([
    ['a removed String', byteTokenizer({ pre_tokenizer: sequence(space, bytes(false)) }), 'a b', [97, 98]],
    [
      'unknown characters, fused within words',
      plainTokenizer(wordSplit, ['?', 'a'], [], unknown),
      '\u4F60\u597Da \u4F60 \u597D',
      [0, 1, 0, 0],
    ],
    ['unknown characters without a token', plainTokenizer(wordSplit, ['a', 'b'], ['a b']), 'a\u4F60b', [2]],
    [
      'unknown bytes without a token',
      plainTokenizer({ pre_tokenizer: bytes(true) }, ['-', '\u0120'], ['- -']),
      '-\u0004- -',
      [2, 1, 0],
    ],
    [
      "Lowercase at a word's end",
      byteTokenizer({ normalizer: { type: 'Lowercase' } }),
      '\u039F\u03A3',
      [206, 191, 207, 131],
    ],
    ['Replace with "$$"', byteTokenizer(replace('$$')), 'x', [36, 36]],
    ['Replace with "$&"', byteTokenizer(replace('$&')), 'x', [36, 38]],
    [
      'a prefix before U+FEFF',
      byteTokenizer({ pre_tokenizer: bytes(true, true) }, ['\u0120 \u00EF']),
      ' \uFEFFhello',
      [256, 187, 191, 104, 101, 108, 108, 111],
    ],
    [
      'a token that strips, beside U+FEFF',
      byteTokenizer(stripped),
      'a\uFEFF<tok>\uFEFFa',
      [97, 239, 187, 191, 256, 239, 187, 191, 97],
    ],
    ['a token that strips, beside U+0085', byteTokenizer(stripped), 'a\u0085 <tok>\u0085a', [97, 256, 97]],
    [
      'a normalized token over a special one',
      byteTokenizer({ added_tokens: [special, addedToken(257, 'x<|', { normalized: true })] }),
      'x<|end|>x<|end',
      [120, 256, 257, 101, 110, 100],
    ],
    [
      'Metaspace "first" behind a normalized token',
      plainTokenizer(
        {
          normalizer: { type: 'NFC' },
          pre_tokenizer: first,
          added_tokens: [addedToken(3, 'user', { normalized: true })],
        },
        ['\u2581', 'x', 'y'],
      ),
      'userx y',
      [3, 1, 0, 2],
    ],
    [
      'Metaspace with a mark of regular expressions',
      plainTokenizer({ pre_tokenizer: marked }, ['^', 'a', 'b'], ['a ^']),
      'a b',
      [0, 1, 0, 2],
    ],
  ])('%s', async (name, tokenizer, text, ids) => {
    const path = await writeTokenizer(join(folder, `other ${name}`), tokenizer);
    expect([...(await loadTokenizer(path)).encode(text)]).toEqual(ids);
  });

  test('"remove_space" in tokenizer_config.json', async () => {
    const path = await writeTokenizer(join(folder, 'remove space'), byteTokenizer({}), { remove_space: true });
    expect([...(await loadTokenizer(path)).encode('a  b')]).toEqual([97, 32, 32, 98]);
  });
});

describe('cuts', () => {
  test('a merge of a letter and a colon is not cut', async () => {
    const parts = { pre_tokenizer: sequence({ type: 'WhitespaceSplit' }, bytes(false)) };
    const path = await writeTokenizer(join(folder, 'colon'), byteTokenizer(parts, ['x :']));
    const word = `${'a'.repeat(99)} `;
    const text = `${'y'.repeat(20)} ${word.repeat(81)}${'a'.repeat(70)}x:b ${word.repeat(100)}`;
    expect((await loadTokenizer(path)).encode(text).length).toBe(18_011);
  });

  test('a pattern that looks for the beginning of a line is not cut', async () => {
    const caret = { type: 'Split', pattern: { Regex: '^.|.$' }, behavior: 'Isolated', invert: false };
    const tokenizer = byteTokenizer({ pre_tokenizer: sequence(caret, bytes(false)) }, ['\u0120 b']);
    const path = await writeTokenizer(join(folder, 'caret'), tokenizer);
    expect((await loadTokenizer(path)).encode(`${'a'.repeat(8000)} b${'a'.repeat(7000)}`).length).toBe(15_001);
  });

  test.each(['prefix', 'llama2', 'metaspace', 'metaspaceSplit'])('%s: nothing is put before a piece', async (kind) => {
    const tokenizer = await loadTokenizer(join(folder, kind));
    expect(tokenizer.encode('a'.repeat(40_000)).length).toBe(40_001);
  });

  test('without a safe place the cut is before a blank', async () => {
    const normalizer = { type: 'Replace', pattern: { Regex: '\\s+' }, content: ' ' };
    const path = await writeTokenizer(join(folder, 'blank'), byteTokenizer({ normalizer }, ['\u0120 t', 'h e']));
    const text = 'the end '.repeat(5000);
    expect([...(await loadTokenizer(path)).encode(text)]).toEqual(await wholeIds(path, text));
  });

  test('pieces are of so many bytes, not characters', async () => {
    const tokenizer = await loadTokenizer(join(folder, 'gpt2'));
    let longest = 0;
    for await (const piece of tokenizer.encodeStream(['\u4F61'.repeat(20_000)]))
      longest = Math.max(longest, piece.length);
    expect(longest).toBe(2 * 5461);
  });

  test('what splits at a character that the normalizer replaces is left out, and otherwise linear in the text', async () => {
    const gemma = await readTokenizerFiles(join(folder, 'gemma'));
    const isolated = (Regex: string) => ({ type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false });
    expect(gemma.tokenizer.pre_tokenizer).toMatchObject({ pretokenizers: [isolated('\u2581+[^\u2581]*')] });
    const { pre_tokenizer } = { ...tinyTokenizer('gemma') };
    const path = await writeTokenizer(join(folder, 'previous'), byteTokenizer({ pre_tokenizer }));
    expect((await readTokenizerFiles(path)).tokenizer.pre_tokenizer).toMatchObject({
      pretokenizers: [isolated('[^\\x{20}]+\\x{20}?|\\x{20}')],
    });
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
    [
      'mixed merges',
      { ...good, model: { ...model, merges: [['t', 'h'], 'i n'] } },
      'INVALID_CHECKPOINT',
      /model.merges is not a list of pairs, all written alike: it has "i n"/,
    ],
    ['a merge of three', { ...good, model: { ...model, merges: ['t h e'] } }, 'INVALID_CHECKPOINT', /it has "t h e"/],
    [
      'a merge of no token',
      { ...good, model: { ...model, merges: ['t z'] } },
      'INVALID_CHECKPOINT',
      /model.merges has "t z", but model.vocab no "tz"/,
    ],
    [
      'a prefix inside words',
      { ...good, model: { ...model, continuing_subword_prefix: '##' } },
      'UNSUPPORTED_MODEL',
      /model.continuing_subword_prefix "##"/,
    ],
    [
      'an unknown token that is unknown',
      plainTokenizer({}, ['a'], [], { unk_token: '<unk>' }),
      'INVALID_CHECKPOINT',
      /model.unk_token is "<unk>"/,
    ],
    [
      'an added id beside the vocabulary',
      { ...good, added_tokens: [addedToken(5, 'in')] },
      'INVALID_CHECKPOINT',
      /added_tokens gives "in" the id 5, but it is \d+/,
    ],
    [
      'added ids with a gap',
      byteTokenizer({ added_tokens: [addedToken(256, 'one'), addedToken(258, 'two')] }),
      'INVALID_CHECKPOINT',
      /added_tokens gives "two" the id 258, but it is 257/,
    ],
    [
      'a Split with groups',
      { ...good, pre_tokenizer: { type: 'Split', pattern: { Regex: '(-|_)+' }, behavior: 'Removed', invert: false } },
      'UNSUPPORTED_MODEL',
      /"Split" with behavior "Removed" and groups/,
    ],
    [
      'Metaspace "first" behind others',
      {
        ...good,
        pre_tokenizer: sequence(
          { type: 'Digits', individual_digits: true },
          { type: 'Metaspace', prepend_scheme: 'first' },
        ),
      },
      'UNSUPPORTED_MODEL',
      /"Metaspace" with prepend_scheme "first" behind another/,
    ],
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
