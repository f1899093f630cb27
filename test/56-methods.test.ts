import { Device } from '../src/device/device.js';
import { type PruneLayerOptions, pruneLayer } from '../src/pruning/prune-layer.js';
import { syntheticLayer } from './helpers/layers.js';
import { nmse, threadCounts } from './helpers/numbers.js';
import { exactRefit, inverse, type TestPattern, topMask } from './helpers/reference-alps.js';

const layer = syntheticLayer(24, 40);
const { weight, gram, m, n, activations } = layer;
const given = { weight, shape: layer.shape, gram };
const patterns: [string, TestPattern, Partial<PruneLayerOptions>][] = [
  ['50 %', { sparsity: 0.5 }, { sparsity: 0.5 }],
  ['70 %', { sparsity: 0.7 }, { sparsity: 0.7 }],
  ['2:4', { keep: 2, of: 4 }, { pattern: { keep: 2, of: 4 } }],
  ['3:8', { keep: 3, of: 8 }, { pattern: { keep: 3, of: 8 } }],
];
const maskOf = (scores: ArrayLike<number>, pattern: TestPattern, byRow: boolean) => {
  if (!byRow || 'of' in pattern) return topMask(scores, pattern);
  const keep = n - Math.floor(n * pattern.sparsity);
  const rows = Array.from({ length: m }, (_, i) =>
    topMask(Array.from(scores).slice(i * n, (i + 1) * n), { sparsity: 1 - keep / n }),
  );
  return Uint8Array.from(rows.flatMap((row) => Array.from(row)));
};
const norm = (j: number) => Math.sqrt(gram[j * n + j]!);

describe.each(patterns)('%s', (_title, pattern, options) => {
  test.each(['layer', 'row'] as const)('magnitude and Wanda by %s: the masks of a sort in float64', async (group) => {
    const magnitude = await pruneLayer({ ...given, ...options, method: 'mp', comparisonGroup: group });
    expect(magnitude.mask).toEqual(maskOf(weight, pattern, group === 'row'));
    const wanda = await pruneLayer({ ...given, ...options, method: 'wanda', comparisonGroup: group });
    const scores = Float64Array.from(weight, (w, i) => w * norm(i % n));
    expect(wanda.mask).toEqual(maskOf(scores, pattern, group === 'row'));
    for (const { weight: pruned, mask, kept } of [magnitude, wanda]) {
      expect(pruned).toEqual(weight.map((w, i) => (mask[i] ? w : 0)));
      expect(mask.reduce((sum, bit) => sum + bit, 0)).toBe(kept);
    }
  });

  test.each([16, 40, 128])('SparseGPT in blocks of %d: as column by column in float64', async (blockSize) => {
    const result = await pruneLayer({ ...given, ...options, method: 'sparsegpt', blockSize });
    const expected = referenceSparseGpt(pattern, blockSize);
    expect(result.mask).toEqual(expected.mask);
    expect(nmse(result.weight, expected.weight)).toBeLessThan(1e-8);
    expect(result.mask.reduce((sum, bit) => sum + bit, 0)).toBe(result.kept);
  });

  test.each(['wanda', 'magnitude', 'sparsegpt'] as const)(
    'DSnoT from %s: as swap by swap in float64',
    async (initial) => {
      for (const sameSign of [true, false]) {
        const settings = { initial, sameSign, threshold: 0.5, maxCycles: 20 };
        const result = await pruneLayer({
          weight,
          shape: layer.shape,
          activations,
          ...options,
          method: 'dsnot',
          dsnot: settings,
          windowLength: 16,
        });
        expect(result.mask).toEqual(referenceDsnot(pattern, settings));
      }
    },
  );

  test.each(['magnitude', 'wanda', 'sparsegpt', 'alps'] as const)(
    '%s refitted by backsolve: the exact minimum',
    async (method) => {
      const exact = await pruneLayer({ ...given, ...options, method, refit: 'backsolve' });
      const h = Float64Array.from(gram, (value, i) => value + (i % (n + 1) === 0 ? exact.ridge : 0));
      expect(nmse(exact.weight, exactRefit(weight, h, exact.mask, m, n))).toBeLessThan(1e-7);
      const [plain, pcg] = await Promise.all(
        (['none', 'pcg'] as const).map((refit) =>
          pruneLayer({ ...given, ...options, method, refit, refineIterations: 40 }),
        ),
      );
      expect(pcg!.mask).toEqual(plain!.mask);
      expect(pcg!.errorWithRidge).toBeLessThanOrEqual(plain!.errorWithRidge * (1 + 1e-6));
      expect(pcg!.errorWithRidge / exact.errorWithRidge).toBeLessThan(1.001);
    },
  );

  test.each(['wanda', 'sparsegpt', 'dsnot'] as const)('%s: equal bits for any number of threads', async (method) => {
    const runs = await Promise.all(
      threadCounts.map((threads) =>
        pruneLayer({
          weight,
          shape: layer.shape,
          activations,
          ...options,
          method,
          refit: 'backsolve',
          device: Device.open('cpu', { threads }),
        }),
      ),
    );
    for (const run of runs) expect(run.weight).toEqual(runs[0]!.weight);
  });
});

/** H = XᵀX + λI, its inverse's factor L, and the weights with dead inputs left alone. */
function factor() {
  const mean = Array.from({ length: n }, (_, i) => gram[i * n + i]!).reduce((a, b) => a + b, 0) / n;
  const h = Float64Array.from(gram, (value, i) => value + (i % (n + 1) === 0 ? 0.01 * mean : 0));
  const inverted = inverse(h, n);
  const l = new Float64Array(n * n);
  for (let j = 0; j < n; j++) {
    for (let i = j; i < n; i++) {
      let sum = inverted[i * n + j]!;
      for (let k = 0; k < j; k++) sum -= l[i * n + k]! * l[j * n + k]!;
      l[i * n + j] = i === j ? Math.sqrt(sum) : sum / l[j * n + j]!;
    }
  }
  return l;
}

function referenceSparseGpt(pattern: TestPattern, blockSize: number) {
  const l = factor();
  const w = Float64Array.from(weight);
  const mask = new Uint8Array(m * n);
  const block = 'of' in pattern ? Math.max(1, Math.floor(blockSize / pattern.of)) * pattern.of : blockSize;
  const kept = 'of' in pattern ? 0 : Math.round((1 - pattern.sparsity) * m * n);
  const score = (i: number, j: number) => (w[i * n + j]! / l[j * n + j]!) ** 2;
  for (let start = 0; start < n; start += block) {
    const end = Math.min(n, start + block);
    if (!('of' in pattern)) {
      const budget = Math.round((kept * end) / n) - Math.round((kept * start) / n);
      const places: [number, number][] = [];
      for (let i = 0; i < m; i++) for (let j = start; j < end; j++) places.push([i, j]);
      places.sort((a, b) => score(b[0], b[1]) - score(a[0], a[1]));
      for (const [i, j] of places.slice(0, budget)) mask[i * n + j] = 1;
    }
    for (let j = start; j < end; j++) {
      if ('of' in pattern && j % pattern.of === 0) {
        for (let i = 0; i < m; i++) {
          const group = Array.from({ length: pattern.of }, (_, c) => j + c).sort((a, b) => score(i, b) - score(i, a));
          for (const column of group.slice(0, pattern.keep)) mask[i * n + column] = 1;
        }
      }
      for (let i = 0; i < m; i++) {
        if (mask[i * n + j]) continue;
        const error = w[i * n + j]! / l[j * n + j]!;
        for (let c = j; c < n; c++) w[i * n + c]! -= error * l[c * n + j]!;
        w[i * n + j] = 0;
      }
    }
  }
  return { weight: w, mask };
}

function referenceDsnot(
  pattern: TestPattern,
  options: { initial: 'wanda' | 'magnitude' | 'sparsegpt'; sameSign: boolean; threshold: number; maxCycles: number },
) {
  const tokens = activations.length / n;
  const l = factor();
  const sum = Float64Array.from({ length: n }, (_, j) => {
    let total = 0;
    for (let t = 0; t < tokens; t++) total += activations[t * n + j]!;
    return total;
  });
  const variance = Float64Array.from({ length: n }, (_, j) => {
    let within = 0;
    for (let start = 0; start < tokens; start += 16) {
      const window = Array.from({ length: Math.min(16, tokens - start) }, (__, t) => activations[(start + t) * n + j]!);
      const mean = window.reduce((a, b) => a + b, 0) / window.length;
      within += window.reduce((a, b) => a + (b - mean) ** 2, 0);
    }
    return within / tokens;
  });
  const share = (i: number, j: number) => (weight[i * n + j]! * sum[j]! * 16) / tokens;
  const wanda = (i: number, j: number) => Math.abs(weight[i * n + j]!) * norm(j);
  const first = (i: number, j: number) =>
    options.initial === 'wanda'
      ? wanda(i, j)
      : options.initial === 'magnitude'
        ? Math.abs(weight[i * n + j]!)
        : Math.abs(weight[i * n + j]! / l[j * n + j]!);
  const mask = maskOf(
    Float64Array.from(weight, (_, at) => first(Math.floor(at / n), at % n)),
    pattern,
    true,
  );
  for (let i = 0; i < m; i++) {
    const columns = Array.from({ length: n }, (_, j) => j);
    const kept = columns.filter((j) => mask[i * n + j]);
    const pruned = columns.filter((j) => !mask[i * n + j]);
    let error = pruned.reduce((total, j) => total + share(i, j), 0);
    const sign = error > 0;
    const touched = new Set<number>();
    for (let cycle = 0; cycle < options.maxCycles && Math.abs(error) > options.threshold; cycle++) {
      const growable = pruned.filter((j) => !touched.has(j) && share(i, j) > 0 === error > 0);
      growable.sort((a, b) => Math.abs(share(i, b)) / variance[b]! - Math.abs(share(i, a)) / variance[a]!);
      const grow = growable[0];
      if (grow === undefined) break;
      touched.add(grow);
      const of = 'of' in pattern ? pattern.of : 0;
      const metric = of > 0 ? first : wanda;
      const prunable = kept.filter(
        (j) =>
          !touched.has(j) && (of > 0 ? Math.floor(j / of) === Math.floor(grow / of) : share(i, j) > 0 !== error > 0),
      );
      prunable.sort((a, b) => metric(i, a) - metric(i, b));
      const prune = prunable[0];
      if (prune === undefined) {
        if (of > 0) continue;
        break;
      }
      const after = error + share(i, prune) - share(i, grow);
      if (options.sameSign && after > 0 !== sign) break;
      touched.add(prune);
      mask[i * n + grow] = 1;
      mask[i * n + prune] = 0;
      error = after;
    }
  }
  return mask;
}

describe('errors: false', () => {
  const cases: [string, Partial<PruneLayerOptions>][] = [
    ['magnitude', { method: 'magnitude' }],
    ['Wanda', { method: 'wanda' }],
    ['DSnoT', { method: 'dsnot' }],
    ['DSnoT from SparseGPT', { method: 'dsnot', dsnot: { initial: 'sparsegpt' } }],
    ['Wanda with a refit', { method: 'wanda', refit: 'pcg' }],
    ['SparseGPT', { method: 'sparsegpt' }],
    ['ALPS', {}],
  ];

  test.each(cases)('%s: the same weights, no errors', async (_name, method) => {
    const options = { weight, shape: layer.shape, activations, sparsity: 0.6, ...method };
    const [measured, plain] = [await pruneLayer(options), await pruneLayer({ ...options, errors: false })];
    expect(measured.error).toBeGreaterThan(0);
    expect([plain.error, plain.errorWithRidge]).toEqual([Number.NaN, Number.NaN]);
    const rest = ({ weight: pruned, mask, kept, sparsity }: typeof plain) => ({ pruned, mask, kept, sparsity });
    expect(rest(plain)).toEqual(rest(measured));
  });

  test('from a Gram matrix only the diagonal is looked at; what is not finite is told', async () => {
    const sparse = Float32Array.from(gram, (value, i) => (i % (n + 1) === 0 ? value : Number.NaN));
    const options = { ...given, sparsity: 0.6, method: 'wanda', errors: false } as const;
    expect((await pruneLayer({ ...options, gram: sparse })).mask).toEqual((await pruneLayer(options)).mask);
    const bad = activations.slice();
    bad[3] = Number.POSITIVE_INFINITY;
    await expect(pruneLayer({ ...options, gram: undefined, activations: bad })).rejects.toMatchObject({
      code: 'NOT_FINITE',
      message: expect.stringContaining('Input 3'),
    });
  });
});

describe('the fixed schedule', () => {
  test('stays at its ρ, looks at every iteration, and traces the error it would give', async () => {
    const alpsSchedule = { initialRho: 0.3, checkEvery: 1, maxIterations: 25 };
    const options = { ...given, sparsity: 0.6, schedule: 'fixed', alpsSchedule, traceErrors: true } as const;
    const { trace, iterations } = await pruneLayer(options);
    expect(iterations).toBe(25);
    expect(trace.map(({ iteration }) => iteration)).toEqual(Array.from({ length: 25 }, (_, i) => i + 1));
    expect(new Set(trace.map(({ rho }) => rho))).toEqual(new Set([0.3]));
    const stopped = await pruneLayer({ ...options, refit: 'none' });
    expect(trace.at(-1)!.error! / stopped.errorWithRidge).toBeCloseTo(1, 4);
  });
});

test('DSnoT without the means of the inputs is refused in words', async () => {
  await expect(pruneLayer({ ...given, sparsity: 0.5, method: 'dsnot', name: 'a layer' })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining('DSnoT needs the means of the inputs of a layer'),
  });
});
