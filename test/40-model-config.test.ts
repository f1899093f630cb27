import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { type NewTensor, SafetensorsFile, writeSafetensors } from '../src/checkpoint/safetensors.js';
import { Device } from '../src/device/device.js';
import type { Rope } from '../src/model/config.js';
import { DecoderModel } from '../src/model/decoder.js';
import { familyOf } from '../src/model/families/index.js';
import { ropeTables } from '../src/model/rope.js';

const models = fileURLToPath(new URL('fixtures/models/', import.meta.url));
const base = {
  model_type: 'llama',
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  vocab_size: 100,
};
const architecture = (change: Record<string, unknown>) => {
  const config = { ...base, ...change };
  return familyOf(config).read(config, (tensor) => tensor.startsWith('model.'));
};
const read = (change: Record<string, unknown>) => architecture(change).config;
const scaling = (change: Record<string, unknown>) => read(change).ropes[0]!.scaling;

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
    expect(scaling({ rope_scaling: { type: 'linear', factor: 2 } })).toEqual({ type: 'linear', factor: 2 });
    expect(scaling({ rope_scaling: null })).toEqual({ type: 'none' });
  });

  test('where both spellings stand, a rope_scaling with keys takes the place of rope_parameters', () => {
    const parameters = { rope_type: 'default', rope_theta: 500 };
    const both = read({ rope_parameters: parameters, rope_scaling: { rope_type: 'linear', factor: 4 } });
    expect(both.ropes[0]).toMatchObject({ theta: 10000, scaling: { type: 'linear', factor: 4 } });
    expect(read({ rope_parameters: parameters, rope_scaling: {} }).ropes[0]!.theta).toBe(500);
  });

  test('original_max_position_embeddings: the top level goes before the rope’s own, then max_position_embeddings', () => {
    const llama3 = { rope_type: 'llama3', factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
    const key = 'original_max_position_embeddings';
    expect(scaling({ rope_scaling: { ...llama3, [key]: 64 }, [key]: 32 })).toMatchObject({ originalPositions: 32 });
    expect(scaling({ rope_scaling: { ...llama3, [key]: 64 } })).toMatchObject({ originalPositions: 64 });
    expect(scaling({ rope_scaling: llama3, max_position_embeddings: 256 })).toMatchObject({ originalPositions: 256 });
    const factors = new Array(8).fill(1);
    const long = { model_type: 'phi3', rope_scaling: { short_factor: factors, long_factor: factors, [key]: 64 } };
    for (const type of ['longrope', 'yarn']) {
      const phi3 = { ...long, rope_scaling: { ...long.rope_scaling, type } };
      expect(scaling(phi3)).toMatchObject({ type: 'longrope', originalPositions: 4096 });
      expect(scaling({ ...phi3, [key]: 128 })).toMatchObject({ type: 'longrope', originalPositions: 128 });
    }
  });

  test('longrope: factor goes before the quotient of the positions', () => {
    const longrope = {
      rope_type: 'longrope',
      short_factor: new Array(8).fill(1),
      long_factor: new Array(8).fill(2),
      original_max_position_embeddings: 64,
    };
    const amplitude = (change: object) =>
      (
        scaling({ max_position_embeddings: 256, rope_scaling: { ...longrope, ...change } }) as {
          attentionFactor: number;
        }
      ).attentionFactor;
    expect(amplitude({})).toBeCloseTo(Math.sqrt(1 + Math.log(4) / Math.log(64)), 12);
    expect(amplitude({ factor: 32 })).toBeCloseTo(Math.sqrt(1 + Math.log(32) / Math.log(64)), 12);
    expect(amplitude({ factor: 1 })).toBe(1);
  });

  test('yarn', () => {
    const yarn = { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 64 };
    const read = (change: object) => scaling({ max_position_embeddings: 512, rope_scaling: { ...yarn, ...change } });
    // 16 · ln(64 / (2 π · turns)) / (2 · ln(10000)): -1.0 for 32 turns, 2.02 for one
    expect(read({})).toEqual({ type: 'yarn', factor: 4, low: 0, high: 3, attentionFactor: 0.1 * Math.log(4) + 1 });
    expect(read({ factor: null })).toMatchObject({ factor: 8, attentionFactor: 0.1 * Math.log(8) + 1 });
    expect(read({ beta_fast: 2, beta_slow: 0.5, truncate: false })).toMatchObject({
      low: expect.closeTo((8 * Math.log(16 / Math.PI)) / Math.log(10000), 10),
      high: expect.closeTo((8 * Math.log(64 / Math.PI)) / Math.log(10000), 10),
    });
    expect(read({ mscale: 2, mscale_all_dim: 1 })).toMatchObject({
      attentionFactor: expect.closeTo((0.2 * Math.log(4) + 1) / (0.1 * Math.log(4) + 1), 12),
    });
    expect(read({ mscale: 2 })).toEqual(read({}));
    expect(read({ attention_factor: 1.5, factor: 1 })).toMatchObject({ attentionFactor: 1.5 });
    expect(read({ factor: 1 })).toMatchObject({ attentionFactor: 1 });
  });

  test('dynamic is the default: no window goes beyond max_position_embeddings', () => {
    expect(scaling({ rope_scaling: { type: 'dynamic', factor: 2 } })).toEqual({ type: 'none' });
  });

  test('llama3 with its two bounds the other way round', () => {
    const rope = (low: number, high: number) =>
      read({
        rope_scaling: {
          ...{ rope_type: 'llama3', factor: 8, original_max_position_embeddings: 64 },
          ...{ low_freq_factor: low, high_freq_factor: high },
        },
      }).ropes[0]!;
    // A wavelength of 2 π · 10 ^ 0.5 = 19.9 is beyond 64 / 4 and below 64 / 1: it is both stretched and not.
    const angle = (rope: Rope) => Math.asin(ropeTables(rope, 2).sine[8 + 1]!);
    expect(angle(rope(4, 1))).toBeCloseTo(10 ** -0.5 / 8, 6);
    expect(angle(rope(0.1, 0.2))).toBeCloseTo(10 ** -0.5, 6);
  });

  test('partial_rotary_factor counts for Phi-3 alone', () => {
    for (const change of [{ partial_rotary_factor: 0.5 }, { rope_parameters: { partial_rotary_factor: 0.5 } }]) {
      expect(read({ model_type: 'phi3', ...change }).ropes[0]!.dimensions).toBe(8);
      expect(read(change).ropes[0]!.dimensions).toBe(16);
      expect(read({ model_type: 'gemma3_text', ...change }).ropes.map(({ dimensions }) => dimensions)).toEqual([
        256, 256,
      ]);
    }
  });

  test('Gemma 3: rotary positions of two kinds of layers', () => {
    const ropes = (change: Record<string, unknown>) => {
      const [global, local] = read({ model_type: 'gemma3_text', ...change }).ropes;
      return [global!.theta, global!.scaling, local!.theta, local!.scaling];
    };
    const none = { type: 'none' };
    const linear = { type: 'linear', factor: 8 };
    expect(ropes({})).toEqual([1e6, none, 1e4, none]);
    const old = { rope_theta: 300, rope_local_base_freq: 20 };
    for (const key of ['rope_type', 'type'])
      expect(ropes({ ...old, rope_scaling: { [key]: 'linear', factor: 8 } })).toEqual([300, linear, 20, none]);
    const full = { rope_type: 'default', rope_theta: 500 };
    expect(ropes({ ...old, rope_parameters: full })).toEqual([300, none, 20, none]);
    expect(ropes({ ...old, rope_parameters: { full_attention: full } })).toEqual([500, none, 20, none]);
    expect(
      ropes({
        rope_theta: 300,
        rope_parameters: { full_attention: full, sliding_attention: { rope_type: 'default' } },
        rope_scaling: { rope_type: 'linear', factor: 8 },
      }),
    ).toEqual([500, linear, 1e4, none]);
    const llama3 = { rope_type: 'llama3', factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
    const original = { original_max_position_embeddings: 64 };
    const positions = (inner: object) =>
      scaling({
        model_type: 'gemma3_text',
        rope_parameters: { full_attention: { ...llama3, ...inner } },
        original_max_position_embeddings: 32,
      });
    expect(positions(original)).toMatchObject({ originalPositions: 64 });
    expect(positions({})).toMatchObject({ originalPositions: 131072 });
  });

  test('what belongs to a type', () => {
    const [inputs, output] = architecture({ model_type: 'qwen2' }).block(0).attention;
    expect(inputs.map(({ bias }) => bias)).toEqual([true, true, true]);
    expect(output.bias).toBe(false);
    expect(read({ model_type: 'qwen3' })).toMatchObject({ qkNorm: true, headDim: 128 });
    expect(read({ model_type: 'qwen3_moe' })).toMatchObject({ qkNorm: true, headDim: 16 });
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

  test('sliding windows: which types read layer_types, and which slide everywhere', () => {
    const windows = (model_type: string, change: object = {}) =>
      read({ model_type, sliding_window: 7, ...change }).slidingWindow;
    const types = { layer_types: ['full_attention', 'sliding_attention', 'full_attention'] };
    const used = { ...types, use_sliding_window: true };
    for (const [type, change] of [
      ['mistral', types],
      ['qwen2', used],
      ['qwen3', used],
      ['gemma2', types],
      ['gemma3_text', types],
    ] as const)
      expect(windows(type, change)).toEqual([0, 7, 0]);
    expect(windows('mixtral', types)).toEqual([7, 7, 7]);
    expect(windows('phi3', types)).toEqual([7, 7, 7]);
    expect(windows('qwen3_moe', { ...used, max_window_layers: 2 })).toEqual([7, 7, 7]);
    expect(windows('qwen3_moe', types)).toEqual([0, 0, 0]);
    expect(windows('gemma2', { sliding_window: undefined })).toEqual([4096, 0, 4096]);
    expect(windows('gemma3_text', { sliding_window: undefined })).toEqual([4096, 4096, 4096]);
    expect(windows('gemma2', { sliding_window_pattern: 3 })).toEqual([7, 0, 7]);
    expect(windows('gemma3_text', { sliding_window_pattern: 3 })).toEqual([7, 7, 0]);
  });

  test('Gemma: hidden_activation alone, and a cap on scores in Gemma 2 alone', () => {
    for (const model_type of ['gemma2', 'gemma3_text'])
      expect(read({ model_type, hidden_act: 'gelu' }).activation).toBe('gelu_tanh');
    const cap = { attn_logit_softcapping: 5 };
    expect(read({ model_type: 'gemma2', ...cap }).attentionSoftCap).toBe(5);
    expect(read({ model_type: 'gemma3_text', ...cap }).attentionSoftCap).toBe(0);
  });

  test('names that go before others: GPT-2’s sizes, Mixtral’s experts', () => {
    const own = { n_embd: 48, n_head: 6, n_layer: 2, n_positions: 32 };
    const sizes = { hidden: 48, heads: 6, layers: 2, maxPositions: 32 };
    const none = { hidden_size: undefined, num_attention_heads: undefined, num_hidden_layers: undefined };
    expect(read({ model_type: 'gpt2', ...own, ...none })).toMatchObject(sizes);
    expect(read({ model_type: 'gpt2', ...own, max_position_embeddings: 16 })).toMatchObject({
      hidden: 64,
      heads: 4,
      layers: 3,
      maxPositions: 16,
    });
    const experts = (change: object) => read({ model_type: 'mixtral', ...change }).experts!.count;
    expect(experts({ num_experts: 4 })).toBe(4);
    expect(experts({ num_experts: 4, num_local_experts: 6 })).toBe(4);
    expect(experts({ num_local_experts: 6 })).toBe(6);
  });

  test.each([
    ['gelu_python', 'gelu'],
    ['gelu_accurate', 'gelu_tanh'],
    ['gelu_python_tanh', 'gelu_tanh'],
  ])('the activation %s is %s', (name, activation) => {
    expect(read({ hidden_act: name }).activation).toBe(activation);
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
    [{ rope_scaling: { rope_type: 'ntk', factor: 2 } }, 'UNSUPPORTED_MODEL', 'the rope_type "ntk" is not supported'],
    [{ rope_scaling: 'linear' }, 'INVALID_CHECKPOINT', 'expected an object for rope_scaling but found "linear"'],
    [
      { rope_scaling: { rope_type: 'yarn', factor: 2, truncate: 1 } },
      'INVALID_CHECKPOINT',
      'expected true or false for truncate but found 1',
    ],
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
