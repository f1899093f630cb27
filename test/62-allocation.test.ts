import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { allocate, type LayerShape, type LayerSparsities } from '../src/allocation/allocation.js';
import { readAllocation } from '../src/allocation/allocation-file.js';
import { Device } from '../src/device/device.js';
import { inspectModel } from '../src/inspect.js';
import { type PruneOptions, prune } from '../src/prune.js';
import { presets } from '../src/pruning/preset.js';

const model = fileURLToPath(new URL('../models/union-4m', import.meta.url));
const calibration = { text: join(model, 'calibration.txt.gz'), windows: 4, length: 64 };

let scratch: string;
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'alps-allocation-'));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

const run = (name: string, options: Partial<PruneOptions>) =>
  prune({ model, out: join(scratch, name), calibration, overwrite: true, ...options });
const total = (budgets: Iterable<{ keep: number }>) => [...budgets].reduce((sum, { keep }) => sum + keep, 0);
const layer = (name: string, outputs: number, inputs: number): LayerShape => ({ name, outputs, inputs });

describe('allocate', () => {
  const layers = [layer('a', 10, 12), layer('b', 7, 12), layer('c', 5, 24)];

  test('what is asked for, where it is the budget already', () => {
    const budgets = allocate(layers, { sparsity: 0.5 }, { a: 0.25, b: 0.5, c: 0.75 });
    expect([...budgets].map(([name, { keep }]) => [name, keep])).toEqual([
      ['a', 90],
      ['b', 42],
      ['c', 30],
    ]);
  });

  test('towards more zeros all keep one part of what they would keep', () => {
    const budgets = allocate(layers, { sparsity: 0.8 }, { a: 0, b: 0.9, c: 1 });
    // 65 of 324 weights stay, where 120 and 8.4 were asked for.
    expect(budgets.get('a')!.keep).toBe(Math.round((120 * 65) / 128.4));
    expect(budgets.get('b')!.keep).toBe(Math.round((8.4 * 65) / 128.4));
    expect(budgets.get('c')!.keep).toBe(0);
  });

  test('towards fewer zeros all are moved by one amount, and none beyond its bounds', () => {
    const keeps = (wanted: LayerSparsities) =>
      [...allocate(layers, { sparsity: 0.5 }, wanted).values()].map(({ keep }) => keep);
    // 135 of 324 weights were asked for, 162 stay: a twelfth more of each layer.
    expect(keeps({ a: 0.25, b: 0.5, c: 0.975 })).toEqual([100, 49, 13]);
    // All of a; b and c share the rest.
    expect(keeps({ a: 0, b: 1, c: 1 })).toEqual([120, 17, 25]);
  });

  test('N:M: an N for each layer', () => {
    const budgets = allocate(layers, { keep: 2, of: 4 }, { a: 0.25, b: 0.5, c: 0.75 });
    expect([...budgets.values()].map(({ pattern }) => pattern)).toEqual([
      { keep: 3, of: 4 },
      { keep: 2, of: 4 },
      { keep: 1, of: 4 },
    ]);
  });

  test.each<[string, LayerSparsities, string]>([
    ['a layer without one', { a: 0.5, b: 0.5 }, 'The allocation has no sparsity for c'],
    [
      'a name of no layer',
      { a: 0.5, b: 0.5, c: 0.5, d: 0.5 },
      'The allocation names "d", which is no layer of the model',
    ],
  ])('%s is refused', (_what, wanted, message) => {
    expect(() => allocate(layers, { sparsity: 0.5 }, wanted)).toThrow(message);
  });

  test('the budget is exact, bounds and order hold, for any layers', () => {
    const shape = fc.record({ outputs: fc.integer({ min: 1, max: 9 }), blocks: fc.integer({ min: 1, max: 5 }) });
    fc.assert(
      fc.property(
        fc.array(fc.tuple(shape, fc.double({ min: 0, max: 1, noNaN: true })), { minLength: 1, maxLength: 12 }),
        fc.oneof(
          fc.record({ sparsity: fc.double({ min: 0, max: 1, noNaN: true }) }),
          fc.record({ keep: fc.integer({ min: 0, max: 4 }), of: fc.constant(4) }),
        ),
        fc.boolean(),
        (rows, pattern, byRow) => {
          const sizes = rows.map(([{ outputs, blocks }], i) => layer(`l${i}`, outputs, 4 * blocks));
          const wanted = Object.fromEntries(rows.map(([, sparsity], i) => [`l${i}`, sparsity]));
          const budgets = allocate(sizes, pattern, wanted, byRow);
          const size = sizes.map(({ outputs, inputs }) => outputs * inputs);
          const all = size.reduce((sum, s) => sum + s, 0);
          const share = 'of' in pattern ? pattern.keep / pattern.of : 1 - pattern.sparsity;
          const rowBudget = ({ outputs, inputs }: LayerShape) => outputs * (inputs - Math.floor(inputs * (1 - share)));
          const budget =
            'of' in pattern
              ? all * share
              : sizes.reduce((sum, one, i) => sum + (byRow ? rowBudget(one) : Math.round(share * size[i]!)), 0);
          const steps = sizes.map(({ outputs }, i) => ('of' in pattern ? size[i]! / 4 : byRow ? outputs : 1));
          const left = budget - total(budgets.values());
          expect(left).toBeGreaterThanOrEqual(0);
          if (!('of' in pattern) && !byRow) expect(left).toBe(0);
          for (const [i, { name }] of sizes.entries()) {
            const { keep, pattern: own } = budgets.get(name)!;
            expect(keep % steps[i]!).toBe(0);
            expect(keep).toBeGreaterThanOrEqual(0);
            expect(keep).toBeLessThanOrEqual(size[i]!);
            if ('of' in own) expect(keep * 4).toBe(own.keep * size[i]!);
            // No layer has room for what is left.
            if (keep < size[i]!) expect(steps[i]!).toBeGreaterThan(left);
          }
        },
      ),
      { numRuns: 300 * Number(process.env.ALPS_FUZZ_RUNS ?? 1) },
    );
  });
});

describe('prune', () => {
  /** MLP sparser than attention. */
  let names: Promise<string[]> | undefined;
  async function uneven(): Promise<Record<string, number>> {
    names ??= run('names', { method: 'magnitude', sparsity: 0.5 }).then(({ layers }) => layers.map(({ name }) => name));
    return Object.fromEntries((await names).map((name) => [name, name.includes('mlp') ? 0.7 : 0.5]));
  }

  test.each<[string, Partial<PruneOptions>]>([
    ['alps', { sparsity: 0.6 }],
    ['sparsegpt', { sparsity: 0.6, method: 'sparsegpt' }],
    ['magnitude', { sparsity: 0.6, method: 'magnitude' }],
    ['paper', { sparsity: 0.6, preset: 'paper' }],
  ])('%s: each layer has its budget, all together exactly the sparsity', async (name, options) => {
    const allocation = await uneven();
    const even = await run(`${name}-even`, options);
    const report = await run(name, { ...options, allocation });
    expect(total(report.layers.map(({ kept }) => ({ keep: kept })))).toBe(
      total(even.layers.map(({ kept }) => ({ keep: kept }))),
    );
    const of = (part: string) => report.layers.find((layer) => layer.name.includes(part))!.sparsity;
    expect(of('mlp.up') - of('self_attn.q')).toBeCloseTo(0.2, 2);
    const stored = await zerosOf(join(scratch, name));
    for (const { name: layerName, kept, outputs, inputs } of report.layers)
      expect(stored(layerName)).toBeGreaterThanOrEqual(outputs * inputs - kept);
    expect(report.options).toMatchObject({ allocation });
  });

  test('layers of one input with different N are solved apart; so are rows with budgets of their own', async () => {
    const names = Object.keys(await uneven());
    const allocation = Object.fromEntries(names.map((name, i) => [name, [0.25, 0.5, 0.75][i % 3]!]));
    for (const method of ['alps', 'wanda'] as const) {
      const report = await run(`nm-${method}`, { method, pattern: { keep: 2, of: 4 }, allocation });
      for (const { name, sparsity } of report.layers) {
        expect((sparsity * 4) % 1).toBe(0);
        expect(Math.abs(sparsity - allocation[name]!)).toBeLessThanOrEqual(0.25);
      }
      expect(report.layers.map(({ name }) => name)).toEqual(names);
      expect(report.sparsity).toBeGreaterThanOrEqual(0.5);
      expect(report.sparsity).toBeLessThan(0.52);
    }
    const alike = Object.fromEntries(names.map((name) => [name, 0.3]));
    const total = async (options: Partial<PruneOptions>) =>
      (await run('rows', { method: 'wanda', sparsity: 0.63, ...options })).sparsity;
    expect(await total({ allocation: alike })).toBe(await total({}));
    const rows = await run('rows', { method: 'wanda', sparsity: 0.5, allocation });
    for (const { kept, outputs } of rows.layers) expect(kept % outputs).toBe(0);
    expect(rows.sparsity).toBeGreaterThanOrEqual(0.5);
    expect(rows.sparsity).toBeLessThan(0.501);
  });

  test('an even allocation changes nothing', async () => {
    const even = Object.fromEntries(Object.keys(await uneven()).map((name) => [name, 0.3]));
    await run('plain', { sparsity: 0.6 });
    await run('evened', { sparsity: 0.6, allocation: even });
    const weights = (name: string) => readFile(join(scratch, name, 'model.safetensors'));
    expect((await weights('plain')).equals(await weights('evened'))).toBe(true);
  });

  test.each<[string, unknown, string]>([
    ['a list', [], 'an object of sparsities by layer'],
    ['a percentage', { a: 70 }, 'Expected a number from 0 to 1 for allocation["a"] but received 70'],
    ['NaN', { a: Number.NaN }, 'but received NaN'],
    ['a wrong name', { a: 0.5 }, 'The allocation has no sparsity for model.layers.0.self_attn.q_proj'],
  ])('%s is refused before the text is read', async (_what, allocation, message) => {
    const missing = { text: '/nowhere.txt' };
    const options = { sparsity: 0.5, allocation: allocation as LayerSparsities, calibration: missing };
    await expect(run('refused', options)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(message),
    });
  });
});

/** Zeros of each stored layer. */
async function zerosOf(folder: string) {
  const { tensors } = await inspectModel(folder);
  return (name: string) => {
    const { shape, sparsity } = tensors.find((tensor) => tensor.name === `${name}.weight`)!;
    return Math.round(shape.reduce((size, d) => size * d, 1) * sparsity!);
  };
}

describe('the file of an allocation', () => {
  const read = async (text: string) => {
    const path = join(scratch, 'allocation.json');
    await writeFile(path, text);
    return readAllocation(path);
  };

  test('holds sparsities under "layers"', async () => {
    expect(await read('{"layers": {"a": 0.5}, "made": "by hand"}')).toEqual({ a: 0.5 });
  });

  test.each([
    ['not JSON', '{', 'is no allocation'],
    ['null', 'null', 'it has no "layers"'],
    ['without layers', '{"a": 0.5}', 'it has no "layers"'],
    ['a wrong number', '{"layers": {"a": 2}}', 'a number from 0 to 1'],
  ])('%s is refused', async (_what, text, message) => {
    await expect(read(text)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(message),
    });
  });

  test('that is missing is told', async () => {
    await expect(readAllocation(join(scratch, 'nothing.json'))).rejects.toMatchObject({ code: 'FILE_SYSTEM' });
  });
});

test.each<[string, PruneOptions['precision'], Partial<PruneOptions>, boolean]>([
  ['a ladder in bfloat16', 'bfloat16', {}, true],
  ['unless it is told not to', 'bfloat16', { mixedPrecision: false }, false],
  ['not in float32', 'float32', {}, false],
  ['unless it is told to', 'float32', { mixedPrecision: true }, true],
  ['not the published schedule', 'bfloat16', { preset: 'paper' }, false],
  ['nothing without a search', 'bfloat16', { method: 'wanda' }, false],
  ['nor if it is told to', 'bfloat16', { method: 'sparsegpt', mixedPrecision: true }, false],
])('a report tells of mixed precision: %s', async (_what, precision, options, wanted) => {
  const { bf16Products, int8Products } = Device.open('cpu').info();
  const { options: told } = await run('mixed', { sparsity: 0.5, precision, ...options });
  expect(told).toMatchObject({
    mixedPrecision: wanted && (bf16Products || int8Products),
    int8: wanted && int8Products,
  });
});

describe('preset paper', () => {
  test('is the options it stands for, to the byte; what is given beside it goes first', async () => {
    const spelled = await run('spelled', { sparsity: 0.5, ...presets.paper });
    const preset = await run('preset', { sparsity: 0.5, preset: 'paper' });
    expect(preset.options).toEqual(spelled.options);
    expect(preset.options).toMatchObject({
      schedule: 'alps',
      metric: 'diagonal',
      propagation: 'block',
      denseTarget: null,
    });
    const weights = (name: string) => readFile(join(scratch, name, 'model.safetensors'));
    expect((await weights('preset')).equals(await weights('spelled'))).toBe(true);
    const changed = await run('changed', {
      sparsity: 0.5,
      preset: 'paper',
      propagation: 'sequential',
      metric: undefined,
    });
    expect(changed.options).toMatchObject({ propagation: 'sequential', metric: 'diagonal' });
  });

  test('another name is refused', async () => {
    await expect(run('refused', { sparsity: 0.5, preset: 'best' as 'paper' })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('"paper"'),
    });
  });
});
