import { cp, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { writeSafetensors } from '../src/checkpoint/safetensors.js';
import { Device } from '../src/device/device.js';
import { Scope } from '../src/device/tensor.js';
import { Activations } from '../src/model/block-run.js';
import { DecoderModel } from '../src/model/decoder.js';
import { type PruneOptions, prune } from '../src/prune.js';
import { random } from './helpers/numbers.js';

const models = fileURLToPath(new URL('fixtures/models/', import.meta.url));
const device = Device.open('cpu', { threads: 2 });
const next = random(17);
const length = 32;
const tokenIds = Array.from({ length: 6 }, () => Array.from({ length }, () => Math.floor(next() * 120)));

let scratch: string;
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'alps-final-norm-'));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

const run = (name: string, out: string, options: Partial<PruneOptions> = {}) =>
  prune({
    model: join(models, name),
    out: join(scratch, out),
    calibration: { tokenIds },
    sparsity: 0.6,
    device,
    overwrite: true,
    ...options,
  });

/** The residual stream behind the last block, the norm in front of the head, and what it gives, in float64. */
async function lastNorm(folder: string) {
  const checkpoint = await Checkpoint.open(folder);
  const stream = device.stream();
  try {
    using scope = new Scope();
    const model = DecoderModel.open(checkpoint, stream, 'float32');
    const tokens = Uint32Array.from(tokenIds.flat());
    using activations = await Activations.create(model, { tokens, windows: tokenIds.length, length });
    await activations.runAll();
    const h = await stream.read(activations.residual);
    const norm = (await model.loadNorm(model.architecture.finalNorm, scope))!;
    const gain = await stream.read(norm.weight);
    const bias = norm.bias && (await stream.read(norm.bias));
    return { h, gain, bias, config: model.config };
  } finally {
    stream.dispose();
    await checkpoint.close();
  }
}
type LastNorm = Awaited<ReturnType<typeof lastNorm>>;

/** [tokens][channels] */
function outputs({ h, config }: LastNorm, { gain, bias }: Pick<LastNorm, 'gain' | 'bias'>): number[][] {
  const n = gain.length;
  return Array.from({ length: h.length / n }, (_, t) => {
    const row = Array.from(h.subarray(t * n, (t + 1) * n));
    const mean = bias ? row.reduce((sum, x) => sum + x, 0) / n : 0;
    const scale = 1 / Math.sqrt(row.reduce((sum, x) => sum + (x - mean) ** 2, 0) / n + config.normEps);
    return row.map((x, j) => (x - mean) * scale * (gain[j]! + config.normOffset) + (bias?.[j] ?? 0));
  });
}

const distance = (a: number[][], b: number[][]) =>
  a.reduce((sum, row, t) => sum + row.reduce((part, x, j) => part + (x - b[t]![j]!) ** 2, 0), 0);

describe.each([
  ['llama-plain', 'RMS'],
  ['gemma2', 'RMS with an offset'],
  ['opt-pre', 'a bias'],
  ['mixtral', 'experts'],
])('%s: %s', (name) => {
  test('the least squares of the dense model, channel by channel; nothing else changes', async () => {
    const report = await run(name, `${name}-on`);
    expect(report.options.finalNorm).toBe(true);
    expect((await run(name, `${name}-off`, { finalNorm: false })).options.finalNorm).toBe(false);
    const [dense, off, on] = [
      await lastNorm(join(models, name)),
      await lastNorm(join(scratch, `${name}-off`)),
      await lastNorm(join(scratch, `${name}-on`)),
    ];
    expect(on.h).toEqual(off.h);
    expect(off.gain).toEqual(dense.gain);
    const [wanted, before, after] = [outputs(dense, dense), outputs(off, dense), outputs(on, on)];
    expect(distance(after, wanted)).toBeLessThan(0.999 * distance(before, wanted));
    // No other gain or bias of a channel is better.
    for (const [gain, bias] of [
      [1.02, 0],
      [0.98, 0],
      ...(on.bias
        ? [
            [1, 0.02],
            [1, -0.02],
          ]
        : []),
    ] as [number, number][]) {
      const moved = after.map((row) => row.map((x) => gain * x + bias));
      for (let j = 0; j < on.gain.length; j++) {
        const column = (rows: number[][]) => rows.map((row) => [row[j]!]);
        expect(distance(column(after), column(wanted))).toBeLessThan(distance(column(moved), column(wanted)));
      }
    }
    const tensors = async (out: string) => {
      const checkpoint = await Checkpoint.open(join(scratch, out));
      const bytes = new Map<string, Buffer>();
      for (const tensor of checkpoint.tensors.keys()) bytes.set(tensor, Buffer.from(await checkpoint.read(tensor)));
      await checkpoint.close();
      return bytes;
    };
    const [a, b] = [await tensors(`${name}-on`), await tensors(`${name}-off`)];
    const changed = [...a.keys()].filter((tensor) => !a.get(tensor)!.equals(b.get(tensor)!));
    expect(changed).toHaveLength(on.bias ? 2 : 1);
  });
});

test('a model without a norm in front of its head stays as it is', async () => {
  await run('opt-post', 'post-on');
  await run('opt-post', 'post-off', { finalNorm: false });
  const weights = (out: string) => readFile(join(scratch, out, 'model.safetensors'));
  expect((await weights('post-on')).equals(await weights('post-off'))).toBe(true);
});

test('a gain beyond the range of float16 stays as it was', async () => {
  const folder = join(scratch, 'half');
  await cp(join(models, 'llama-plain'), folder, { recursive: true });
  const checkpoint = await Checkpoint.open(folder);
  const tensors = [];
  for (const [name, { dtype, shape }] of checkpoint.tensors) {
    const bytes = await checkpoint.read(name);
    // 65504, the largest number there is.
    const isNorm = name === 'model.norm.weight';
    tensors.push({
      name,
      shape,
      dtype: isNorm ? ('F16' as const) : dtype,
      bytes: isNorm ? new Uint8Array(new Uint16Array(shape[0]!).fill(0x7bff).buffer) : bytes,
    });
  }
  await checkpoint.close();
  await writeSafetensors(join(folder, 'model.safetensors'), tensors);
  await run('', 'half-out', { model: folder, sparsity: 0.1 }); // a third of the gains would grow
  const after = await lastNorm(join(scratch, 'half-out'));
  const unchanged = after.gain.filter((gain) => gain === 65504).length;
  expect(after.gain.every(Number.isFinite)).toBe(true);
  expect(unchanged).toBeGreaterThan(0);
  expect(unchanged).toBeLessThan(after.gain.length);
});

test('several devices: the same norm but for rounding', async () => {
  const two = [Device.open('cpu', { threads: 1 }), Device.open('cpu', { threads: 2, memoryLimit: 2 ** 30 })];
  // Choices among near equals, and a Gram matrix that is nearly singular, would make more of the rounding.
  const steady = { method: 'magnitude', refit: 'pcg', denseTarget: true, ridge: 1 } as const;
  await run('llama-plain', 'one', steady);
  await run('llama-plain', 'two', { ...steady, device: two });
  const [one, other] = [await lastNorm(join(scratch, 'one')), await lastNorm(join(scratch, 'two'))];
  for (const [j, gain] of one.gain.entries()) expect(other.gain[j]).toBeCloseTo(gain, 3);
  expect(device.info().memoryUsed).toBe(0);
});

test.each<[string, Partial<PruneOptions>]>([
  ['without a dense target', { denseTarget: false, finalNorm: true }],
  ['with a method that has none', { method: 'wanda', finalNorm: true }],
])('%s it is refused', async (_what, options) => {
  await expect(run('llama-plain', 'refused', options)).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: 'finalNorm needs a denseTarget',
  });
});

test('it is off where there is no dense target, and with the preset paper', async () => {
  for (const options of [{ denseTarget: false }, { method: 'sparsegpt' }, { preset: 'paper' }] as const)
    expect((await run('llama-plain', 'off', options)).options.finalNorm).toBe(false);
});
