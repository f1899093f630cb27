import { execFileSync } from 'node:child_process';
import { copyFile, mkdir, readFile, rename, rm, symlink, truncate, unlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Checkpoint, quantizationOf } from '../src/checkpoint/folder.js';
import type { NewTensor } from '../src/checkpoint/safetensors.js';
import {
  failure,
  type ModelParts,
  modelFolder,
  randomTensor,
  temporaryFolder,
  twoShards,
} from './helpers/safetensors-files.js';

const indexName = 'model.safetensors.index.json';
const [first, second] = Object.keys(twoShards()) as [string, string];

/** Makes a model, lets the test break it, and returns the error of opening it. */
async function refusal(parts: ModelParts, harm?: (folder: string) => Promise<unknown>) {
  const folder = await modelFolder(parts);
  await harm?.(folder);
  return failure(Checkpoint.open(folder), folder);
}
const invalid = (message: unknown) => ({ code: 'INVALID_CHECKPOINT', message });
const index = (weightMap: unknown) => ({ [indexName]: JSON.stringify({ weight_map: weightMap }) });

describe('a model folder', () => {
  test('with one file', async () => {
    const folder = await modelFolder({ files: { 'tokenizer.json': '{}', '.hidden': '' } });
    await using checkpoint = await Checkpoint.open(folder);
    expect(checkpoint.config).toEqual({ model_type: 'llama' });
    expect(checkpoint).toMatchObject({
      folder,
      indexed: false,
      shardNames: ['model.safetensors'],
      files: ['config.json', 'tokenizer.json'],
    });
    expect(checkpoint.tensors.get('b')).toMatchObject({ dtype: 'BF16', shape: [5], shard: 'model.safetensors' });
  });

  test('with shards', async () => {
    const shards = twoShards();
    await using checkpoint = await Checkpoint.open(await modelFolder({ shards }));
    expect(checkpoint).toMatchObject({ indexed: true, shardNames: [first, second] });
    expect([...checkpoint.tensors.values()].map(({ name, shard }) => [name, shard])).toEqual([
      ['a', first],
      ['b', first],
      ['c', second],
    ]);
    for (const { name, bytes } of Object.values(shards).flat()) {
      expect(Buffer.compare(await checkpoint.read(name), bytes)).toBe(0);
    }
    expect((await failure(checkpoint.read('d'), checkpoint.folder)).message).toBe(' has no tensor "d"');
  });

  test('with one file and an index: the one file counts', async () => {
    const folder = await modelFolder({ files: index({ a: 'missing.safetensors' }) });
    await using checkpoint = await Checkpoint.open(folder);
    expect(checkpoint).toMatchObject({ indexed: false, files: ['config.json'] });
  });

  test('of symbolic links, as in a download cache', async () => {
    const real = await modelFolder({ shards: twoShards() });
    const linked = await temporaryFolder();
    for (const name of [first, second, 'config.json', indexName]) await symlink(join(real, name), join(linked, name));
    await using checkpoint = await Checkpoint.open(linked);
    expect(checkpoint.tensors.size).toBe(3);
    expect(checkpoint.files).toEqual(['config.json']);
    expect((await checkpoint.read('c')).length).toBe(6);
  });

  test('with an index of 500,000 tensors', async () => {
    const tensors = Array.from({ length: 500_000 }, (_, i): NewTensor => {
      return { name: `model.layers.${i}.weight`, dtype: 'U8', shape: [0, 4], bytes: new Uint8Array(0) };
    });
    const folder = await modelFolder({ shards: { [first]: tensors }, index: true });
    await using checkpoint = await Checkpoint.open(folder);
    expect(checkpoint.tensors.size).toBe(500_000);
  });
});

describe('folders that are no model', () => {
  test('a missing one, a file, no path', async () => {
    const folder = await temporaryFolder();
    expect(await failure(Checkpoint.open(join(folder, 'x')), folder)).toEqual({
      code: 'FILE_SYSTEM',
      message: 'The model folder /x does not exist: expected a local folder, download the model first',
    });
    await writeFile(join(folder, 'file'), '');
    expect(await failure(Checkpoint.open(join(folder, 'file')), folder)).toEqual(
      invalid('Expected a model folder but /file is a file'),
    );
    for (const path of ['', 'a\0b', 7 as never]) {
      expect((await failure(Checkpoint.open(path))).code).toBe('INVALID_ARGUMENT');
    }
  });

  test('an aborted signal', async () => {
    const signal = AbortSignal.abort();
    expect((await failure(Checkpoint.open(await modelFolder(), { signal }))).code).toBe('ABORTED');
  });

  test.each<[string, ModelParts, unknown]>([
    ['no weights', { shards: {} }, invalid(' has neither model.safetensors nor model.safetensors.index.json')],
    [
      'pickle weights',
      { shards: {}, files: { 'pytorch_model.bin': '' } },
      {
        code: 'UNSUPPORTED_MODEL',
        message: expect.stringMatching(/^\/pytorch_model.bin is a pickle file: .* run code/),
      },
    ],
    [
      'GGUF weights',
      { shards: {}, files: { 'model-q4.gguf': '' } },
      { code: 'UNSUPPORTED_MODEL', message: expect.stringMatching(/^\/model-q4.gguf is a GGUF file/) },
    ],
  ])('%s', async (_, parts, error) => {
    expect(await refusal(parts)).toEqual(error);
  });
});

describe('config.json', () => {
  test.each<[string, string | Uint8Array, unknown]>([
    ['empty', '', expect.stringMatching(/^\/config.json is not JSON/)],
    ['a list', '[]', '/config.json is not a JSON object'],
    ['null', 'null', '/config.json is not a JSON object'],
    ['not UTF-8', Uint8Array.of(0x7b, 0xff, 0x7d), '/config.json is not UTF-8'],
    ['a key twice', '{"hidden_size":1,"hidden_size":2}', '/config.json has the key "hidden_size" twice'],
  ])('%s', async (_, content, message) => {
    expect(await refusal({ files: { 'config.json': content } })).toEqual(invalid(message));
  });

  test('missing, a pipe, too large, a loop', async () => {
    const replace = (make: (path: string) => unknown) =>
      refusal({}, async (folder) => {
        await unlink(join(folder, 'config.json'));
        await make(join(folder, 'config.json'));
      });
    expect(await replace(() => undefined)).toEqual(
      invalid(' has no config.json: expected a Hugging Face model folder'),
    );
    expect(await replace((path) => execFileSync('mkfifo', [path]))).toEqual(
      invalid('/config.json is not a regular file'),
    );
    const large = await replace(async (path) => {
      await writeFile(path, '');
      await truncate(path, 17e6);
    });
    expect(large).toEqual(invalid('/config.json has 17000000 bytes, more than the limit of 16777216'));
    expect(await replace((path) => symlink('config.json', path))).toEqual({
      code: 'FILE_SYSTEM',
      message: '/config.json is a loop of symbolic links',
    });
  });
});

describe('the index', () => {
  test.each<[string, string, string]>([
    ['no weight_map', '{}', 'has no weight_map'],
    ['a list as weight_map', '{"weight_map":[]}', 'has no weight_map'],
    ['an empty weight_map', '{"weight_map":{}}', 'has an empty weight_map'],
    ['a tensor twice', `{"weight_map":{"a":"x","a":"y"}}`, 'has the key "a" twice'],
  ])('%s', async (_, content, message) => {
    const error = await refusal({ shards: {}, files: { [indexName]: content } });
    expect(error).toEqual(invalid(`/${indexName} ${message}`));
  });

  test.each([
    '../x.safetensors',
    '..',
    '.',
    '',
    '/etc/x.safetensors',
    'sub/x.safetensors',
    'sub\\x.safetensors',
    'https://example.org/x.safetensors',
    'C:x.safetensors',
    'x\0.safetensors',
    'config.json',
    `${'x'.repeat(244)}.safetensors`,
    `${'é'.repeat(122)}.safetensors`,
    7,
    null,
    ['x.safetensors'],
  ])('the shard name %p', async (name) => {
    const error = await refusal({ shards: {}, files: index({ a: name }) });
    expect(error.code).toBe('INVALID_CHECKPOINT');
    expect(error.message).toMatch(/^\/model.safetensors.index.json puts tensor "a" into .*: expected the name of a /);
  });

  test('a shard that is missing, a folder, a pipe, a dangling link, a loop', async () => {
    const replace = (make: (path: string) => unknown) =>
      refusal({ shards: twoShards() }, async (folder) => {
        await unlink(join(folder, second));
        await make(join(folder, second));
      });
    expect(await replace(() => undefined)).toEqual(
      invalid(`/${indexName} names the shard ${second}, which is missing: download it again`),
    );
    expect(await replace((path) => mkdir(path))).toEqual(invalid(`/${second} is not a regular file`));
    expect(await replace((path) => execFileSync('mkfifo', [path]))).toEqual(
      invalid(`/${second} is not a regular file`),
    );
    const missing = 'does not exist, or is a symbolic link to a file that does not exist';
    expect((await replace((path) => symlink('nothing', path))).message).toBe(`/${second} ${missing}`);
    expect((await replace((path) => symlink(second, path))).message).toBe(`/${second} is a loop of symbolic links`);
  });

  test('a shard cut short', async () => {
    const error = await refusal({ shards: twoShards() }, (folder) => truncate(join(folder, second), 100));
    expect(error.code).toBe('INVALID_CHECKPOINT');
    expect(error.message).toMatch(new RegExp(`^/${second}: the file is truncated: its tensors end at byte \\d+`));
  });

  test('a tensor that its shard lacks, or that the index lacks, or that lies elsewhere', async () => {
    const shards = twoShards();
    const map = { a: first, b: first, c: second };
    const error = (weightMap: unknown) => refusal({ shards, files: index(weightMap) });
    expect(await error({ ...map, d: second })).toEqual(
      invalid(`/${indexName} puts tensor "d" into ${second}, which lacks it`),
    );
    expect(await error({ a: first, c: second })).toEqual(invalid(`/${indexName} does not name tensor "b" of ${first}`));
    expect(await error({ ...map, b: second })).toEqual(
      invalid(`/${indexName} puts tensor "b" into ${second}, which lacks it`),
    );
  });

  test('a tensor in two shards', async () => {
    const shards = { [first]: [randomTensor('a', 'U8', [1], 1)], [second]: [randomTensor('a', 'U8', [1], 1)] };
    const error = await refusal({ shards, files: index({ a: first, b: second }) });
    expect(error).toEqual(invalid(`Tensor "a" is in two shards of : ${first} and ${second}`));
  });

  test('a shard replaced while the folder is open', async () => {
    const folder = await modelFolder({ shards: twoShards() });
    await using checkpoint = await Checkpoint.open(folder);
    await copyFile(join(folder, second), join(folder, 'copy'));
    await rename(join(folder, 'copy'), join(folder, second));
    expect((await checkpoint.read('a')).length).toBe(24);
    expect((await failure(checkpoint.read('c'), folder)).message).toMatch(/was replaced while it was being read/);
  });
});

describe('files beside the weights', () => {
  test('weights, pickles, indexes, hidden files, folders and dangling links are not among them', async () => {
    const names = ['README.md', 'generation_config.json', 'modeling_x.py', 'tokenizer.model', 'vocab.txt'];
    const others = ['training_args.bin', 'consolidated.00.pth', 'x.gguf', 'adapter.safetensors', '.gitattributes'];
    const files = Object.fromEntries([...names, ...others, 'pytorch_model.bin.index.json'].map((name) => [name, '']));
    const folder = await modelFolder({ files });
    await mkdir(join(folder, 'onnx'));
    await symlink('nothing', join(folder, 'dangling.json'));
    await using checkpoint = await Checkpoint.open(folder);
    expect([...checkpoint.files].sort()).toEqual([...names, 'config.json'].sort());
  });
});

describe('quantised checkpoints', () => {
  const found = async (tensor: NewTensor, config: unknown = {}) => {
    const files = { 'config.json': JSON.stringify(config) };
    const folder = await modelFolder({ shards: { 'model.safetensors': [tensor] }, files });
    await using checkpoint = await Checkpoint.open(folder);
    const result = quantizationOf(checkpoint);
    await rm(dirname(folder), { recursive: true });
    return result;
  };

  test('are known by their tensors', async () => {
    for (const name of ['x.qweight', 'x.weight.absmax', 'x.SCB', 'x.weight_packed', 'experts.gate_up_proj_blocks']) {
      expect(await found(randomTensor(name, 'U8', [1], 1))).toBe(`tensor "${name}"`);
    }
    expect(await found(randomTensor('x.weight', 'F8_E4M3', [2], 2))).toBe('tensor "x.weight" of dtype F8_E4M3');
    expect(await found(randomTensor('x.weight', 'I8', [1, 2], 2))).toBe('tensor "x.weight" of dtype I8');
  });

  test('or by their config', async () => {
    const tensor = randomTensor('x.weight', 'F16', [1], 2);
    expect(await found(tensor, { quantization_config: { quant_method: 'gptq' } })).toBe('quantization_config "gptq"');
    expect(await found(tensor, { quantization_config: null })).toBeUndefined();
  });

  test.each(['F64', 'F32', 'F16', 'BF16'] as const)('%s is not one', async (dtype) => {
    expect(
      await found(randomTensor('x.weight', dtype, [4], { F64: 32, F32: 16, F16: 8, BF16: 8 }[dtype])),
    ).toBeUndefined();
  });

  test('the config is given as it is', async () => {
    const folder = await modelFolder({ files: { 'config.json': '{"auto_map":{"AutoModel":"x.Y"},"rope_theta":1e4}' } });
    await using checkpoint = await Checkpoint.open(folder);
    expect(checkpoint.config).toEqual(JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')));
  });
});
