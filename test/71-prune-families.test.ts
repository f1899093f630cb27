import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { SafetensorsFile, writeSafetensors } from '../src/checkpoint/safetensors.js';
import { inspectModel } from '../src/inspect.js';
import { sharesOf } from '../src/model/expert-run.js';
import { type PruneOptions, prune } from '../src/prune.js';
import { random } from './helpers/numbers.js';

const models = fileURLToPath(new URL('fixtures/models/', import.meta.url));
const names = [
  'phi3-fused',
  'gemma2',
  'gemma3',
  'opt-pre',
  'opt-post',
  'gpt2',
  'mixtral',
  'qwen3-moe',
  'qwen3-moe-fused',
];

let scratch: string;
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'alps-families-'));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

const next = random(3);
const tokenIds = Array.from({ length: 24 }, () => Array.from({ length: 32 }, () => Math.floor(next() * 120)));
const run = (name: string, out: string, options: Partial<PruneOptions>) =>
  prune({ model: join(models, name), out: join(scratch, out), calibration: { tokenIds }, overwrite: true, ...options });

describe.each(names)('%s', (name) => {
  test('2:4 in every matrix of the blocks, all else as it was; ALPS loses less than magnitude', async () => {
    const alps = await run(name, name, { pattern: { keep: 2, of: 4 }, finalNorm: false });
    const inspection = await inspectModel(join(scratch, name), { pattern: { keep: 2, of: 4 } });
    const checked = inspection.tensors.filter(({ pattern }) => pattern !== undefined);
    expect(checked.every(({ pattern }) => pattern)).toBe(true);
    expect(alps.sparsity).toBe(0.5);
    const pruned = new Set(alps.layers.map((layer) => layer.name.replace(/\[\d+\]$/, '')));
    expect(new Set(checked.map((tensor) => tensor.name.replace(/\.weight$/, '')))).toEqual(pruned);
    const [before, after] = [await Checkpoint.open(join(models, name)), await Checkpoint.open(join(scratch, name))];
    for (const tensor of before.tensors.keys()) {
      if (!pruned.has(tensor.replace(/\.weight$/, '')))
        expect(Buffer.compare(await before.read(tensor), await after.read(tensor))).toBe(0);
    }
    await Promise.all([before.close(), after.close()]);
    const magnitude = await run(name, name, { pattern: { keep: 2, of: 4 }, method: 'mp' });
    expect(alps.meanError!).toBeLessThan(magnitude.meanError!);
  });

  test('every method and both propagations run, with the errors in order', async () => {
    const errors: Record<string, number> = {};
    for (const method of ['magnitude', 'wanda', 'sparsegpt', 'dsnot', 'alps'] as const) {
      // With a dense target ALPS would not minimise the error that is compared here.
      const report = await run(name, name, { sparsity: 0.5, method, propagation: 'block', denseTarget: false });
      errors[method] = report.meanError!;
      expect(report.sparsity).toBeCloseTo(0.5, 2);
    }
    expect(errors.alps!).toBeLessThan(errors.sparsegpt!);
    expect(errors.sparsegpt!).toBeLessThan(errors.wanda!);
    const refitted = await run(name, name, { sparsity: 0.5, method: 'wanda', refit: 'pcg', propagation: 'block' });
    expect(refitted.meanError!).toBeLessThan(errors.wanda!);
  });
});

describe('experts', () => {
  test('all experts in one tensor, or a tensor each: the same weights give the same pruned weights', async () => {
    // The fused fixture, cut into a tensor an expert.
    const folder = join(scratch, 'cut');
    await cp(join(models, 'qwen3-moe-fused'), folder, { recursive: true });
    const source = await Checkpoint.open(join(models, 'qwen3-moe-fused'));
    const tensors = [];
    for (const { name, dtype, shape } of source.tensors.values()) {
      const bytes = await source.read(name);
      if (shape.length < 3) {
        tensors.push({ name, dtype, shape, bytes });
        continue;
      }
      const [experts = 0, rows = 0, columns = 0] = shape;
      const size = bytes.length / experts;
      for (let e = 0; e < experts; e++) {
        const part = bytes.slice(e * size, (e + 1) * size);
        const at = name.replace(/experts\..*/, `experts.${e}.`);
        if (name.endsWith('down_proj'))
          tensors.push({ name: `${at}down_proj.weight`, dtype, shape: [rows, columns], bytes: part });
        else
          for (const [i, half] of ['gate_proj', 'up_proj'].entries())
            tensors.push({
              name: `${at}${half}.weight`,
              dtype,
              shape: [rows / 2, columns],
              bytes: part.slice((i * size) / 2, ((i + 1) * size) / 2),
            });
      }
    }
    await source.close();
    await rm(join(folder, 'model.safetensors'));
    await writeSafetensors(join(folder, 'model.safetensors'), tensors);
    // N:M, since the budget of a fused gate and up is one.
    const options = { pattern: { keep: 2, of: 4 }, method: 'sparsegpt' } as const;
    await run('qwen3-moe-fused', 'fused-out', options);
    await run('', 'cut-out', { ...options, model: folder });
    const [fused, cut] = [
      await Checkpoint.open(join(scratch, 'fused-out')),
      await Checkpoint.open(join(scratch, 'cut-out')),
    ];
    for (const layer of [0, 1]) {
      const whole = await fused.read(`model.layers.${layer}.mlp.experts.down_proj`);
      const parts = [];
      for (let e = 0; e < 6; e++) parts.push(await cut.read(`model.layers.${layer}.mlp.experts.${e}.down_proj.weight`));
      expect(Buffer.compare(whole, Buffer.concat(parts))).toBe(0);
    }
    await Promise.all([fused.close(), cut.close()]);
  });

  test('an expert without tokens is pruned by magnitude and says so', async () => {
    // Two tokens alone reach at most 4 of 6 experts of each layer.
    const report = await run('qwen3-moe', 'few', { sparsity: 0.5, calibration: { tokenIds: [[5, 9]] } });
    const alone = report.layers.filter(({ fallback }) => fallback === 'magnitude');
    expect(alone.length).toBeGreaterThan(0);
    for (const layer of alone) expect(layer).toMatchObject({ error: null, sparsity: 0.5 });
    expect(report.meanError).toBeGreaterThan(0);
    const inspection = await inspectModel(join(scratch, 'few'));
    expect(inspection.blockSparsity).toBeCloseTo(0.5, 4);
  });

  test('shares: each expert’s tokens in order, with their weights', () => {
    const shares = sharesOf(Uint32Array.from([2, 0, 0, 1]), Float32Array.from([0.5, 0.25, 1, 2]), {
      count: 3,
      perToken: 2,
    });
    expect(shares.map(({ rows, weights, start }) => [Array.from(rows), Array.from(weights), start])).toEqual([
      [[0, 1], [0.25, 1], 0],
      [[1], [2], 2],
      [[0], [0.5], 3],
    ]);
  });
});

describe('a model of unknown type', () => {
  let folder: string;
  beforeAll(async () => {
    folder = join(scratch, 'unknown');
    await cp(join(models, 'llama-plain'), folder, { recursive: true });
    const config = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'));
    await writeFile(join(folder, 'config.json'), JSON.stringify({ ...config, model_type: 'newcomer' }));
  });

  test('magnitude pruning finds its matrices by their names', async () => {
    const known = await run('llama-plain', 'known-mp', { sparsity: 0.5, method: 'mp', calibration: undefined });
    const report = await run('', 'unknown-mp', { model: folder, sparsity: 0.5, method: 'mp', calibration: undefined });
    expect(new Set(report.layers.map(({ name }) => name))).toEqual(new Set(known.layers.map(({ name }) => name)));
    const [a, b] = await Promise.all(
      ['known-mp', 'unknown-mp'].map((name) => readFile(join(scratch, name, 'model.safetensors'))),
    );
    expect(Buffer.compare(a!, b!)).toBe(0);
  });

  test('a table of relative positions is not pruned', async () => {
    const other = join(scratch, 'relative');
    await cp(join(folder, 'config.json'), join(other, 'config.json'));
    const at = 'encoder.block.0.layer.0.SelfAttention';
    const bytes = new Uint8Array(Float32Array.from({ length: 64 }, (_, i) => i + 1).buffer);
    const tensors = ['q', 'relative_attention_bias'].map((name) => `${at}.${name}.weight`);
    await writeSafetensors(
      join(other, 'model.safetensors'),
      tensors.map((name) => ({ name, dtype: 'F32', shape: [8, 8], bytes })),
    );
    const report = await run('', 'relative-mp', { model: other, sparsity: 0.5, method: 'mp', calibration: undefined });
    expect(report.layers.map(({ name }) => name)).toEqual([`${at}.q`]);
  });

  test('all else is refused with the way out', async () => {
    for (const options of [{}, { method: 'mp' as const }]) {
      await expect(run('', 'no', { model: folder, sparsity: 0.5, ...options })).rejects.toMatchObject({
        code: 'UNSUPPORTED_MODEL',
        message: expect.stringContaining('can only be pruned by magnitude, without calibration (method "magnitude")'),
      });
    }
    expect((await readdir(scratch)).filter((name) => name === 'no')).toEqual([]);
  });
});

test('the fixtures hold what their names say', async () => {
  const file = await SafetensorsFile.open(join(models, 'qwen3-moe-fused', 'model.safetensors'));
  expect(file.tensors.get('model.layers.0.mlp.experts.gate_up_proj')!.shape).toEqual([6, 64, 48]);
  await file.close();
});
