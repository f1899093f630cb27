import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { Device } from '../src/device/device.js';
import { DecoderModel } from '../src/model/decoder.js';
import { type PruneOptions, prune } from '../src/prune.js';
import { rowWeightsOf } from '../src/row-weights.js';
import { random } from './helpers/numbers.js';

const models = fileURLToPath(new URL('fixtures/models/', import.meta.url));
const device = Device.open('cpu', { threads: 2 });
const tokens = 64;

let scratch: string;
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'alps-row-weights-'));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

interface Matrix {
  values: Float32Array;
  shape: readonly number[];
}

/** Block 0 of a model, inputs of its own for a stage, and what rowWeights makes of them. */
async function weightsOf(name: string, stage: number, group = 0) {
  const checkpoint = await Checkpoint.open(join(models, name));
  using stream = device.stream();
  const model = DecoderModel.open(checkpoint, stream);
  const block = await model.loadBlock(0);
  const linears = block.stages[stage]![group]!;
  const n = linears[0]!.inputs;
  const next = random(3);
  const x = Float32Array.from({ length: tokens * n }, () => next() * 2 - 1);
  using inputs = stream.upload('float32', [tokens, n], x);
  using gram = device.tensor('float32', [n, n]);
  stream.fill(gram, 0);
  stream.gramAccumulate(inputs, gram);
  stream.symmetrize(gram);
  const weigh = await rowWeightsOf(model, { block, stage, group }, linears, { gram, tokens });
  const weights = await weigh();
  const read = async (tensor: { shape: readonly number[] }): Promise<Matrix> => ({
    values: (await stream.read(tensor as never)) as Float32Array,
    shape: tensor.shape,
  });
  const parts = {
    q: await read(block.attention.q.weight),
    k: await read(block.attention.k.weight),
    v: await read(block.attention.v.weight),
    o: await read(block.attention.o.weight),
    gate: block.mlp[group]!.gate && (await read(block.mlp[group]!.gate!.weight)),
    up: await read(block.mlp[group]!.up.weight),
    down: await read(block.mlp[group]!.down.weight),
  };
  const { config } = model;
  block.dispose();
  await checkpoint.close();
  return { weights, x, n, parts, config };
}

/** Mean square of each output over the tokens, in float64. */
function squares({ values, shape: [m = 0, n = 0] }: Matrix, x: Float32Array): number[] {
  return Array.from({ length: m }, (_, i) => {
    let sum = 0;
    for (let t = 0; t < tokens; t++) {
      let y = 0;
      for (let j = 0; j < n; j++) y += values[i * n + j]! * x[t * n + j]!;
      sum += y * y;
    }
    return sum / tokens;
  });
}

function columns({ values, shape: [m = 0, n = 0] }: Matrix): number[] {
  return Array.from({ length: n }, (_, j) => {
    let sum = 0;
    for (let i = 0; i < m; i++) sum += values[i * n + j]! ** 2;
    return sum;
  });
}

/** Square roots of shares of the geometric mean. */
function relative(weights: number[]): number[] {
  const mean = Math.exp(weights.reduce((sum, w) => sum + Math.log(w), 0) / weights.length);
  return weights.map((w) => Math.sqrt(w / mean));
}

/** E f(z)², z ~ N(0, v). */
function expectation(f: (x: number) => number, variance: number): number {
  let [sum, total] = [0, 0];
  for (let z = -8; z <= 8; z += 1e-3) {
    const density = Math.exp((-z * z) / 2);
    sum += density * f(z * Math.sqrt(variance)) ** 2;
    total += density;
  }
  return sum / total;
}

function expectClose(received: ArrayLike<number>, expected: number[], tolerance: number) {
  expect(received.length).toBe(expected.length);
  for (const [i, value] of expected.entries()) expect(Math.abs(received[i]! / value - 1)).toBeLessThan(tolerance);
}

describe('weights of rows', () => {
  test('queries and keys: the squares of what they meet; values: columns of the layer behind', async () => {
    const { weights, x, parts, config } = await weightsOf('llama-plain', 0);
    const { heads, kvHeads, headDim } = config;
    const per = heads / kvHeads;
    const [q, k] = [squares(parts.q, x), squares(parts.k, x)];
    const met = (all: number[], head: number, i: number) =>
      (all[head * headDim + i]! + all[head * headDim + ((i + headDim / 2) % headDim)]!) / 2;
    const o = columns(parts.o);
    const each = (count: number, value: (head: number, i: number) => number) =>
      Array.from({ length: count * headDim }, (_, row) => value(Math.floor(row / headDim), row % headDim));
    const over = (key: number, value: (head: number) => number) =>
      Array.from({ length: per }, (_, j) => value(key * per + j)).reduce((sum, one) => sum + one, 0);
    const expected = [
      ...relative(each(heads, (head, i) => met(k, Math.floor(head / per), i))),
      ...relative(each(kvHeads, (key, i) => over(key, (head) => met(q, head, i)))),
      ...relative(each(kvHeads, (key, i) => over(key, (head) => o[head * headDim + i]!))),
    ];
    expectClose(weights!, expected, 1e-3);
  });

  test('gate and up: columns of the last layer, times what each is multiplied by', async () => {
    const { weights, x, parts } = await weightsOf('llama-plain', 2);
    const silu = (z: number) => z / (1 + Math.exp(-z));
    const slope = (z: number) => {
      const s = 1 / (1 + Math.exp(-z));
      return s * (1 + z * (1 - s));
    };
    const [gate, up, down] = [squares(parts.gate!, x), squares(parts.up, x), columns(parts.down)];
    const expected = [
      ...relative(gate.map((g, i) => down[i]! * up[i]! * expectation(slope, g))),
      ...relative(gate.map((g, i) => down[i]! * expectation(silu, g))),
    ];
    expectClose(weights!, expected, 0.01); // of the table
  });

  test('a plain MLP', async () => {
    const { weights, x, parts } = await weightsOf('opt-pre', 2);
    // relu: half of the inputs pass, whatever their size; the bias is none of the weight's.
    expect(squares(parts.up, x).length).toBe(weights!.length);
    expectClose(weights!, relative(columns(parts.down)), 0.01);
  });

  test('none behind attention and at the end of an MLP', async () => {
    for (const stage of [1, 3]) expect((await weightsOf('llama-plain', stage)).weights).toBeUndefined();
  });
});

describe('prune', () => {
  const next = random(5);
  const tokenIds = Array.from({ length: 6 }, () => Array.from({ length: 32 }, () => Math.floor(next() * 120)));
  const run = (name: string, out: string, options: Partial<PruneOptions>) =>
    prune({
      model: join(models, name),
      out: join(scratch, out),
      calibration: { tokenIds },
      overwrite: true,
      device: 'cpu',
      ...(options.pattern ? {} : { sparsity: 0.5 }),
      ...options,
    });
  const same = async (a: string, b: string) => {
    const [one, two] = await Promise.all([a, b].map((out) => readFile(join(scratch, out, 'model.safetensors'))));
    return one!.equals(two!);
  };

  test.each(['llama-plain', 'qwen3-qknorm', 'phi3-fused', 'gpt2', 'opt-pre', 'mixtral'])(
    '%s: other weights stay than without; still exact; the same for any number of threads',
    async (name) => {
      const report = await run(name, 'on', { threads: 1 });
      await run(name, 'again', { threads: 2 });
      await run(name, 'off', { rowWeights: false });
      expect(report.options.rowWeights).toBe(true);
      for (const { kept, outputs, inputs } of report.layers) expect(kept).toBe(Math.round(0.5 * outputs * inputs));
      expect(await same('on', 'again')).toBe(true);
      expect(await same('on', 'off')).toBe(false);
    },
  );

  test('nothing changes for N:M', async () => {
    await run('llama-plain', 'nm-on', { pattern: { keep: 2, of: 4 }, rowWeights: true });
    await run('llama-plain', 'nm-off', { pattern: { keep: 2, of: 4 }, rowWeights: false });
    expect(await same('nm-on', 'nm-off')).toBe(true);
  });

  test('layers of one input that several devices share have the weights they have together', async () => {
    const cpu = (memory: number) => Device.open('cpu', { threads: 1, memoryLimit: memory * 2 ** 20 });
    const [one, two] = [
      await run('llama-plain', 'one', { device: cpu(511) }),
      await run('llama-plain', 'two', { device: [cpu(512), cpu(513)] }),
    ];
    // Gram matrices are summed in another order, so only nearly.
    for (const [i, layer] of one.layers.entries())
      expect(Math.abs(two.layers[i]!.error! / layer.error! - 1)).toBeLessThan(0.02);
  });

  test.each<[string, Partial<PruneOptions>, string]>([
    ['no boolean', { rowWeights: 1 as unknown as boolean }, 'true or false for rowWeights'],
    ['another method', { rowWeights: true, method: 'wanda' }, 'not for "wanda"'],
  ])('%s is refused', async (_what, options, message) => {
    await expect(run('llama-plain', 'refused', options)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(message),
    });
  });

  test('off by default for the other methods and the published one', async () => {
    expect((await run('llama-plain', 'sparsegpt', { method: 'sparsegpt' })).options.rowWeights).toBe(false);
    expect((await run('llama-plain', 'paper', { preset: 'paper' })).options.rowWeights).toBe(false);
  });
});
