import { spawnSync } from 'node:child_process';
import { cp, mkdir, open, readdir, readFile, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { Device } from '../src/device/device.js';
import { evaluatePerplexity } from '../src/evaluate.js';
import { DecoderModel } from '../src/model/decoder.js';
import { loadTokenizer } from '../src/model/tokenizer.js';
import { prune } from '../src/prune.js';
import { codeOf } from './helpers/properties.js';
import { failure, temporaryFolder } from './helpers/safetensors-files.js';
import { tinyTokenizer, writeTokenizer } from './helpers/tokenizers.js';

// Nothing in a model folder makes the package read or write elsewhere, wait for ever, or take memory without bound.

const fixture = (name: string) => fileURLToPath(new URL(`fixtures/models/${name}`, import.meta.url));
const tokenIds = Array.from({ length: 2 }, (_, w) => Array.from({ length: 8 }, (_, i) => 5 * w + i));

let folder: string;
let model: string;
beforeEach(async () => {
  folder = await temporaryFolder();
  model = join(folder, 'model');
  await cp(fixture('llama-plain'), model, { recursive: true });
});

const opening = async (): Promise<unknown> => {
  const checkpoint = await Checkpoint.open(model);
  using stream = Device.open('cpu').stream();
  try {
    return DecoderModel.open(checkpoint, stream);
  } finally {
    await checkpoint.close();
  }
};
const pruning = () => prune({ model, out: join(folder, 'out'), sparsity: 0.5, calibration: { tokenIds } });

async function changeConfig(change: object): Promise<void> {
  const path = join(model, 'config.json');
  await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, 'utf8')), ...change }));
}

describe('numbers in config.json that ask for too much', () => {
  const keys: Record<string, string[]> = {
    'llama-plain': [
      'num_hidden_layers',
      'vocab_size',
      'hidden_size',
      'intermediate_size',
      'num_attention_heads',
      'head_dim',
    ],
    gemma2: ['num_hidden_layers', 'vocab_size', 'head_dim'],
    gpt2: ['n_layer', 'n_embd', 'n_positions', 'vocab_size'],
    'opt-pre': ['num_hidden_layers', 'ffn_dim', 'max_position_embeddings', 'word_embed_proj_dim'],
    mixtral: ['num_hidden_layers', 'num_local_experts', 'num_experts_per_tok'],
    'qwen3-moe': ['num_hidden_layers', 'num_experts', 'moe_intermediate_size', 'num_experts_per_tok'],
    'qwen3-moe-fused': ['num_experts'],
  };
  const cases = Object.entries(keys).flatMap(([name, list]) => list.map((key) => [name, key]));

  test.each(cases)('%s, %s: refused before anything is made of them', async (name, key) => {
    await cp(fixture(name), model, { recursive: true, force: true });
    const before = process.memoryUsage().rss;
    for (const value of [2 ** 16, 2 ** 31, 2 ** 32 - 1, 2 ** 40, 2 ** 53, 1e300, '9'.repeat(1000)]) {
      await changeConfig({ [key]: value });
      expect(await failure(opening())).toMatchObject({ code: 'INVALID_CHECKPOINT' });
    }
    expect(process.memoryUsage().rss - before).toBeLessThan(512 * 2 ** 20);
  });

  test.each([
    [{ max_position_embeddings: 2 ** 40 }],
    [{ model_type: 'mistral', sliding_window: 2 ** 40 }],
    [{ model_type: 'mistral', sliding_window: 2 ** 31 }],
  ])('%j is more than there are tokens, and changes nothing', async (change) => {
    const text = join(folder, 'ids.json');
    await writeFile(text, JSON.stringify(tokenIds));
    const expected = await evaluatePerplexity({ model, text });
    await changeConfig(change);
    expect((await evaluatePerplexity({ model, text })).perplexity).toBe(expected.perplexity);
  });

  test('a file with holes of a terabyte, as config.json asks: no memory for it', async () => {
    const path = join(model, 'model.safetensors');
    const bytes = await readFile(path);
    const length = Number(bytes.readBigUInt64LE());
    const header = JSON.parse(bytes.toString('utf8', 8, 8 + length));
    const rows = 2 ** 32; // × 48 × 4 bytes
    const names = Object.keys(header).filter((name) => name !== '__metadata__');
    let end = 0;
    for (const name of names) {
      const entry = header[name];
      if (/embed_tokens|lm_head/.test(name)) entry.shape[0] = rows;
      const size = entry.shape.reduce((product: number, d: number) => product * d, 4);
      entry.data_offsets = [end, end + size];
      end += size;
    }
    const text = Buffer.from(JSON.stringify(header));
    const start = Buffer.alloc(8);
    start.writeBigUInt64LE(BigInt(text.length));
    await writeFile(path, Buffer.concat([start, text]));
    await truncate(path, 8 + text.length + end);
    await changeConfig({ vocab_size: rows });
    expect(await failure(pruning())).toMatchObject({
      code: 'OUT_OF_MEMORY',
      message: expect.stringContaining('embed_tokens'),
    });
    expect((await readdir(folder)).sort()).toEqual(['model']);
  });
});

describe('JSON files', () => {
  const files = ['config.json', 'model.safetensors.index.json', 'tokenizer.json', 'tokenizer_config.json'];
  const reading = (name: string): Promise<unknown> => (name.startsWith('tokenizer') ? loadTokenizer(model) : opening());
  const prepare = async (name: string) => {
    if (name.startsWith('tokenizer')) await writeTokenizer(model, tinyTokenizer('llama3'));
    if (name.includes('index')) spawnSync('rm', [join(model, 'model.safetensors')]);
  };

  test.each(files)('%s of 1 GiB, most of it a hole', async (name) => {
    await prepare(name);
    await writeFile(join(model, name), '{');
    await truncate(join(model, name), 2 ** 30);
    const before = process.memoryUsage().rss;
    expect(await failure(reading(name))).toEqual({
      code: 'INVALID_CHECKPOINT',
      message: expect.stringMatching(new RegExp(`${name} has 1073741824 bytes, more than the limit of \\d+$`)),
    });
    expect(process.memoryUsage().rss - before).toBeLessThan(128 * 2 ** 20);
  });

  test.each([
    ['config.json', 'model_type'],
    ['model.safetensors.index.json', 'weight_map'],
    ['tokenizer.json', 'normalizer'],
    ['tokenizer.json', 'pre_tokenizer'],
    ['tokenizer.json', 'added_tokens'],
    ['tokenizer_config.json', 'bos_token'],
  ])('%s with lists or objects nested 300,000 times, also in %s', async (name, key) => {
    await prepare(name);
    const count = 300_000;
    for (const [left, right] of [
      ['[', ']'],
      ['{"a":', '}'],
    ] as const) {
      const value = `${left.repeat(count)}1${right.repeat(count)}`;
      for (const content of [left.repeat(count), value, `{"${key}":${value}}`]) {
        await writeFile(join(model, name), content);
        const whatItIs = await codeOf(() => reading(name));
        // What means nothing is not looked at: a begin of text that is no text is none.
        if (key !== 'bos_token') expect(whatItIs).toMatch(/^(INVALID_CHECKPOINT|UNSUPPORTED_MODEL)$/);
      }
    }
  });

  test.each([...files, 'model.safetensors'])('%s that is a named pipe, a device or a folder', async (name) => {
    await prepare(name);
    const path = join(model, name);
    const kinds: (() => unknown)[] = [
      () => spawnSync('mkfifo', [path]),
      () => symlink('/dev/zero', path),
      () => symlink('/dev/stdin', path),
      () => mkdir(path),
    ];
    for (const make of kinds) {
      spawnSync('rm', ['-rf', path]);
      await make();
      expect(await failure(reading(name))).toMatchObject({
        code: expect.stringMatching(/^(INVALID_CHECKPOINT|FILE_SYSTEM)$/),
      });
    }
  });

  test('sequences of pre-tokenizers inside each other', async () => {
    for (const [key, list] of [
      ['pre_tokenizer', 'pretokenizers'],
      ['normalizer', 'normalizers'],
    ] as const) {
      const part = `${`{"type":"Sequence","${list}":[`.repeat(50_000)}{"type":"Digits"}${']}'.repeat(50_000)}`;
      const { [key]: _, ...rest } = tinyTokenizer('gpt2');
      await writeTokenizer(model, JSON.stringify(rest).replace(/^\{/, `{"${key}":${part},`));
      expect(await failure(loadTokenizer(model))).toMatchObject({ code: 'INVALID_CHECKPOINT' });
    }
  });
});

describe('links', () => {
  test.each(['notes.txt', 'generation_config.json', 'tokenizer.json', 'pruning.json'])(
    '%s that leads elsewhere is not copied to the output: the model is refused',
    async (name) => {
      await writeFile(join(folder, 'secret'), '{"secret":1}');
      for (const target of ['../secret', join(folder, 'secret'), '/etc/hostname']) {
        spawnSync('rm', ['-f', join(model, name)]);
        await symlink(target, join(model, name));
        expect(await failure(pruning())).toMatchObject({
          code: 'INVALID_CHECKPOINT',
          message: expect.stringContaining(`${name} is a symbolic link to /`),
        });
      }
      expect((await readdir(folder)).sort()).toEqual(['model', 'secret']);
    },
  );

  test('a cache made of links is read, and the output holds plain files; links inside the folder too', async () => {
    const [blobs, snapshot] = [join(folder, 'blobs'), join(folder, 'snapshots', 'a')];
    await mkdir(snapshot, { recursive: true });
    await mkdir(blobs);
    await writeFile(join(model, 'notes.txt'), 'kept');
    for (const name of ['config.json', 'model.safetensors', 'notes.txt']) {
      await cp(join(model, name), join(blobs, `digest-of-${name}`));
      await symlink(`../../blobs/digest-of-${name}`, join(snapshot, name));
    }
    await symlink('notes.txt', join(snapshot, 'README.md'));
    model = snapshot;
    await pruning();
    const out = await open(join(folder, 'out', 'notes.txt'));
    expect((await out.stat()).isFile()).toBe(true);
    await out.close();
    expect(await readFile(join(folder, 'out', 'README.md'), 'utf8')).toBe('kept');
  });

  test('subfolders and hidden files are not copied', async () => {
    await mkdir(join(model, 'code'));
    await writeFile(join(model, 'code', 'x.py'), '');
    await writeFile(join(model, '.env'), 'secret');
    await symlink('/etc', join(model, 'etc'));
    await pruning();
    expect(await readdir(join(folder, 'out'))).toEqual(expect.not.arrayContaining(['code', '.env', 'etc']));
  });
});
