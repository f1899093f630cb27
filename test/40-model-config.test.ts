import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { type NewTensor, SafetensorsFile, writeSafetensors } from '../src/checkpoint/safetensors.js';
import { Device } from '../src/device/device.js';
import { DecoderModel } from '../src/model/decoder.js';
import { familyOf } from '../src/model/families/index.js';

const models = fileURLToPath(new URL('fixtures/models/', import.meta.url));
const base = {
  model_type: 'llama',
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  vocab_size: 100,
};
const read = (change: Record<string, unknown>) => {
  const config = { ...base, ...change };
  return familyOf(config).read(config, () => true).config;
};

describe('config.json', () => {
  test('what is missing has the defaults of transformers', () => {
    expect(read({})).toMatchObject({
      kvHeads: 4,
      headDim: 16,
      maxPositions: 2048,
      normEps: 1e-6,
      activation: 'silu',
      ropes: [{ theta: 10000, scaling: { type: 'none' }, dimensions: 16 }],
      tiedEmbeddings: false,
      slidingWindow: [0, 0, 0],
    });
  });

  test('both spellings of rope', () => {
    const llama3 = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };
    const old = read({ rope_theta: 500000, rope_scaling: { rope_type: 'llama3', ...llama3 } });
    const current = read({ rope_parameters: { rope_type: 'llama3', rope_theta: 500000, ...llama3 } });
    expect(old.ropes[0]!.theta).toBe(500000);
    expect(old.ropes[0]!.scaling).toEqual({
      type: 'llama3',
      factor: 8,
      lowFrequency: 1,
      highFrequency: 4,
      originalPositions: 8192,
    });
    expect(current).toEqual(old);
    const scaling = (change: Record<string, unknown>) => read(change).ropes[0]!.scaling;
    expect(scaling({ rope_scaling: { type: 'linear', factor: 2 } })).toEqual({ type: 'linear', factor: 2 });
    expect(scaling({ rope_scaling: null })).toEqual({ type: 'none' });
  });

  test('what belongs to a type', () => {
    const [inputs, output] = familyOf({ model_type: 'qwen2' })
      .read({ ...base, model_type: 'qwen2' }, () => true)
      .block(0).attention;
    expect(inputs.map(({ bias }) => bias)).toEqual([true, true, true]);
    expect(output.bias).toBe(false);
    expect(read({ model_type: 'qwen3' })).toMatchObject({ qkNorm: true, headDim: 128 });
    expect(read({ model_type: 'mistral', sliding_window: 7 }).slidingWindow).toEqual([7, 7, 7]);
    expect(read({ model_type: 'mistral' }).slidingWindow).toEqual([4096, 4096, 4096]);
    expect(read({ model_type: 'mistral', sliding_window: null }).slidingWindow).toEqual([0, 0, 0]);
    expect(read({ model_type: 'mixtral' }).ropes[0]!.theta).toBe(1e6);
    expect(read({ model_type: 'qwen2', sliding_window: 7 }).slidingWindow).toEqual([0, 0, 0]);
    const some = { model_type: 'qwen2', sliding_window: 7, use_sliding_window: true };
    expect(read({ ...some, max_window_layers: 2 }).slidingWindow).toEqual([0, 0, 7]);
    expect(
      read({ ...some, layer_types: ['sliding_attention', 'full_attention', 'full_attention'] }).slidingWindow,
    ).toEqual([7, 0, 0]);
  });

  test.each([
    [{ hidden_size: '64' }, 'INVALID_CHECKPOINT', 'expected a positive integer for hidden_size but found "64"'],
    [{ num_hidden_layers: 0 }, 'INVALID_CHECKPOINT', 'expected a positive integer for num_hidden_layers but found 0'],
    [{ vocab_size: undefined }, 'INVALID_CHECKPOINT', 'expected a positive integer for vocab_size but found undefined'],
    [{ rms_norm_eps: -1 }, 'INVALID_CHECKPOINT', 'expected a positive number for rms_norm_eps but found -1'],
    [
      { tie_word_embeddings: 'yes' },
      'INVALID_CHECKPOINT',
      'expected true or false for tie_word_embeddings but found "yes"',
    ],
    [
      { model_type: 'gemma3_text', use_bidirectional_attention: true },
      'UNSUPPORTED_MODEL',
      'use_bidirectional_attention is not supported',
    ],
    [{ hidden_act: 'mish' }, 'UNSUPPORTED_MODEL', 'the activation "mish" (hidden_act) is not supported'],
    [{ rope_scaling: { rope_type: 'yarn', factor: 2 } }, 'UNSUPPORTED_MODEL', 'the rope_type "yarn" is not supported'],
    [
      { model_type: 'rwkv' },
      'UNSUPPORTED_MODEL',
      'the model_type "rwkv" is not supported; known are llama, mistral, qwen2, qwen3',
    ],
    [{ model_type: undefined }, 'UNSUPPORTED_MODEL', 'the model_type undefined is not supported'],
  ])('%j is refused', (change, code, message) => {
    expect(() => read(change)).toThrow(expect.objectContaining({ code, message: expect.stringContaining(message) }));
  });
});

describe('tensors against config.json', () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'alps-model-'));
  });
  afterEach(() => rm(folder, { recursive: true, force: true }));

  /** Opens a copy of a tiny model after its tensors and configuration were changed. */
  async function open(
    name: string,
    change: (tensors: NewTensor[]) => NewTensor[],
    config: Record<string, unknown> = {},
  ) {
    await cp(join(models, name), folder, { recursive: true });
    const file = await SafetensorsFile.open(join(folder, 'model.safetensors'));
    const tensors = await Promise.all(
      [...file.tensors.values()].map(async (info) => ({
        name: info.name,
        dtype: info.dtype,
        shape: info.shape,
        bytes: await file.read(info.name),
      })),
    );
    await file.close();
    await rm(join(folder, 'model.safetensors'));
    await writeSafetensors(join(folder, 'model.safetensors'), change(tensors));
    const original = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'));
    await writeFile(join(folder, 'config.json'), JSON.stringify({ ...original, ...config }));
    const checkpoint = await Checkpoint.open(folder);
    using stream = Device.open('cpu').stream();
    try {
      return DecoderModel.open(checkpoint, stream).config;
    } finally {
      await checkpoint.close();
    }
  }
  const same = (tensors: NewTensor[]) => tensors;

  test('a missing tensor is named', async () => {
    const without = (tensors: NewTensor[]) =>
      tensors.filter(({ name }) => name !== 'model.layers.1.mlp.up_proj.weight');
    await expect(open('llama-plain', without)).rejects.toMatchObject({
      code: 'INVALID_CHECKPOINT',
      message: expect.stringContaining('lacks the tensor model.layers.1.mlp.up_proj.weight'),
    });
  });

  test('a shape that config.json contradicts is named', async () => {
    await expect(open('llama-plain', same, { intermediate_size: 96 })).rejects.toMatchObject({
      code: 'INVALID_CHECKPOINT',
      message: expect.stringContaining('has the shape [80,48]; config.json asks for [96,48]'),
    });
  });

  test('an integer weight is refused by name', async () => {
    const integer = (tensors: NewTensor[]) =>
      tensors.map((t) => (t.name.endsWith('0.mlp.up_proj.weight') ? { ...t, dtype: 'I32' as const } : t));
    await expect(open('llama-plain', integer)).rejects.toMatchObject({
      code: 'UNSUPPORTED_MODEL',
      message: 'Tensor model.layers.0.mlp.up_proj.weight has the dtype I32',
    });
  });

  test('a quantised model is refused', async () => {
    await expect(open('llama-plain', same, { quantization_config: { quant_method: 'gptq' } })).rejects.toMatchObject({
      code: 'UNSUPPORTED_MODEL',
      message: expect.stringContaining('is quantised'),
    });
  });

  test('heads that are no multiple of key-value heads', async () => {
    await expect(open('llama-plain', same, { num_key_value_heads: 4 })).rejects.toMatchObject({
      code: 'INVALID_CHECKPOINT',
    });
  });

  test('a head beside tied embeddings counts', async () => {
    const withHead = (tensors: NewTensor[]) => {
      const table = tensors.find(({ name }) => name === 'model.embed_tokens.weight')!;
      return [...tensors, { ...table, name: 'lm_head.weight' }];
    };
    await expect(open('qwen2-bias', withHead)).resolves.toMatchObject({ tiedEmbeddings: false });
  });

  test('auto_map is never loaded', async () => {
    await expect(open('llama-plain', same, { auto_map: { AutoModel: 'evil--module.Model' } })).resolves.toBeDefined();
  });
});
