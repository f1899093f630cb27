import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import {
  type CalibrationOptions,
  divideWindows,
  loadCalibration,
  loadEvaluationWindows,
} from '../src/calibration/calibration.js';
import { drawPlaces, windowsAt } from '../src/calibration/places.js';
import { consecutiveWindows, randomNumbers, sampleWindows, windowsOfIds } from '../src/calibration/windows.js';
import type { DecoderConfig } from '../src/model/config.js';
import { loadTokenizer } from '../src/model/tokenizer.js';
import { byteLevelKinds, spaceMarkKinds, tinyTokenizer, writeTokenizer } from './helpers/tokenizers.js';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'alps-windows-'));
  await writeTokenizer(folder, tinyTokenizer('gpt2'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** What these functions look at of a model. */
const config = { vocabulary: 300, maxPositions: 131_072 } as DecoderConfig;
const calibration = (options: CalibrationOptions, signal?: AbortSignal) =>
  loadCalibration(folder, config, options, { signal });
const refused = (code: string, message: RegExp) => ({ code, message: expect.stringMatching(message) });
const documents = (...texts: string[]) => ({ documents: texts });
const speech = Array.from({ length: 4000 }, (_, i) => `Sentence ${i} of the long speech.`).join(' ');

/** Ids 0, 1, 2, ... in pieces of a size; `state.given` counts what was asked for. */
async function* counting(total: number, size: number, state = { given: 0 }): AsyncGenerator<Uint32Array> {
  for (; state.given < total; ) {
    const length = Math.min(size, total - state.given);
    state.given += length;
    yield Uint32Array.from({ length }, (_, i) => state.given - length + i);
  }
}

describe('choice of windows', () => {
  const options = { windows: 5, length: 10, seed: 0, maxTokens: 1e9 };

  test('whole, consecutive windows, in order, none twice; the same for the same seed and any piece size', async () => {
    const first = await sampleWindows(counting(1000, 7), options);
    expect(first).toMatchObject({ windows: 5, length: 10 });
    expect(first.note).toBeUndefined();
    const starts = Array.from({ length: 5 }, (_, i) => first.tokens[i * 10]!);
    expect(starts).toEqual([...new Set(starts)].sort((a, b) => a - b));
    for (const [i, start] of starts.entries()) {
      expect(start % 10).toBe(0);
      expect([...first.tokens.subarray(i * 10, i * 10 + 10)]).toEqual(Array.from({ length: 10 }, (_, j) => start + j));
    }
    for (const size of [1, 10, 333, 1000]) expect(await sampleWindows(counting(1000, size), options)).toEqual(first);
    const other = await sampleWindows(counting(1000, 7), { ...options, seed: 1 });
    expect(other.hash).not.toBe(first.hash);
    expect(first.hash).toBe(createHash('sha256').update(new Uint8Array(first.tokens.buffer)).digest('hex'));
  });

  test('every window is about equally likely', async () => {
    const hits = new Array<number>(20).fill(0);
    for (let seed = 0; seed < 2000; seed++) {
      const { tokens } = await sampleWindows(counting(200, 50), { ...options, seed });
      for (let i = 0; i < 5; i++) hits[tokens[i * 10]! / 10]!++;
    }
    for (const count of hits) expect(Math.abs(count - 500)).toBeLessThan(100);
  });

  test('reads no further than maxTokens, however long the text is', async () => {
    const state = { given: 0 };
    await sampleWindows(counting(Number.POSITIVE_INFINITY, 64, state), { ...options, maxTokens: 1000 });
    expect(state.given).toBeLessThanOrEqual(1000 + 64);
  });

  test('random numbers are those of mulberry32', () => {
    const random = randomNumbers(1);
    expect([random(), random()]).toEqual([0.6270739405881613, 0.002735721180215478]);
  });
});

describe('calibration', () => {
  test('the same text and seed give the same tokens, whatever the files look like', async () => {
    const plain = join(folder, 'a.txt');
    const zipped = join(folder, 'a.jsonl.gz');
    await writeFile(plain, speech);
    await writeFile(zipped, gzipSync(JSON.stringify({ text: speech })));
    const options = { windows: 8, length: 128, seed: 7 };
    const first = await calibration({ text: plain, ...options });
    expect(first).toMatchObject({ windows: 8, length: 128 });
    expect((await calibration({ text: [zipped], ...options })).hash).toBe(first.hash);
    expect((await calibration({ text: documents(speech), ...options })).hash).toBe(first.hash);
    expect((await calibration({ text: plain, ...options, seed: 8 })).hash).not.toBe(first.hash);
  });

  test('documents are joined by a blank line and tokenised as one text', async () => {
    const tokenizer = await loadTokenizer(folder);
    const { tokens } = await calibration({
      text: documents('the one and', 'the other of them'),
      windows: 1,
      length: 16,
    });
    expect([...tokens]).toEqual([...tokenizer.encode('the one and\n\nthe other of them').subarray(0, 16)]);
  });

  test('no document as long as a window: still windows, no search', async () => {
    const short = Array.from({ length: 3000 }, (_, i) => `Short ${i}.`);
    expect(await calibration({ text: documents(...short), windows: 4, length: 512 })).toMatchObject({
      windows: 4,
      length: 512,
    });
  });

  test('128 windows of 2048 unless asked otherwise, though the model takes 131072 positions', async () => {
    const { length, windows, note } = await calibration({ text: documents(speech) });
    expect(length).toBe(2048);
    expect(windows).toBeLessThan(128);
    expect(note).toMatch(new RegExp(`gives ${windows} windows of 2048 tokens, not 128`));
  });

  test('less text than one window: one shorter window and a note; hardly any text: an error', async () => {
    const result = await calibration({ text: documents('the end of the short speech'), windows: 4 });
    expect(result.windows).toBe(1);
    expect(result.tokens.length).toBe(result.length);
    expect(result.note).toMatch(/one window of \d+ tokens, not 4 of 2048/);
    await expect(calibration({ text: documents('the end') })).rejects.toMatchObject(
      refused('INVALID_TEXT', /at least 16/),
    );
    await expect(calibration({ text: documents('') })).rejects.toMatchObject(refused('INVALID_TEXT', /has no text/));
  });

  describe('a file of which not all is tokenised', () => {
    // Document i says its number, and nothing else: 200 characters, and 2 that join.
    const numbers = Array.from({ length: 200 }, (_, i) => `${1000 + i} `.repeat(40));
    let path: string;
    beforeAll(async () => {
      path = join(folder, 'numbers.jsonl');
      await writeFile(path, numbers.map((text) => `${JSON.stringify({ text })}\n`).join(''));
    });
    const all = Number.POSITIVE_INFINITY;
    const drawn = async (seed: number, characters = all) =>
      (await drawPlaces(path, { windows: 5, length: 10, characters, seed }))!;

    test('places are drawn from all of it, 8 characters a token apart, by the seed', async () => {
      const first = await drawn(0);
      expect(first).toHaveLength(5);
      expect(first).toEqual([...new Set(first)].sort((a, b) => a - b));
      for (const place of first) expect(place % 80).toBe(0);
      expect(await drawn(0)).toEqual(first);
      expect(await drawn(1)).not.toEqual(first);
      expect(Math.max(...(await drawn(0, 4000)))).toBeLessThan(4000);
    });

    test('every place is about equally likely', async () => {
      const hits = new Map<number, number>();
      const options = { windows: 5, length: 10, characters: 1600 }; // 20 places
      for (let seed = 0; seed < 400; seed++)
        for (const place of (await drawPlaces(path, { ...options, seed }))!)
          hits.set(place, (hits.get(place) ?? 0) + 1);
      expect([...hits.keys()].sort((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, i) => 80 * i));
      for (const count of hits.values()) expect(Math.abs(count - 100)).toBeLessThan(45); // standard deviation 8.7
    });

    test('all of the text is tokenised where it has less than two places for a window, and where it may be there only once', async () => {
      const characters = 40_398; // of the joined text: 504 places of 80
      expect(await drawPlaces(path, { windows: 252, length: 10, characters, seed: 0 })).toHaveLength(252);
      expect(await drawPlaces(path, { windows: 253, length: 10, characters, seed: 0 })).toBeUndefined();
      const texts = { documents: numbers.values() };
      expect(await drawPlaces(texts, { windows: 1, length: 10, characters, seed: 0 })).toBeUndefined();
    });

    test.each([8192, 300])(
      'windows hold the tokens that the whole text has behind their places (%i characters)',
      async (most) => {
        const tokenizer = await loadTokenizer(folder, { vocabSize: 300 });
        const text = numbers.join('\n\n').slice(0, most);
        const file = join(folder, 'numbers.txt');
        await writeFile(file, text);
        const whole = [...tokenizer.encode(text)];
        const places = [0, 64, 80];
        const { tokens, windows } = (await windowsAt(tokenizer, file, { places, length: 20 }))!;
        expect(windows).toBe(3);
        for (const [i, place] of places.entries()) {
          const window = [...tokens.subarray(20 * i, 20 * (i + 1))];
          // Behind the word that stands at the place; the text's own beginning is none's inside.
          const begin = place === 0 ? 0 : place + text.slice(place).search(/(?<=\d) /);
          expect(tokenizer.decode(window)).toBe(text.slice(begin, begin + tokenizer.decode(window).length));
          const before = tokenizer.encode(text.slice(0, begin)).length;
          expect(window).toEqual(whole.slice(before, before + 20));
        }
      },
    );

    test.each(Object.keys({ ...byteLevelKinds, ...spaceMarkKinds }))(
      'windows are passages of the whole text as %s tokenises it',
      async (kind) => {
        const own = await mkdtemp(join(folder, 'kind-'));
        await writeTokenizer(own, tinyTokenizer(kind));
        const tokenizer = await loadTokenizer(own);
        const text = Array.from({ length: 900 }, (_, i) => `in the end ${i} and\nthere, in, \u4F60\u597D`).join(' ');
        const asked = { windows: 6, length: 50 };
        const places = (await drawPlaces(documents(text), { ...asked, characters: all, seed: 1 }))!;
        const { tokens } = (await windowsAt(tokenizer, documents(text), { places, length: 50 }))!;
        const whole = `,${tokenizer.encode(text).join()},`;
        for (let i = 0; i < 6; i++) expect(whole).toContain(`,${tokens.subarray(50 * i, 50 * (i + 1)).join()},`);
      },
    );

    test('calibration takes its windows so, from several files too, in their order', async () => {
      const tokenizer = await loadTokenizer(folder, { vocabSize: 300 });
      const other = join(folder, 'other.txt');
      await writeFile(other, speech);
      const asked = { windows: 6, length: 32, seed: 3 };
      const found = await calibration({ text: [path, other], ...asked });
      const places = (await drawPlaces([path, other], { ...asked, characters: all }))!;
      expect(found).toMatchObject({ windows: 6, length: 32 });
      expect(found.hash).toBe((await windowsAt(tokenizer, [path, other], { places, length: 32 }))!.hash);
      const text = `${numbers.join('\n\n')}\n\n${speech}`;
      for (const [i, place] of places.entries()) {
        const window = tokenizer.decode(found.tokens.subarray(32 * i, 32 * (i + 1)));
        expect(text.slice(place, place + 256 + window.length)).toContain(window);
      }
      const least = { maxTokens: 6 * 32, ...asked }; // as much as is read: all of it is tokenised
      const beginning = tokenizer.encode(text.slice(0, 4 * 6 * 32)).length;
      expect((await calibration({ text: [path, other], ...least })).windows).toBe(
        Math.min(6, Math.floor(beginning / 32)),
      );
    });

    test('a window with many characters to a token reads on; where the text ends too early there are none', async () => {
      const tokenizer = await loadTokenizer(folder, { vocabSize: 300 });
      // A fake of a model's tokenizer: a token for 40 characters.
      const coarse = { encodeAsync: async (text: string) => new Uint32Array(Math.floor(text.length / 40)).fill(7) };
      const all = await windowsAt({ ...tokenizer, ...coarse } as typeof tokenizer, path, {
        places: [0, 800],
        length: 100,
      });
      expect(all).toMatchObject({ windows: 2, length: 100 });
      expect(await windowsAt(tokenizer, path, { places: [800, 40_350], length: 100 })).toBeUndefined();
    });

    test('where a place has too few tokens behind it, the text is tokenised from its beginning', async () => {
      const other = join(folder, 'long-token');
      const token = '<|the end of a text|>'; // more than 8 characters
      await mkdir(other);
      await writeTokenizer(other, JSON.parse(JSON.stringify(tinyTokenizer('gpt2')).replaceAll('<|end|>', token)));
      const file = join(folder, 'few.txt');
      await writeFile(file, token.repeat(50)); // 1050 characters
      const asked = { windows: 1, length: 48 };
      const placed = async (seed: number) => (await drawPlaces(file, { ...asked, characters: all, seed }))![0];
      let seed = 0;
      while ((await placed(seed)) === 0) seed++;
      const found = await loadCalibration(other, config, { text: file, ...asked, seed });
      expect(found).toMatchObject({ windows: 1, tokens: new Uint32Array(48) });
    });

    test('can be stopped', async () => {
      const signal = AbortSignal.abort();
      await expect(
        drawPlaces(path, { windows: 5, length: 10, characters: all, seed: 0, signal }),
      ).rejects.toMatchObject({
        code: 'ABORTED',
      });
      const tokenizer = await loadTokenizer(folder, { vocabSize: 300 });
      await expect(windowsAt(tokenizer, path, { places: [800], length: 10, signal })).rejects.toMatchObject({
        code: 'ABORTED',
      });
    });
  });

  test('an endless source is left when there is enough', async () => {
    let given = 0;
    async function* endless() {
      for (;;) {
        given++;
        yield speech;
      }
    }
    const result = await calibration({ text: endless(), windows: 2, length: 64 });
    expect(result.windows).toBe(2);
    expect(given).toBeLessThan(5);
  });

  test('a gzip bomb costs no more than the tokens that are asked for', async () => {
    const path = join(folder, 'bomb.txt.gz');
    await writeFile(path, gzipSync(Buffer.alloc(200e6, ' ')));
    const began = performance.now();
    expect(await calibration({ text: path, windows: 2, length: 64 })).toMatchObject({ windows: 2, length: 64 });
    expect(performance.now() - began).toBeLessThan(20_000);
  });

  test('lone surrogates, CRLF, one giant line', async () => {
    const text = `\uD83D${'x'.repeat(100_000)}\r\n\uDE00`;
    expect(await calibration({ text: documents(text), windows: 3, length: 256 })).toMatchObject({
      windows: 3,
      length: 256,
    });
  });

  test.each<[string, CalibrationOptions]>([
    ['windows', { text: documents(speech), windows: 0 }],
    ['windows', { text: documents(speech), windows: 1.5 }],
    ['length', { text: documents(speech), length: 1 }],
    ['maxTokens', { text: documents(speech), length: 64, maxTokens: 63 }],
    ['seed', { text: documents(speech), seed: -1 }],
    ['text and tokenIds', {}],
    ['text and tokenIds', { text: documents(speech), tokenIds: [[1, 2]] }],
  ])('refuses %s (case %#)', async (name, options) => {
    await expect(calibration(options)).rejects.toMatchObject(refused('INVALID_ARGUMENT', new RegExp(name)));
  });

  describe('a mix', () => {
    const two = async () => {
      const paths = ['first', 'second'].map((name) => join(folder, `${name}.txt`));
      await writeFile(paths[0]!, speech);
      await writeFile(paths[1]!, speech.replaceAll('speech', 'novel'));
      return paths as [string, string];
    };
    const options = { windows: 8, length: 64, seed: 3 };

    test('has windows of each text in its share: those that the text gives by itself', async () => {
      const [first, second] = await two();
      const mix = await calibration({ text: [first, second], shares: [3, 1], ...options });
      const [six, rest] = [
        await calibration({ text: first, ...options, windows: 6 }),
        await calibration({ text: second, ...options, windows: 2 }),
      ];
      expect(mix).toMatchObject({ windows: 8, length: 64 });
      expect([...mix.tokens]).toEqual([...six.tokens, ...rest.tokens]);
      expect(mix.note).toBeUndefined();
      expect((await calibration({ text: [second, first], shares: [1, 3], ...options })).hash).not.toBe(mix.hash);
      // Without shares both are one text.
      expect((await calibration({ text: [first, second], ...options })).hash).not.toBe(mix.hash);
      expect((await calibration({ text: first, shares: [2], ...options })).hash).toBe(
        (await calibration({ text: first, ...options })).hash,
      );
    });

    test.each([
      [8, [3, 1], [6, 2]],
      [32, [0.7, 0.3], [22, 10]],
      [10, [1, 1, 1], [4, 3, 3]],
      [3, [1000, 1, 1], [1, 1, 1]],
      [5, [0.9, 0.1], [4, 1]],
      [1e15, [1, 3], [25e13, 75e13]],
      [1000, [500, 1, 1, 1, 1, 1, 1, 1, 1, 1], [982, 2, 2, 2, 2, 2, 2, 2, 2, 2]],
    ])('%i windows by %j are %j', (windows, shares, counts) => {
      expect(divideWindows(windows, shares)).toEqual(counts);
    });

    test.each<[string, Partial<CalibrationOptions>, string]>([
      ['a share too few', { shares: [1] }, 'a number for each of the 2 texts for shares'],
      ['no list', { shares: 3 as unknown as number[] }, 'a number for each of the 2 texts for shares'],
      ['nothing of a text', { shares: [1, 0] }, 'numbers above 0 for shares'],
      ['NaN', { shares: [Number.NaN, 1] }, 'numbers above 0 for shares'],
      ['one window', { shares: [1, 1], windows: 1 }, 'at least one for each of 2 texts for windows'],
      ['documents', { text: documents(speech), shares: [1] }, 'a number for each of the 0 texts for shares'],
    ])('%s is refused', async (_what, given, message) => {
      const text = await two();
      const refusal = { code: 'INVALID_ARGUMENT', message: expect.stringContaining(message) };
      await expect(calibration({ text, ...options, ...given })).rejects.toMatchObject(refusal);
    });

    test('a text shorter than a window is refused', async () => {
      const [first] = await two();
      const short = join(folder, 'short.txt');
      await writeFile(short, speech.slice(0, 300));
      await expect(
        calibration({ text: [first, short], shares: [1, 1], ...options, length: 512 }),
      ).rejects.toMatchObject({
        code: 'INVALID_TEXT',
        message: expect.stringMatching(/windows of different lengths: 512 tokens, and \d+ of text 1/),
      });
    });

    test('token ids beside a text: their first windows', async () => {
      const [first] = await two();
      const ids = join(folder, 'ids.json');
      const windows = Array.from({ length: 5 }, (_, w) => Array.from({ length: 64 }, (_, t) => (w * 64 + t) % 300));
      await writeFile(ids, JSON.stringify({ calibration: windows }));
      const mix = await calibration({ text: [first, ids], shares: [5, 3], ...options });
      const text = await calibration({ text: first, ...options, windows: 5 });
      expect([...mix.tokens]).toEqual([...text.tokens, ...windows.slice(0, 3).flat()]);
      expect(mix).toMatchObject({ windows: 8, length: 64 });
      expect(mix.note).toBeUndefined();
      // As many as there are.
      const short = await calibration({ text: [first, ids], shares: [1, 7], ...options });
      expect(short).toMatchObject({ windows: 6, note: `${ids} has 5 windows, not 7` });
      await expect(calibration({ text: [first, ids], shares: [1, 1], ...options, length: 32 })).rejects.toMatchObject({
        code: 'INVALID_TEXT',
        message: expect.stringContaining('windows of different lengths: 32 tokens, and 64 of text 1'),
      });
    });
  });

  test('a length beyond the model is capped, and said', async () => {
    const result = await calibration({ text: documents(speech), windows: 1, length: 200_000 });
    expect(result.length).toBeLessThanOrEqual(131_072);
    expect(result.note).toContain("windows are capped at the model's 131072 positions, not 200000");
  });

  test('an abort', async () => {
    const text = documents(speech);
    await expect(calibration({ text }, AbortSignal.abort())).rejects.toMatchObject({ code: 'ABORTED' });
  });
});

describe('token ids', () => {
  test('are taken as they are', async () => {
    const ids = [Uint32Array.of(1, 2, 3), [4, 5, 299]];
    const result = await calibration({ tokenIds: ids });
    expect(result).toMatchObject({ windows: 2, length: 3 });
    expect([...result.tokens]).toEqual([1, 2, 3, 4, 5, 299]);
    const path = join(folder, 'tokens.json');
    await writeFile(path, JSON.stringify({ calibration: ids.map((row) => [...row]), evaluation: [[7, 8, 9]] }));
    expect(await calibration({ text: path })).toEqual(result);
    expect([...(await loadEvaluationWindows(folder, config, { text: path })).tokens]).toEqual([7, 8, 9]);
  });

  test('the first windows of them, where a number is given; what differs from the request is said', async () => {
    const ids = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]; // biome-ignore format: a list
    const path = join(folder, 'some.json');
    await writeFile(path, JSON.stringify(ids));
    for (const [name, source] of [
      ['tokenIds', { tokenIds: ids }],
      [path, { text: path }],
    ] as const) {
      const two = await calibration({ ...source, windows: 2 });
      expect(two).toEqual(await calibration({ tokenIds: ids.slice(0, 2) }));
      expect(two.note).toBeUndefined();
      expect(await calibration({ ...source, windows: 3, length: 3 })).toEqual(await calibration(source));
      const differs = await calibration({ ...source, windows: 128, length: 64 });
      expect(differs).toMatchObject({ windows: 3, length: 3 });
      expect(differs.note).toBe(`${name} has windows of 3 tokens, not 64; ${name} has 3 windows, not 128`);
    }
  });

  test.each<[string, unknown, RegExp]>([
    ['beyond the vocabulary', [[1, 300]], /window 0 has the token id 300; the model's vocabulary has 300/],
    ['negative', [[1, -1]], /token id -1/],
    ['fractional', [[1, 0.5]], /token id 0.5/],
    ['ragged', [[1, 2], [1]], /window 1 has 1 token ids/],
    ['too short', [[1]], /at least 2/],
    ['not lists', [5, 6], /window 0/],
  ])('refuses ids that are %s', (_, ids, message) => {
    expect(() => windowsOfIds(ids, 300, 'tokenIds')).toThrow(expect.objectContaining(refused('INVALID_TEXT', message)));
  });

  test('a file that is not JSON or has no such list', async () => {
    const path = join(folder, 'broken.json');
    await writeFile(path, '{"calibration":[[1,2]');
    await expect(calibration({ text: path })).rejects.toMatchObject(refused('INVALID_TEXT', /not JSON/));
    await writeFile(path, '{"other":[[1,2]]}');
    await expect(calibration({ text: path })).rejects.toMatchObject(
      refused('INVALID_TEXT', /that has one as "calibration"/),
    );
    await expect(calibration({ text: join(folder, 'absent.json') })).rejects.toMatchObject(
      refused('FILE_SYSTEM', /no such file or directory/),
    );
  });

  test('a file of one purpose that is asked for the other is told what it lacks', async () => {
    const path = join(folder, 'one-purpose.json');
    await writeFile(path, '{"calibration":[[1,2]]}');
    await expect(loadEvaluationWindows(folder, config, { text: path })).rejects.toMatchObject(
      refused('INVALID_TEXT', /or an object that has one as "evaluation", but found an object with calibration$/),
    );
    await writeFile(path, '5');
    await expect(calibration({ text: path })).rejects.toMatchObject(refused('INVALID_TEXT', /but found 5$/));
  });

  test('a file beside others is sent to shares, or to be alone', async () => {
    const paths = ['one.json', 'two.json'].map((name) => join(folder, name));
    for (const path of paths) await writeFile(path, '[[1,2]]');
    await expect(calibration({ text: paths })).rejects.toMatchObject(
      refused(
        'INVALID_TEXT',
        /one.json holds token ids, which are not joined .*: give it alone, or each its share \(shares/,
      ),
    );
    expect(await calibration({ text: paths, shares: [1, 1], windows: 2 })).toMatchObject({ windows: 2 });
    await expect(loadEvaluationWindows(folder, config, { text: paths })).rejects.toMatchObject(
      refused('INVALID_TEXT', /give it alone$/),
    );
  });

  test('a file that is not UTF-8, a pipe, one that is too large, an abort', async () => {
    const path = join(folder, 'odd.json');
    await writeFile(path, Buffer.from('[[1,2]]\xff', 'latin1'));
    await expect(calibration({ text: path })).rejects.toMatchObject(refused('INVALID_TEXT', /not UTF-8 at byte 7/));
    await writeFile(path, '\uFEFF[[1,2]]');
    expect(await calibration({ text: path })).toMatchObject({ windows: 1 });
    await expect(calibration({ text: path }, AbortSignal.abort())).rejects.toMatchObject({ code: 'ABORTED' });
    await truncate(path, 2 ** 28 + 2 ** 20);
    await expect(calibration({ text: path })).rejects.toMatchObject(
      refused('INVALID_TEXT', /more than 268435456 characters of token ids/),
    );
    await rm(path);
    execFileSync('mkfifo', [path]);
    await expect(calibration({ text: path })).rejects.toMatchObject(refused('INVALID_TEXT', /not a regular file/));
  });

  test('a text whose ids the model does not have', async () => {
    const small = { ...config, vocabulary: 200 } as DecoderConfig;
    await expect(loadCalibration(folder, small, { text: documents(speech) })).rejects.toMatchObject(
      refused('INVALID_TEXT', /Token id \d+ .* outside the model's vocabulary of 200/),
    );
  });
});

describe('evaluation', () => {
  test('floor(n / length) windows without overlap, of the text tokenised once', async () => {
    const tokenizer = await loadTokenizer(folder);
    const ids = tokenizer.encode(`${speech}\n\nthe end`);
    const result = await loadEvaluationWindows(folder, config, { text: documents(speech, 'the end'), length: 100 });
    expect(result.windows).toBe(Math.floor(ids.length / 100));
    expect(result.tokens).toEqual(ids.slice(0, result.windows * 100));
    const some = await loadEvaluationWindows(folder, config, { text: documents(speech), length: 100, windows: 3 });
    expect(some.tokens).toEqual(ids.slice(0, 300));
  });

  test('a short text is one window; one token is none', async () => {
    const short = await consecutiveWindows(counting(50, 7), { length: 2048, maxTokens: 1e6 });
    expect(short).toMatchObject({ windows: 1, length: 50, note: expect.stringMatching(/only 50 tokens/) });
    await expect(consecutiveWindows(counting(1, 1), { length: 8, maxTokens: 1e6 })).rejects.toMatchObject({
      code: 'INVALID_TEXT',
    });
  });

  test('an endless text is refused, or read as far as the windows go', async () => {
    const endless = () => counting(Number.POSITIVE_INFINITY, 512);
    await expect(consecutiveWindows(endless(), { length: 8, maxTokens: 10_000 })).rejects.toMatchObject(
      refused('INVALID_TEXT', /more than 10000 tokens/),
    );
    expect(await consecutiveWindows(endless(), { length: 8, windows: 3, maxTokens: 10_000 })).toMatchObject({
      windows: 3,
    });
  });
});
