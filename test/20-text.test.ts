import { execFileSync } from 'node:child_process';
import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { gzipSync } from 'node:zlib';
import { joinedText, readText, type TextOptions, type TextSource } from '../src/calibration/text.js';
import { countTurns } from './helpers/turns.js';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'alps-text-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function file(name: string, content: string | Uint8Array): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, content);
  return path;
}

async function documents(source: TextSource, options?: TextOptions): Promise<string[]> {
  const all: string[] = [];
  let text = '';
  for await (const part of readText(source, options)) {
    text += part.text;
    if (!part.end) continue;
    all.push(text);
    text = '';
  }
  return all;
}

const fixture = (name: string) => join('test/fixtures/text', name);
const refused = (code: string, message: RegExp) => ({ code, message: expect.stringMatching(message) });

describe('documents', () => {
  test('.txt is one document; CRLF stays, a byte order mark does not', async () => {
    expect(await documents(await file('a.txt', '\uFEFFone\r\ntwo \uFEFF\n'))).toEqual(['one\r\ntwo \uFEFF\n']);
  });

  test('.jsonl: one object a line, with or without a last line end, empty lines and nulls skipped', async () => {
    const path = await file('a.jsonl', '{"text":"one"}\r\n\n{"text":null}\n{"text":""}\n{"text":"two\\n","id":2}');
    expect(await documents(path)).toEqual(['one', 'two\n']);
    expect(await documents(await file('b.ndjson', '{"body":"x"}\n'), { field: 'body' })).toEqual(['x']);
  });

  test('.gz of each, several members too', async () => {
    const members = Buffer.concat([gzipSync('one '), gzipSync('two')]);
    expect(await documents(await file('a.txt.gz', members))).toEqual(['one two']);
    expect(await documents(await file('a.json.gz', gzipSync('{"text":"x"}\n{"text":"y"}\n')))).toEqual(['x', 'y']);
  });

  test.each(['nulls-snappy.parquet', 'nulls-zstd.parquet'])('%s: nulls are skipped', async (name) => {
    const expected = ['first document', 'second\r\ndocument', 'na\u00EFve \u4F60\u597D \u{1F600}', 'last'];
    expect(await documents(fixture(name))).toEqual(expected);
  });

  test('zeros behind a gzip file are padding', async () => {
    const padded = Buffer.concat([gzipSync('one'), Buffer.alloc(300_000)]);
    expect(await documents(await file('padded.txt.gz', padded))).toEqual(['one']);
  });

  test('strings, from an iterable or an asynchronous one', async () => {
    async function* generate() {
      yield 'a';
      yield 'b';
    }
    expect(await documents({ documents: ['a', '', 'b'] })).toEqual(['a', 'b']);
    expect(await documents(generate())).toEqual(['a', 'b']);
    expect(await documents({ documents: generate() })).toEqual(['a', 'b']);
  });

  test('several files are joined by a blank line', async () => {
    const paths = [
      await file('1.txt', 'one'),
      await file('2.txt', ''),
      await file('3.jsonl', '{"text":"three"}\n{"text":"four"}'),
    ];
    let joined = '';
    for await (const part of joinedText(paths)) joined += part;
    expect(joined).toBe('one\n\nthree\n\nfour');
  });

  test('characters cut by the chunks of the file are whole', async () => {
    const text = `a${'\u{1F600}\u00E9\u4F60'.repeat(60_000)}`;
    expect(await documents(await file('wide.txt', text))).toEqual([text]);
    expect(await documents(await file('wide.txt.gz', gzipSync(text)))).toEqual([text]);
  });

  test('one giant line comes in pieces of bounded size', async () => {
    let longest = 0;
    let total = 0;
    for await (const { text } of readText(await file('giant.txt', 'x'.repeat(5_000_000)))) {
      longest = Math.max(longest, text.length);
      total += text.length;
    }
    expect(total).toBe(5_000_000);
    expect(longest).toBeLessThanOrEqual(256 * 1024);
  });

  test('while a row group of many rows is read the event loop turns, and an abort ends it', async () => {
    const turns = countTurns();
    expect(await documents(fixture('many-rows.parquet'))).toHaveLength(400_000);
    expect(turns()).toBeGreaterThan(20);
    const controller = new AbortController();
    let count = 0;
    const reading = (async () => {
      for await (const _ of readText(fixture('many-rows.parquet'), { signal: controller.signal }))
        if (++count === 1) setTimeout(() => controller.abort());
    })();
    await expect(reading).rejects.toMatchObject({ code: 'ABORTED' });
    expect(count).toBeLessThan(400_000);
  });

  test('a gzip bomb is read only as far as it is asked for', async () => {
    const path = await file('bomb.txt.gz', gzipSync(Buffer.alloc(300e6)));
    const before = process.memoryUsage().rss;
    let read = 0;
    for await (const { text } of readText(path)) {
      read += text.length;
      if (read > 1e6) break;
    }
    expect(read).toBeLessThan(2e6);
    expect(process.memoryUsage().rss - before).toBeLessThan(100e6);
  });
});

describe('complaints', () => {
  test.each(['empty.txt', 'empty.jsonl', 'empty.txt.gz'])('%s', async (name) => {
    const path = await file(name, name.endsWith('.gz') ? gzipSync('') : '');
    await expect(documents(path)).rejects.toMatchObject(refused('INVALID_TEXT', /has no text/));
  });

  test('nothing but empty documents', async () => {
    await expect(documents({ documents: ['', ''] })).rejects.toMatchObject(
      refused('INVALID_TEXT', /documents has no text/),
    );
    await expect(documents(await file('0.txt.gz', ''))).rejects.toMatchObject(refused('INVALID_TEXT', /0.txt.gz/));
  });

  test.each<[string, number[], number]>([
    ['a stray byte', [0x61, 0xff, 0x62], 1],
    ['a lone continuation', [0x61, 0x62, 0x80], 2],
    ['an overlong form', [0x61, 0xc0, 0xaf], 1],
    ['a surrogate', [0xed, 0xa0, 0x80], 0],
    ['a cut character at the end', [0x61, 0xf0, 0x9f, 0x98], 1],
    ['UTF-16', [0xff, 0xfe, 0x61, 0x00], 0],
  ])('UTF-8: %s', async (name, bytes, position) => {
    const path = await file(`${name}.txt`, Uint8Array.from(bytes));
    await expect(documents(path)).rejects.toMatchObject(
      refused('INVALID_TEXT', new RegExp(`not UTF-8 at byte ${position}:`)),
    );
  });

  test('UTF-8: the position counts from the start of the file', async () => {
    const bytes = Buffer.from('\u00E9'.repeat(400_001));
    bytes[800_000] = 0xff;
    await expect(documents(await file('far.txt', bytes))).rejects.toMatchObject(
      refused('INVALID_TEXT', /at byte 800000:/),
    );
  });

  test.each<[string, string, RegExp]>([
    ['bad', '{"text":"a"}\n\n{"text":', /line 3: not JSON/],
    ['number', '{"text":"a"}\n5\n', /line 2: not a JSON object/],
    [
      'field',
      '{"text":"a"}\n{"body":"b","id":1}\n',
      /line 2: there is no string in the field "text" \(fields: body, id\)/,
    ],
    ['type', '{"text":5}\n', /line 1: there is no string/],
    ['inherited', '{"id":5}\n', /line 1/],
  ])('JSON lines: %s', async (name, content, message) => {
    await expect(documents(await file(`${name}.jsonl`, content))).rejects.toMatchObject(
      refused('INVALID_TEXT', message),
    );
  });

  test('a JSON line without end', async () => {
    const path = await file('endless.jsonl.gz', gzipSync(Buffer.alloc(70 << 20, 'a')));
    await expect(documents(path)).rejects.toMatchObject(
      refused('INVALID_TEXT', /line 1: more than 67108864 characters/),
    );
  });

  test('a row of text without end', async () => {
    const path = await file('row.txt.gz', gzipSync(`one\n${'a'.repeat(70 << 20)}`));
    await expect(documents(path, { rows: true })).rejects.toMatchObject(
      refused('INVALID_TEXT', /line 2: more than 67108864 characters/),
    );
  });

  test('a file that is shortened while it is read', async () => {
    const path = await file('shortened.txt', 'word '.repeat(400_000));
    const reading = (async () => {
      for await (const _ of readText(path)) await truncate(path, 1000);
    })();
    await expect(reading).rejects.toMatchObject(refused('INVALID_TEXT', /was shortened while it was read/));
  });

  test('a gzip member behind zeros', async () => {
    const path = await file('behind.txt.gz', Buffer.concat([gzipSync('one '), Buffer.alloc(512), gzipSync('two')]));
    await expect(documents(path)).rejects.toMatchObject(refused('INVALID_TEXT', /has more behind the zeros at byte/));
  });

  test('token ids in a file that is taken for JSON lines', async () => {
    for (const ids of ['[[1,2]]', '{"calibration":[[1,2]]}']) {
      await expect(documents(await file('ids.json.gz', gzipSync(ids)))).rejects.toMatchObject(
        refused('INVALID_TEXT', /; token ids are read from .json, not from .json.gz/),
      );
    }
  });

  test('truncated and damaged gzip', async () => {
    const whole = gzipSync(Array.from({ length: 20_000 }, (_, i) => String(i * 7919)).join(' '));
    const cut = await file('cut.txt.gz', whole.subarray(0, whole.length - 100));
    await expect(documents(cut)).rejects.toMatchObject(refused('INVALID_TEXT', /not a whole gzip file/));
    const wrong = await file('wrong.txt.gz', 'plain text');
    await expect(documents(wrong)).rejects.toMatchObject(refused('INVALID_TEXT', /not a whole gzip file/));
  });

  test('parquet: no such column, not text, not UTF-8, not parquet', async () => {
    await expect(documents(fixture('no-text.parquet'))).rejects.toMatchObject(
      refused('INVALID_TEXT', /no column "text". Its columns are: content, number/),
    );
    await expect(documents(fixture('no-text.parquet'), { field: 'number' })).rejects.toMatchObject(
      refused('INVALID_TEXT', /does not hold strings/),
    );
    await expect(documents(fixture('json-column.parquet'))).rejects.toMatchObject(
      refused('INVALID_TEXT', /does not hold strings but JSON/),
    );
    await expect(documents(fixture('invalid-utf8.parquet'))).rejects.toMatchObject(refused('INVALID_TEXT', /parquet/));
    for (const content of ['', 'PAR1', 'no parquet at all', `PAR1${'\xff'.repeat(20)}PAR1`]) {
      const path = await file('not.parquet', Buffer.from(content, 'latin1'));
      await expect(documents(path)).rejects.toMatchObject(refused('INVALID_TEXT', /could not be read as parquet/));
    }
  });

  test('files that are not there, not files, not known', async () => {
    await expect(documents(join(folder, 'absent.txt'))).rejects.toMatchObject(
      refused('FILE_SYSTEM', /absent.txt: no such file or directory/),
    );
    const fifo = join(folder, 'fifo.txt');
    execFileSync('mkfifo', [fifo]);
    await expect(documents(fifo)).rejects.toMatchObject(refused('INVALID_TEXT', /not a regular file/));
    await expect(documents(await file('a.docx', 'x'))).rejects.toMatchObject(
      refused('INVALID_TEXT', /\.txt, .*\.parquet/),
    );
  });

  test.each<[unknown]>([[5], [null], [undefined], [[]], [['']], [[5]], [{}], [{ documents: 'text' }]])(
    'not a source: %j',
    async (source) => {
      await expect(documents(source as TextSource)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    },
  );

  test('a document that is not a string', async () => {
    const source = { documents: ['a', 5 as unknown as string] };
    await expect(documents(source)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  test.each(['never answers', 'answers without end'])('an abort while a source %s', async (kind) => {
    let isReturned = false;
    const never = {
      [Symbol.asyncIterator]: () => ({
        next: () => new Promise<never>(() => {}),
        return: async () => {
          isReturned = true;
          return { done: true as const, value: undefined };
        },
      }),
    };
    function* endless() {
      try {
        while (true) yield '';
      } finally {
        isReturned = true;
      }
    }
    const documents: AsyncIterable<string> | Iterable<string> = kind === 'never answers' ? never : endless();
    const reading = (async () => {
      for await (const _ of readText({ documents }, { signal: AbortSignal.timeout(20) }));
    })();
    await expect(reading).rejects.toMatchObject({ code: 'ABORTED' });
    expect(isReturned).toBe(true);
  });

  test('a source is closed by a reader that stops early, and not when it ended or failed by itself', async () => {
    let closed = 0;
    const source = (end: 'ends' | 'fails') => ({
      [Symbol.asyncIterator]() {
        let count = 0;
        return {
          next: async () => {
            if (++count === 3 && end === 'fails') throw new Error('broken');
            return count < 3 ? { done: false as const, value: 'text' } : { done: true as const, value: undefined };
          },
          return: async () => {
            await setImmediate();
            closed++;
            return { done: true as const, value: undefined };
          },
        };
      },
    });
    for await (const _ of readText(source('ends'))) break;
    expect(closed).toBe(1);
    for await (const _ of readText(source('ends')));
    const failing = (async () => {
      for await (const _ of readText(source('fails')));
    })();
    await expect(failing).rejects.toThrow('broken');
    expect(closed).toBe(1);
  });

  test('an abort', async () => {
    const signal = AbortSignal.abort();
    const sources = [await file('abort.txt', 'x'), fixture('nulls-snappy.parquet'), { documents: ['x'] }];
    for (const source of sources) {
      await expect(documents(source, { signal })).rejects.toMatchObject({ code: 'ABORTED' });
    }
  });
});
