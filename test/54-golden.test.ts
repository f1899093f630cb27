import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { SafetensorsFile } from '../src/checkpoint/safetensors.js';
import { type PruneLayerOptions, pruneLayer } from '../src/pruning/prune-layer.js';
import { fromBf16 } from './helpers/numbers.js';

// Layers of SmolLM2-135M with the Gram matrices of real text, and what the published code reaches on them; made by scripts/make_golden.py.
const folder = fileURLToPath(new URL('fixtures/golden/', import.meta.url));

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

async function readLayer(file: string) {
  const tensors = await SafetensorsFile.open(folder + file);
  const bytes = await tensors.read('weight');
  const info = tensors.tensors.get('weight')!;
  const weight =
    info.dtype === 'BF16'
      ? fromBf16(new Uint16Array(bytes.buffer as ArrayBuffer))
      : new Float32Array(bytes.buffer as ArrayBuffer);
  const upper = new Float32Array((await tensors.read('gram_upper')).buffer as ArrayBuffer);
  await tensors.close();
  const [m, n] = info.shape as [number, number];
  const gram = new Float32Array(n * n);
  for (let i = 0, at = 0; i < n; i++) for (let j = i; j < n; j++) gram[i * n + j] = gram[j * n + i] = upper[at++]!;
  return { weight, gram, shape: [m, n] as [number, number] };
}

const schedules: [string, Partial<PruneLayerOptions>][] = [
  ['published schedule and metric', { schedule: 'alps', metric: 'diagonal' }],
  ['ladder, OBS metric', {}],
  ['ladder, OBS metric, bfloat16 products', { precision: 'bfloat16' }],
];

describe.each(schedules)('against the published code: %s', (_title, options) => {
  test.each(cases)('$name at $title: error at most 1.002 times its own', async ({ file, expected }) => {
    const layer = await readLayer(file);
    const pattern =
      typeof expected.pattern === 'number' ? { sparsity: expected.pattern } : { pattern: expected.pattern };
    const result = await pruneLayer({ ...layer, ...pattern, ...options });
    const { alps } = expected.methods;
    expect(result.kept).toBe(alps.nonZeros);
    expect(result.errorWithRidge / alps.errorWithRidge).toBeLessThan(1.002);
    expect(result.error / alps.error).toBeLessThan(1.002);
  });
});
