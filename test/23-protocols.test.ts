import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { loadEvaluationWindows } from '../src/calibration/calibration.js';
import type { PerplexityProtocol } from '../src/calibration/protocols.js';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { describeProtocol } from '../src/evaluate.js';
import { readArchitecture } from '../src/model/decoder.js';
import { loadTokenizer } from '../src/model/tokenizer.js';

const bundled = fileURLToPath(new URL('../models/union-4m', import.meta.url));

// A copy of the bundled model whose tokenizer puts a special token before every text, as Llama's does.
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'alps-protocols-'));
  await cp(bundled, folder, { recursive: true });
  const path = join(folder, 'tokenizer.json');
  const tokenizer = JSON.parse(await readFile(path, 'utf8'));
  const [first] = Object.entries<number>(tokenizer.model.vocab).sort((a, b) => a[1] - b[1])[0]!;
  tokenizer.post_processor = {
    type: 'TemplateProcessing',
    single: [{ SpecialToken: { id: first, type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
    pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
    special_tokens: { [first]: { id: first, ids: [tokenizer.model.vocab[first]], tokens: [first] } },
  };
  await writeFile(path, JSON.stringify(tokenizer));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function windowsOf(protocol: PerplexityProtocol, file: string, length = 16) {
  const checkpoint = await Checkpoint.open(folder);
  const { config } = readArchitecture(checkpoint);
  await checkpoint.close();
  return loadEvaluationWindows(folder, config, { text: file, protocol, length });
}
/** The tokens of a text as the published scripts have them: one call of the tokenizer, whole windows of them. */
async function published(text: string, windows = Number.POSITIVE_INFINITY, length = 16) {
  const tokenizer = await loadTokenizer(folder);
  const ids = [...tokenizer.prefix, ...tokenizer.encode(text)];
  return ids.slice(0, Math.min(Math.floor(ids.length / length), windows) * length);
}
const write = async (name: string, content: string | Uint8Array) => {
  const path = join(folder, name);
  await writeFile(path, content);
  return path;
};

const sentences = Array.from({ length: 40 }, (_, i) => ` The state number ${i} sends two senators to the Congress . `);

test('WikiText-2: all rows, the empty ones too, joined by a blank line, with the special token', async () => {
  const lines = ['', ' = The Union = ', '', ...sentences, ' ', ''];
  const rows = lines.slice(0, -1).map((line) => (line.trim() === '' ? '' : `${line}\n`));
  const expected = await published(rows.join('\n\n'));
  const raw = await windowsOf('wikitext2', await write('wiki.test.raw', lines.join('\n')));
  expect(Array.from(raw.tokens)).toEqual(expected);
  const records = rows.map((text) => JSON.stringify({ text })).join('\n');
  const same = await windowsOf('wikitext2', await write('wiki.jsonl', records));
  expect(Array.from(same.tokens)).toEqual(expected);
});

test('PTB: sentences joined by a space, from lines or from the field "sentence"', async () => {
  const expected = await published(sentences.map((s) => s.trim()).join(' '));
  const lines = await windowsOf('ptb', await write('ptb.test.txt', `${sentences.join('\n')}\n`));
  expect(Array.from(lines.tokens)).toEqual(expected);
  const records = sentences.map((sentence) => JSON.stringify({ sentence: sentence.trim() })).join('\n');
  const same = await windowsOf('ptb', await write('ptb.jsonl', records));
  expect(Array.from(same.tokens)).toEqual(expected);
});

test('C4: the first 1100 documents joined by a space, at most 256 windows', async () => {
  const documents = Array.from({ length: 1200 }, (_, i) => `Document ${i}.`);
  const file = await write('c4.json.gz', gzipSync(documents.map((text) => JSON.stringify({ text })).join('\n')));
  const windows = await windowsOf('c4', file);
  expect(windows.windows).toBe(256);
  expect(Array.from(windows.tokens)).toEqual(await published(documents.slice(0, 1100).join(' '), 256));
  const long = await windowsOf('c4', file, 60);
  expect(Array.from(long.tokens)).toEqual(await published(documents.slice(0, 1100).join(' '), 256, 60));
});

test('without a protocol: no special token, no empty documents', async () => {
  const file = await write(
    'plain.jsonl',
    ['One document.', '', 'Another one of the speeches of the Union.']
      .map((text) => JSON.stringify({ text }))
      .join('\n'),
  );
  const tokenizer = await loadTokenizer(folder);
  const expected = tokenizer.encode('One document.\n\nAnother one of the speeches of the Union.');
  const windows = await windowsOf('text', file, 4);
  expect(Array.from(windows.tokens)).toEqual(Array.from(expected.subarray(0, windows.tokens.length)));
});

test('token ids are as they are: no protocol made them', async () => {
  const file = await write('ids.json', JSON.stringify([[1, 2, 3, 4]]));
  expect(describeProtocol(await windowsOf('text', file))).toMatch(/^token ids as given, 1 windows of 4 tokens/);
  for (const [protocol, message] of [
    ['wikitext2', 'which holds token ids'],
    ['lm1b', 'for protocol but received "lm1b"'],
  ])
    await expect(windowsOf(protocol as never, file)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(message!),
    });
});

test('an unknown protocol is refused', async () => {
  await expect(windowsOf('lm1b' as never, 'x.txt')).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining('Expected "text" or "wikitext2" or "ptb" or "c4" for protocol'),
  });
});
