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
const tokenIds = Array.from({ length: 3 }, () => Array.from({ length: 16 }, () => Math.floor(next() * 120)));

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

// On the processor each of a kernel's threads takes its turn, so only some cases run there.
const onGpu = !process.env.ALPS_CUDA_LIBRARY!.includes('alps_cuda_host');
const few: [string, Partial<PruneOptions>][] = [
  ['llama-plain', {}],
  ['llama-plain', { method: 'sparsegpt', pattern: { keep: 2, of: 4 }, refit: 'pcg' }],
  ['gpt2', { method: 'wanda' }],
  ['qwen3-moe', { method: 'wanda' }],
];
const more: [string, Partial<PruneOptions>][] = [
  ['llama-plain', { schedule: 'alps', metric: 'diagonal', propagation: 'block' }],
  ['llama-plain', { pattern: { keep: 2, of: 4 } }],
  ['llama-plain', { method: 'sparsegpt' }],
  ['llama-plain', { method: 'wanda', refit: 'backsolve' }],
  ['llama-plain', { method: 'dsnot' }],
  ['llama-plain', { method: 'magnitude', refit: 'pcg' }],
  ['opt-pre', {}],
  ['gemma2', { method: 'sparsegpt' }],
];

test.each(onGpu ? [...few, ...more] : few)(
  '%s %j: as many weights as on the processor, errors alike',
  async (model, options) => {
    const expected = await run(model, 'cpu', { ...options, device: 'cpu' });
    const actual = await run(model, 'cuda', { ...options, device: 'cuda:0' });
    expect(actual.layers.map(({ name, kept }) => ({ name, kept }))).toEqual(
      expected.layers.map(({ name, kept }) => ({ name, kept })),
    );
    // A near-tie that ADMM, or SparseGPT's sweep, meets keeps another weight, and what comes behind sees other inputs.
    const { method = 'alps' } = options;
    const digits = method === 'alps' ? 1 : method === 'sparsegpt' ? 2 : 3;
    expect(actual.meanError! / expected.meanError!).toBeCloseTo(1, digits);
    const perplexity = async (device: 'cpu' | 'cuda:0') =>
      (await evaluatePerplexity({ model: join(scratch, 'cuda'), text: join(scratch, 'ids.json'), device })).perplexity;
    expect((await perplexity('cuda:0')) / (await perplexity('cpu'))).toBeCloseTo(1, 5);
    expect(Device.open('cuda:0').info().memoryUsed).toBe(0);
  },
);

test('two devices share the work', async () => {
  const options = { method: 'wanda' } as const;
  const alone = await run('gpt2', 'one', { ...options, device: 'cuda:0' });
  const shared = await run('gpt2', 'two', { ...options, device: ['cuda:0', 'cuda:1'] });
  expect(shared.meanError! / alone.meanError!).toBeCloseTo(1, 4);
  expect(shared.device).toMatch(/^cuda:0: .*; cuda:1: /);
});

(onGpu ? test : test.skip)('bfloat16 products', async () => {
  const [low, high] = [
    await run('llama-plain', 'bf16', { precision: 'bfloat16', device: 'cuda:0' }),
    await run('llama-plain', 'f32', { device: 'cuda:0' }),
  ];
  expect(low.meanError! / high.meanError!).toBeCloseTo(1, 1);
});
