import { readFileSync } from 'node:fs';
import { type PruneLayerOptions, pruneLayer } from '../src/pruning/prune-layer.js';
import { goldenFolder as folder, readGoldenLayer as readLayer } from './helpers/golden.js';

// Layers of SmolLM2-135M with the Gram matrices of real text, and what the published code reaches on them; made by scripts/make_golden.py.
interface Golden {
  layers: Record<string, { file: string; patterns: Record<string, GoldenPattern> }>;
}
interface GoldenPattern {
  pattern: number | { keep: number; of: number };
  methods: Record<
    'alps' | 'sparsegpt' | 'wanda' | 'magnitude',
    { error: number; errorWithRidge: number; nonZeros: number }
  >;
}
const golden = JSON.parse(readFileSync(`${folder}golden.json`, 'utf8')) as Golden;
const cases = Object.entries(golden.layers).flatMap(([name, { file, patterns }]) =>
  Object.entries(patterns).map(([title, expected]) => ({ name, title, file, expected })),
);

const schedules: [string, number, Partial<PruneLayerOptions>][] = [
  ['published schedule and metric', 1.002, { schedule: 'alps', metric: 'diagonal' }],
  // 0.953 to 0.992, and to 0.994.
  ['ladder, OBS metric', 0.996, {}],
  ['ladder, OBS metric, float32', 0.996, { precision: 'float32' }],
  ['ladder, OBS metric, bfloat16 products', 0.996, { precision: 'bfloat16' }],
  ['balanced', 0.998, { preset: 'balanced' }],
];

describe.each(schedules)('against the published code: %s, error at most %d times its own', (_title, most, options) => {
  test.each(cases)('$name at $title', async ({ file, expected }) => {
    const layer = await readLayer(file);
    const pattern =
      typeof expected.pattern === 'number' ? { sparsity: expected.pattern } : { pattern: expected.pattern };
    const result = await pruneLayer({ ...layer, ...pattern, ...options });
    const { alps } = expected.methods;
    expect(result.kept).toBe(alps.nonZeros);
    expect(result.errorWithRidge / alps.errorWithRidge).toBeLessThan(most);
    expect(result.error / alps.error).toBeLessThan(most);
  });
});

const asOptions = (pattern: GoldenPattern['pattern']) =>
  typeof pattern === 'number' ? { sparsity: pattern } : { pattern };

// The published SparseGPT keeps one weight fewer in each block of 128 columns; nothing else differs.
test.each(cases)('SparseGPT, $name at $title: within 0.5 % of the published code', async ({ file, expected }) => {
  const result = await pruneLayer({
    ...(await readLayer(file)),
    ...asOptions(expected.pattern),
    method: 'sparsegpt',
  });
  const { sparsegpt } = expected.methods;
  expect(Math.abs(result.error / sparsegpt.error - 1)).toBeLessThan(0.005);
  const blocks = Math.ceil(result.mask.length / result.kept / 128) * 8;
  expect(Math.abs(result.kept - sparsegpt.nonZeros)).toBeLessThanOrEqual(blocks);
});

test.each(cases)('Wanda, $name at $title: the published error and number', async ({ file, expected }) => {
  const result = await pruneLayer({ ...(await readLayer(file)), ...asOptions(expected.pattern), method: 'wanda' });
  const { wanda } = expected.methods;
  expect(Math.abs(result.error / wanda.error - 1)).toBeLessThan(1e-5);
  expect(result.weight.filter((w) => w !== 0)).toHaveLength(wanda.nonZeros);
});

// Many of these weights have equal magnitudes (they were 4-bit numbers once), so masks and errors differ by the choice among ties.
test.each(cases)(
  'magnitude, $name at $title: the published number, none kept below one pruned',
  async ({ file, expected }) => {
    const layer = await readLayer(file);
    const { mask } = await pruneLayer({ ...layer, ...asOptions(expected.pattern), method: 'magnitude' });
    const group = typeof expected.pattern === 'number' ? mask.length : expected.pattern.of;
    for (let start = 0; start < mask.length; start += group) {
      let [smallestKept, largestPruned] = [Number.POSITIVE_INFINITY, 0];
      for (let i = start; i < start + group; i++) {
        const w = Math.abs(layer.weight[i]!);
        if (mask[i]) smallestKept = Math.min(smallestKept, w);
        else largestPruned = Math.max(largestPruned, w);
      }
      if (largestPruned > smallestKept) throw new Error(`${largestPruned} was pruned and ${smallestKept} kept`);
    }
    const kept = layer.weight.filter((w, i) => mask[i] && w !== 0).length;
    expect(kept).toBe(expected.methods.magnitude.nonZeros);
  },
);
