import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { writeSafetensors } from '../src/checkpoint/safetensors.js';
import { evaluatePerplexity } from '../src/evaluate.js';
import { inspectModel } from '../src/inspect.js';
import { type PruneEvent, type PruneOptions, prune } from '../src/prune.js';

const model = fileURLToPath(new URL('../models/union-4m', import.meta.url));
const text = join(model, 'calibration.txt.gz');
const calibration = { text, windows: 16, length: 128 };
const heldOut = join(model, 'held-out.txt.gz');

let scratch: string;
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'alps-prune-'));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

const run = (name: string, options: Partial<PruneOptions>) =>
  prune({ model, out: join(scratch, name), calibration, ...options });
const perplexityOf = async (folder: string) =>
  (await evaluatePerplexity({ model: folder, text: heldOut, length: 128, windows: 24 })).perplexity;

describe('prune', () => {
  test('ALPS at 60 %: exact sparsity, better than magnitude pruning, dense parts but the last norm untouched', async () => {
    const events: PruneEvent[] = [];
    const report = await run('alps', { sparsity: 0.6, onEvent: (event) => events.push(event) });
    await run('magnitude', { sparsity: 0.6, method: 'magnitude' });
    expect(report.sparsity).toBeCloseTo(0.6, 4);
    expect(report.layers).toHaveLength(5 * 7);
    expect(new Set(events.map(({ type }) => type))).toEqual(
      new Set(['start', 'calibration', 'layer', 'block', 'done']),
    );

    const [dense, alps, magnitude] = [
      await perplexityOf(model),
      await perplexityOf(join(scratch, 'alps')),
      await perplexityOf(join(scratch, 'magnitude')),
    ];
    expect(alps).toBeGreaterThan(dense);
    expect(alps).toBeLessThan(magnitude);

    const inspection = await inspectModel(join(scratch, 'alps'));
    const pruned = new Map(report.layers.map((layer) => [`${layer.name}.weight`, layer]));
    for (const tensor of inspection.tensors) {
      const layer = pruned.get(tensor.name);
      if (layer) expect(tensor.sparsity).toBeCloseTo(layer.sparsity, 3);
    }
    const [before, after] = [await Checkpoint.open(model), await Checkpoint.open(join(scratch, 'alps'))];
    for (const [name, info] of before.tensors) {
      expect(after.tensors.get(name)).toMatchObject({ dtype: info.dtype, shape: info.shape });
      if (!pruned.has(name) && name !== 'model.norm.weight')
        expect(Buffer.compare(await before.read(name), await after.read(name))).toBe(0);
    }
    await before.close();
    await after.close();
    const files = await readdir(join(scratch, 'alps'));
    expect(files).toEqual(
      expect.arrayContaining(['config.json', 'model.safetensors', 'tokenizer.json', 'pruning.json']),
    );
    const written = JSON.parse(await readFile(join(scratch, 'alps', 'pruning.json'), 'utf8'));
    expect(written).toMatchObject({ method: 'alps', description: '60 % sparsity', layers: report.layers });
  });

  test('2:4: every group keeps 2 of 4', async () => {
    const report = await run('nm', { pattern: { keep: 2, of: 4 } });
    expect(report.description).toBe('keeps 2 of 4');
    const inspection = await inspectModel(join(scratch, 'nm'), { pattern: { keep: 2, of: 4 } });
    const checked = inspection.tensors.filter((tensor) => tensor.pattern !== undefined);
    expect(checked.length).toBe(report.layers.length);
    expect(checked.every((tensor) => tensor.pattern)).toBe(true);
    expect(inspection.blockSparsity).toBeCloseTo(0.5, 4);
  });

  test('both propagations and both schedules run; the same call gives the same bytes for any number of threads', async () => {
    await run('block', { sparsity: 0.5, propagation: 'block', schedule: 'alps', metric: 'diagonal', threads: 1 });
    await run('block2', { sparsity: 0.5, propagation: 'block', schedule: 'alps', metric: 'diagonal', threads: 2 });
    const [one, two] = await Promise.all(
      ['block', 'block2'].map((name) => readFile(join(scratch, name, 'model.safetensors'))),
    );
    expect(Buffer.compare(one!, two!)).toBe(0);
    expect(await perplexityOf(join(scratch, 'block'))).toBeLessThan(2 * (await perplexityOf(model)));
  });

  test.each<[string, Partial<PruneOptions>]>([
    ['sequential', {}],
    ['block by block', { propagation: 'block' }],
    ['without inputs', { method: 'magnitude', calibration: undefined }],
  ])('%s: the phases of every block are times within it', async (_, options) => {
    const blocks: Extract<PruneEvent, { type: 'block' }>[] = [];
    const onEvent = (event: PruneEvent) => void (event.type === 'block' && blocks.push(event));
    await run('phases', { sparsity: 0.5, overwrite: true, onEvent, ...options });
    expect(blocks).toHaveLength(5);
    for (const { milliseconds, phases } of blocks) {
      for (const spent of Object.values(phases)) expect(spent).toBeGreaterThanOrEqual(0);
      expect(phases.read + phases.forward + phases.solve).toBeLessThanOrEqual(milliseconds);
    }
  });

  test('the report in the folder has the times of the run', async () => {
    const { milliseconds } = await run('times', { sparsity: 0.5, overwrite: true });
    const { milliseconds: written } = JSON.parse(await readFile(join(scratch, 'times', 'pruning.json'), 'utf8'));
    const { total, write, ...parts } = written;
    expect(parts).toEqual({ calibration: milliseconds.calibration, blocks: milliseconds.blocks });
    expect(write).toBeGreaterThan(0);
    expect(total).toBeCloseTo(parts.calibration + parts.blocks + write, 0);
    expect(total).toBeLessThanOrEqual(milliseconds.total);
  });

  const tokenIds = Array.from({ length: 4 }, (_, w) =>
    Array.from({ length: 24 }, (_, i) => (w * 37 + i * i * 11) % 90),
  );
  const threadCases: [string, Partial<PruneOptions>][] = [
    ['llama-plain', {}],
    ['llama-plain', { schedule: 'alps', metric: 'diagonal', propagation: 'block' }],
    ['llama-plain', { method: 'dsnot', sparsity: undefined, pattern: { keep: 2, of: 4 } }],
    ['gpt2', { method: 'sparsegpt', refit: 'pcg' }],
    ['opt-post', { method: 'wanda', refit: 'backsolve' }],
    ['qwen3-moe', {}],
    ['gemma3', { method: 'magnitude' }],
  ];
  test.each(threadCases)('%s %j: equal bytes for 1, 2 and 3 threads', async (name, options) => {
    const fixture = fileURLToPath(new URL(`fixtures/models/${name}`, import.meta.url));
    const outputs = await Promise.all(
      [1, 2, 3].map(async (threads) => {
        const out = `threads${threads}`;
        const given = { model: fixture, calibration: { tokenIds }, sparsity: 0.5, overwrite: true, ...options };
        const { layers } = await run(out, { ...given, threads });
        const results = layers.map(({ milliseconds: _, ...layer }) => layer);
        return { results, weights: await readFile(join(scratch, out, 'model.safetensors'), 'base64') };
      }),
    );
    expect(outputs[1]).toEqual(outputs[0]);
    expect(outputs[2]).toEqual(outputs[0]);
  });

  test('an abort stops it and leaves nothing', async () => {
    const controller = new AbortController();
    const running = run('aborted', {
      sparsity: 0.5,
      signal: controller.signal,
      onEvent: (event) => event.type === 'layer' && controller.abort(),
    });
    await expect(running).rejects.toMatchObject({ code: 'ABORTED' });
    const left = await readdir(scratch);
    expect(left.filter((name) => name.includes('aborted') || name.includes('partial'))).toEqual([]);
  });

  test.each<[string, Partial<PruneOptions>, string, string]>([
    ['no pattern', {}, 'INVALID_ARGUMENT', 'Expected exactly one of sparsity and pattern'],
    [
      'no calibration',
      { sparsity: 0.5, calibration: undefined },
      'INVALID_ARGUMENT',
      'Expected text or token ids for calibration',
    ],
    ...[null, false, 0, ''].map((calibration): [string, Partial<PruneOptions>, string, string] => [
      `${JSON.stringify(calibration)} for calibration`,
      { sparsity: 0.5, preset: 'paper', calibration: calibration as never },
      'INVALID_ARGUMENT',
      'Expected an object for calibration',
    ]),
    ['a missing model', { sparsity: 0.5, model: '/no/such/model' }, 'FILE_SYSTEM', '/no/such/model'],
    ...(['overwrite', 'resume', 'restart'] as const).map((name): [string, Partial<PruneOptions>, string, string] => [
      `${name} that is no flag`,
      { sparsity: 0.5, [name]: 'false' as never },
      'INVALID_ARGUMENT',
      `Expected true or false for ${name}`,
    ]),
    [
      'a restart of what does not resume',
      { sparsity: 0.5, restart: true },
      'INVALID_ARGUMENT',
      'Expected false without resume for restart',
    ],
    [
      'a seed of more than 32 bits',
      { sparsity: 0.5, calibration: { text: 'none.txt', seed: 2 ** 32 } },
      'INVALID_ARGUMENT',
      'Expected an integer of at most 4294967295 for seed',
    ],
    ['no listener', { sparsity: 0.5, onEvent: 5 as never }, 'INVALID_ARGUMENT', 'Expected a function for onEvent'],
    ['the output is the model', { sparsity: 0.5, out: model }, 'INVALID_ARGUMENT', 'output'],
    [
      'a width that 7 does not divide',
      { pattern: { keep: 3, of: 7 } },
      'INVALID_ARGUMENT',
      'Expected a width that 7 divides',
    ],
    [
      'an unknown propagation',
      { sparsity: 0.5, propagation: 'all' as never },
      'INVALID_ARGUMENT',
      '"sequential" or "block" for propagation',
    ],
    [
      'no length',
      { sparsity: 0.5, calibration: { text, length: 0 } },
      'INVALID_ARGUMENT',
      'Expected an integer of at least 2 for length',
    ],
    [
      'token ids beyond the vocabulary',
      { sparsity: 0.5, calibration: { tokenIds: [[1, 2, 1e6]] } },
      'INVALID_TEXT',
      'token id 1000000',
    ],
    ['too little memory', { sparsity: 0.5, memoryLimit: 1 << 20 }, 'OUT_OF_MEMORY', 'limit of 1048576 bytes'],
  ])('%s is refused', async (name, options, code, message) => {
    const running = run(name.replaceAll(' ', '-'), options);
    await expect(running).rejects.toMatchObject({ code, message: expect.stringContaining(message) });
    expect((await readdir(scratch)).filter((entry) => entry.includes('partial'))).toEqual([]);
  });

  test.each([
    ['windows', 0],
    ['length', 1],
    ['seed', -1],
    ['maxTokens', 0],
    ['ownWindows', 0.5],
  ])('calibration.%s of %d is refused before a folder is made', async (name, value) => {
    const running = run('nowhere/pruned', { sparsity: 0.5, calibration: { text, [name]: value } });
    await expect(running).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(name) });
    expect(await readdir(scratch)).not.toContain('nowhere');
  });

  test('NaN in a weight names its tensor', async () => {
    const broken = join(scratch, 'nan-model');
    await cp(model, broken, { recursive: true });
    const source = await Checkpoint.open(model);
    const tensors = await Promise.all(
      [...source.tensors.values()].map(async ({ name, dtype, shape }) => ({
        name,
        dtype,
        shape,
        bytes: await source.read(name),
      })),
    );
    await source.close();
    const victim = tensors.find(({ name }) => name.endsWith('layers.1.self_attn.o_proj.weight'))!;
    new Uint16Array(victim.bytes.buffer)[5] = 0x7fc0;
    await rm(join(broken, 'model.safetensors'));
    await writeSafetensors(join(broken, 'model.safetensors'), tensors);
    await expect(run('nan', { model: broken, sparsity: 0.5 })).rejects.toMatchObject({
      code: 'NOT_FINITE',
      message: expect.stringContaining('model.layers.1.self_attn.o_proj'),
    });
  });

  test('an unknown model type is refused with the known ones', async () => {
    const other = join(scratch, 'other-model');
    await cp(model, other, { recursive: true });
    const config = JSON.parse(await readFile(join(other, 'config.json'), 'utf8'));
    await writeFile(join(other, 'config.json'), JSON.stringify({ ...config, model_type: 'mamba' }));
    await expect(run('other', { model: other, sparsity: 0.5 })).rejects.toMatchObject({
      code: 'UNSUPPORTED_MODEL',
      message: expect.stringContaining('the model_type "mamba" is not supported; known are llama, mistral'),
    });
  });
});
