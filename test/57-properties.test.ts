import fc from 'fast-check';
import { Device } from '../src/device/device.js';
import type { Method, Refit } from '../src/pruning/options.js';
import { type PruneLayerOptions, type PruneLayerResult, pruneLayer } from '../src/pruning/prune-layer.js';
import { normal, random, threadCounts } from './helpers/numbers.js';
import { check } from './helpers/properties.js';

// Properties of pruneLayer() on random small layers. ALPS_FUZZ_RUNS multiplies the number of runs.

const devices = threadCounts.map((threads) => Device.open('cpu', { threads }));

interface Layer {
  m: number;
  n: number;
  weight: Float32Array<ArrayBuffer>;
  activations: Float32Array<ArrayBuffer>;
  pattern: { sparsity: number } | { pattern: { keep: number; of: number } };
}

/** Weights and inputs of many kinds: equal ones, zeros of both signs, rows of other sizes, inputs that are dead or copies. */
const layer: fc.Arbitrary<Layer> = fc
  .record({
    m: fc.integer({ min: 1, max: 12 }),
    groups: fc.integer({ min: 1, max: 6 }),
    of: fc.integer({ min: 1, max: 5 }),
    keep: fc.nat(5),
    nm: fc.boolean(),
    sparsity: fc.oneof(fc.double({ min: 0, max: 1, noNaN: true }), fc.constantFrom(0, 0.5, 0.999999, 1)),
    tokens: fc.integer({ min: 1, max: 60 }),
    seed: fc.nat(2 ** 31),
    weights: fc.constantFrom('normal', 'normal', 'steps', 'zeros', 'sizes'),
    inputs: fc.constantFrom('normal', 'normal', 'dead', 'copies', 'sizes'),
  })
  .map(({ m, groups, of, keep, nm, sparsity, tokens, seed, weights, inputs }) => {
    const n = groups * of;
    const next = random(seed);
    const weight = normal(seed + 1, m * n).map((w, i) => {
      if (weights === 'steps') return Math.round(2 * w) / 2;
      if (weights === 'zeros') return next() < 0.5 ? (next() < 0.5 ? -0 : 0) : w;
      return weights === 'sizes' ? w * 10 ** ((Math.floor(i / n) % 5) - 2) : w;
    });
    const noise = normal(seed + 2, tokens * n);
    const activations = noise.map((x, i) => {
      const j = i % n;
      if (inputs === 'dead') return j % 3 === 1 ? 0 : x;
      if (inputs === 'copies') return j > 0 && j % 2 === 1 ? noise[i - 1]! : x;
      return inputs === 'sizes' ? x * 10 ** ((j % 5) - 2) : x + noise[i - j]!;
    });
    const pattern = nm ? { pattern: { keep: Math.min(keep, of), of } } : { sparsity };
    return { m, n, weight, activations, pattern };
  });

const run = (l: Layer, options: Partial<PruneLayerOptions>) =>
  pruneLayer({
    weight: l.weight,
    shape: [l.m, l.n],
    activations: l.activations,
    device: devices[0]!,
    ...l.pattern,
    ...options,
  });

/** How many weights stay must be exact: of each group, of each row where rows have budgets of their own, of the layer. */
function expectCounts({ m, n, pattern }: Layer, { mask, kept }: PruneLayerResult, byRow: boolean): void {
  const count = (start: number, length: number) =>
    mask.subarray(start, start + length).reduce((sum, bit) => sum + bit, 0);
  expect(count(0, m * n)).toBe(kept);
  if ('pattern' in pattern) {
    const { keep, of } = pattern.pattern;
    for (let at = 0; at < m * n; at += of) expect(count(at, of)).toBe(keep);
  } else if (byRow) {
    for (let i = 0; i < m; i++) expect(count(i * n, n)).toBe(n - Math.floor(n * pattern.sparsity));
  } else expect(kept).toBe(Math.round((1 - pattern.sparsity) * m * n));
}

const anyMethod = fc.record({
  layer,
  method: fc.constantFrom<Method>('alps', 'alps', 'magnitude', 'wanda', 'sparsegpt', 'dsnot'),
  refit: fc.constantFrom<Refit | undefined>(undefined, 'none', 'pcg', 'backsolve'),
  comparisonGroup: fc.constantFrom<'layer' | 'row' | undefined>(undefined, 'layer', 'row'),
  schedule: fc.constantFrom<'ladder' | 'short' | 'alps'>('ladder', 'short', 'alps'),
});

test('any method: exact counts, +0 where pruned, finite numbers, kept weights as they were, equal bits for any number of threads', async () => {
  await check(
    'pruneLayer',
    { runs: 100, input: anyMethod },
    async ({ layer, method, refit, comparisonGroup, schedule }) => {
      const grouped = method === 'magnitude' || method === 'wanda';
      const options: Partial<PruneLayerOptions> = {
        method,
        ...(refit ? { refit } : {}),
        ...(grouped && comparisonGroup ? { comparisonGroup } : {}),
        ...(method === 'alps' ? { schedule } : {}),
      };
      const [result, ...others] = await Promise.all(devices.map((device) => run(layer, { ...options, device })));
      const group = grouped ? (comparisonGroup ?? (method === 'wanda' ? 'row' : 'layer')) : 'layer';
      expectCounts(layer, result!, method === 'dsnot' || group === 'row');
      result!.weight.forEach((w, i) => {
        if (!result!.mask[i]) expect(Object.is(w, 0)).toBe(true);
        else expect(Number.isFinite(w)).toBe(true);
      });
      expect(Number.isFinite(result!.error)).toBe(true);
      if ((refit ?? 'none') === 'none' && (grouped || method === 'dsnot'))
        expect(result!.weight).toEqual(layer.weight.map((w, i) => (result!.mask[i] ? w : 0)));
      for (const other of others) {
        expect(Buffer.compare(Buffer.from(other.weight.buffer), Buffer.from(result!.weight.buffer))).toBe(0);
        expect(other.mask).toEqual(result!.mask);
        expect(other.error).toBe(result!.error);
      }
    },
  );
  for (const device of devices) expect(device.info().memoryUsed).toBe(0);
});

test('pruning what was pruned changes nothing', async () => {
  const input = fc.record({ layer, method: fc.constantFrom<Method>('magnitude', 'wanda', 'sparsegpt', 'dsnot') });
  await check('idempotence', { runs: 80, input }, async ({ layer, method }) => {
    const once = await run(layer, { method });
    const twice = await run({ ...layer, weight: once.weight }, { method });
    // Among scores that are zero the lowest index stays: a kept weight that is zero, or whose input is dead, may give way to a pruned one.
    const dead = (j: number) => layer.activations.every((x, i) => i % layer.n !== j || x === 0);
    const ties = once.weight.some((w, i) => once.mask[i] && (w === 0 || dead(i % layer.n)));
    if (!ties) expect(twice.mask).toEqual(once.mask);
    // SparseGPT works in scaled variables: a weight is multiplied and divided by its scale, each rounded to float32's 24 bits.
    const most = method === 'sparsegpt' ? 2 ** -22 : 0;
    const same = twice.weight.every((w, i) => Math.abs(w - once.weight[i]!) <= most * Math.abs(w));
    if (!ties || method === 'magnitude') expect(same).toBe(true);
  });
});

test('ALPS loses nothing of a layer that is sparse enough already', async () => {
  // The start of ADMM, D = B = W and V = 0, is then its fixed point; what is left is rounding. (The error without the ridge: weights of dead
  // inputs become 0, which costs nothing but ridge.)
  await check('ALPS of a sparse layer', { runs: 40, input: layer }, async (layer) => {
    const { weight } = await run(layer, { method: 'magnitude' });
    for (const schedule of ['ladder', 'alps'] as const)
      expect((await run({ ...layer, weight }, { schedule })).error).toBeLessThan(1e-9);
  });
});

test('ALPS beats magnitude pruning on layers that are not tiny', async () => {
  // ADMM promises no optimum: in a layer of a few weights, with inputs that are copies or dead, magnitude pruning can be luckier. From 16
  // inputs on, each seen often enough, and where something is lost at all, it is not.
  const input = fc
    .record({
      m: fc.integer({ min: 8, max: 24 }),
      n: fc.integer({ min: 4, max: 10 }).map((groups) => 4 * groups),
      seed: fc.nat(2 ** 31),
      pattern: fc.oneof(
        fc.double({ min: 0.3, max: 0.9, noNaN: true }).map((sparsity) => ({ sparsity })),
        fc.constant({ pattern: { keep: 2, of: 4 } }),
      ),
    })
    .map(({ m, n, seed, pattern }) => {
      const noise = normal(seed + 2, 3 * n * n);
      const activations = noise.map((x, i) => x + noise[i - (i % n)]!);
      return { m, n, pattern, weight: normal(seed + 1, m * n), activations };
    });
  await check('ALPS against magnitude', { runs: 40, input }, async (layer) => {
    const [alps, magnitude] = [await run(layer, { method: 'alps' }), await run(layer, { method: 'magnitude' })];
    expect(alps.errorWithRidge).toBeLessThan(magnitude.errorWithRidge);
  });
});
