import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Device } from '../src/device/device.js';
import { evaluatePerplexity } from '../src/evaluate.js';
import { type PruneOptions, prune } from '../src/prune.js';
import { random } from './helpers/numbers.js'; // names the library of the kernels, if the environment does not

// Whole jobs on the CUDA backend: its kernels on the processor, or on a GPU where ALPS_CUDA_LIBRARY names the library for GPUs.

const models = fileURLToPath(new URL('fixtures/models/', import.meta.url));
const next = random(5);
const tokenIds = Array.from({ length: 6 }, () => Array.from({ length: 32 }, () => Math.floor(next() * 120)));

let scratch: string;
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'alps-cuda-'));
  await writeFile(join(scratch, 'ids.json'), JSON.stringify(tokenIds));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

const run = (model: string, out: string, options: Partial<PruneOptions>) =>
  prune({
    model: join(models, model),
    out: join(scratch, out),
    calibration: { tokenIds },
    overwrite: true,
    precision: 'float32',
    ...(options.pattern ? {} : { sparsity: 0.5 }),
    ...options,
  });

const cases: [string, Partial<PruneOptions>][] = [
  ['llama-plain', {}],
  ['llama-plain', { schedule: 'alps', metric: 'diagonal', propagation: 'block' }],
  ['llama-plain', { pattern: { keep: 2, of: 4 } }],
  ['llama-plain', { method: 'sparsegpt' }],
  ['llama-plain', { method: 'sparsegpt', pattern: { keep: 2, of: 4 }, refit: 'pcg' }],
  ['llama-plain', { method: 'wanda', refit: 'backsolve' }],
  ['llama-plain', { method: 'dsnot' }],
  ['llama-plain', { method: 'magnitude', refit: 'pcg' }],
  ['opt-pre', {}],
  ['gpt2', { method: 'wanda' }],
  ['gemma2', { method: 'sparsegpt' }],
  ['qwen3-moe', { method: 'wanda' }],
];

test.each(cases)('%s %j: as many weights as on the processor, errors alike', async (model, options) => {
  const expected = await run(model, 'cpu', { ...options, device: 'cpu' });
  const actual = await run(model, 'cuda', { ...options, device: 'cuda:0' });
  expect(actual.layers.map(({ name, kept }) => ({ name, kept }))).toEqual(
    expected.layers.map(({ name, kept }) => ({ name, kept })),
  );
  // Where ADMM meets a near-tie another weight stays, and the layers behind see other inputs.
  expect(actual.meanError! / expected.meanError!).toBeCloseTo(1, options.method && options.method !== 'alps' ? 3 : 1);
  const perplexity = async (device: 'cpu' | 'cuda:0') =>
    (await evaluatePerplexity({ model: join(scratch, 'cuda'), text: join(scratch, 'ids.json'), device })).perplexity;
  expect((await perplexity('cuda:0')) / (await perplexity('cpu'))).toBeCloseTo(1, 5);
  expect(Device.open('cuda:0').info().memoryUsed).toBe(0);
});

test('two devices share the work', async () => {
  const options = { method: 'wanda' } as const;
  const alone = await run('llama-plain', 'one', { ...options, device: 'cuda:0' });
  const shared = await run('llama-plain', 'two', { ...options, device: ['cuda:0', 'cuda:1'] });
  expect(shared.meanError! / alone.meanError!).toBeCloseTo(1, 4);
  expect(shared.device).toMatch(/^cuda:0: .*; cuda:1: /);
});

test('bfloat16 products', async () => {
  const [low, high] = [
    await run('llama-plain', 'bf16', { precision: 'bfloat16', device: 'cuda:0' }),
    await run('llama-plain', 'f32', { device: 'cuda:0' }),
  ];
  expect(low.meanError! / high.meanError!).toBeCloseTo(1, 1);
});
