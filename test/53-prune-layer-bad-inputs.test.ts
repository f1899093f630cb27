import { JobQueue } from '../src/jobs/job-queue.js';
import { type PruneLayerOptions, pruneLayer } from '../src/pruning/prune-layer.js';
import { syntheticLayer } from './helpers/layers.js';
import { normal } from './helpers/numbers.js';
import { relativeError } from './helpers/reference-alps.js';

const { weight, gram, activations, m, n, shape } = syntheticLayer(12, 16);
const good = { weight, shape, gram, sparsity: 0.5 } as const;
const published = { schedule: 'alps', metric: 'diagonal' } as const;

function changed(source: Float32Array, index: number, value: number): Float32Array<ArrayBuffer> {
  const copy = Float32Array.from(source);
  copy[index] = value;
  return copy;
}

/** On memory of another kind. */
const on = (buffer: ArrayBufferLike) => {
  const floats = new Float32Array(buffer);
  floats.set(weight);
  return floats;
};
const { byteLength } = weight;
const shrinking: ArrayBuffer = Reflect.construct(ArrayBuffer, [byteLength, { maxByteLength: 2 * byteLength }]);
const fixed = 'Expected a Float32Array on an ArrayBuffer of its own and of fixed length for weight';

describe('bad options are refused in words', () => {
  const cases: [string, Record<string, unknown>, string][] = [
    [
      'no Gram matrix',
      { gram: undefined },
      'Expected exactly one for gram and activations but received "none" of type string',
    ],
    [
      'both inputs',
      { activations },
      'Expected exactly one for gram and activations but received "both" of type string',
    ],
    [
      'a short weight',
      { weight: weight.slice(1) },
      'Expected 192 numbers [12, 16] for weight but received Float32Array(191) of type object',
    ],
    ['plain numbers', { weight: [...weight] }, 'Expected a Float32Array [12, 16] for weight'],
    [
      'a wrong Gram matrix',
      { gram: gram.slice(16) },
      'Expected 256 numbers [16, 16] for gram but received Float32Array(240) of type object',
    ],
    [
      'ragged activations',
      { gram: undefined, activations: activations.slice(1) },
      'for activations but received Float32Array(',
    ],
    ['no shape', { shape: undefined }, 'Expected [outputs, inputs], two positive integers, for shape'],
    [
      'a sparsity as text',
      { sparsity: '0.5' },
      'Expected a number from 0 to 1 for sparsity but received "0.5" of type string',
    ],
    [
      'a sparsity in percent',
      { sparsity: 50 },
      'Expected a number from 0 to 1 for sparsity but received 50 of type number',
    ],
    ['N > M', { sparsity: undefined, pattern: { keep: 5, of: 4 } }, 'for pattern.keep but received 5'],
    [
      'M that does not divide',
      { sparsity: undefined, pattern: { keep: 2, of: 5 } },
      'Expected a width that 5 divides but the layer is [12, 16]',
    ],
    [
      'an unknown method',
      { method: 'best' },
      'Expected "alps" or "magnitude" or "wanda" or "sparsegpt" or "dsnot" for method but received "best" of type string',
    ],
    [
      'the ladder with the published metric',
      { schedule: 'ladder', metric: 'diagonal' },
      'The ladders need the metric "obs"',
    ],
    [
      'no relaxation',
      { relaxation: 0 },
      'Expected a number above 0 and below 2 for relaxation but received 0 of type number',
    ],
    ['a relaxation of 2', { relaxation: 2 }, 'Expected a number above 0 and below 2 for relaxation but received 2 of'],
    ['a negative ridge', { ridge: -1 }, 'Expected a number from 0 to 1000000 for ridge but received -1 of type number'],
    [
      'half an iteration',
      { refineIterations: 0.5 },
      'Expected an integer of at least 0 for refineIterations but received 0.5 of type number',
    ],
    [
      'more iterations than are counted',
      { refineIterations: 10_001 },
      'Expected an integer of at most 10000 for refineIterations but received 10001 of type number',
    ],
    [
      'mixed precision that is no flag',
      { mixedPrecision: 'on' as unknown as boolean },
      'Expected true or false for mixedPrecision but received "on" of type string',
    ],
    [
      'an unknown precision',
      { precision: 'int8' },
      'Expected "float32" or "bfloat16" for precision but received "int8" of type string',
    ],
    [
      'an unknown device',
      { device: 'tpu' },
      'Expected "auto", "cpu", "cuda" or "cuda:N" for device but received "tpu" of type string',
    ],
    ['a window of no tokens', { windowLength: 0 }, 'Expected an integer of at least 1 for windowLength'],
    [
      'too few means',
      { inputMean: new Float32Array(3), inputVariance: new Float32Array(n) },
      'Expected a Float32Array of 16 finite numbers',
    ],
    ['DSnoT without means', { method: 'dsnot' }, 'DSnoT needs the means of the inputs of the layer'],
    ['shared memory', { weight: on(new SharedArrayBuffer(byteLength)) }, fixed],
    ['memory that shrinks', { weight: on(shrinking) }, fixed],
    ['no inputs', { gram: undefined, activations: null }, 'Expected a Float32Array [tokens, 16] for activations'],
    ['null as method', { method: null }, 'for method but received null'],
    ['null as device', { device: null }, 'for device but received null'],
    ['a symbol as device', { device: Symbol('cuda') }, 'for device but received Symbol(cuda) of type symbol'],
    ['a list as device', { device: ['cuda'] }, 'for device but received ["cuda"]'],
    ['a date as dsnot', { dsnot: new Date() }, 'Expected an object with options, no Date, for dsnot'],
    ['a map as alpsSchedule', { alpsSchedule: new Map() }, 'Expected an object with options, no Map, for alpsSchedule'],
    ['a list as dsnot', { dsnot: [] }, 'Expected an object with options, no Array, for dsnot'],
  ];

  test.each(cases.filter(([, change]) => !('device' in change)))(
    'by a queue before it waits: %s',
    async (_, change) => {
      const queue = new JobQueue({ device: 'cpu', concurrency: 1 });
      const events: string[] = [];
      const options = { ...good, ...change } as unknown as PruneLayerOptions;
      const refused = queue.pruneLayer(options, { bytes: 1, onEvent: ({ type }) => events.push(type) });
      await expect(refused).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
      expect(events).toEqual([]);
    },
  );

  test('options of a class are options', async () => {
    class Swaps {
      readonly [Symbol.toStringTag] = 'Swaps';
      get initial() {
        return 'magnitude' as const;
      }
    }
    const options = { weight, shape, activations, sparsity: 0.5, method: 'dsnot' } as const;
    const { mask } = await pruneLayer({ ...options, dsnot: new Swaps() });
    expect(mask).toEqual((await pruneLayer({ ...options, dsnot: { initial: 'magnitude' } })).mask);
  });

  test.each(cases)('%s', async (_name, change, message) => {
    const options = { ...good, ...change } as unknown as PruneLayerOptions;
    await expect(pruneLayer(options)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(message),
    });
  });

  test('no options at all', async () => {
    for (const none of [undefined, null, 5] as unknown as PruneLayerOptions[])
      await expect(pruneLayer(none)).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining('Expected an object for options'),
      });
  });

  test('an aborted signal', async () => {
    await expect(pruneLayer({ ...good, signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORTED' });
  });

  test('a signal that fires during the solve', async () => {
    const wide = syntheticLayer(256, 256, { tokens: 300 });
    const controller = new AbortController();
    const running = pruneLayer({
      ...wide,
      activations: undefined,
      sparsity: 0.7,
      ...published,
      signal: controller.signal,
    });
    setTimeout(() => controller.abort(), 5);
    await expect(running).rejects.toMatchObject({ code: 'ABORTED' });
  });
});

describe('hard numbers', () => {
  test('NaN or infinity in the weights is named', async () => {
    await expect(pruneLayer({ ...good, name: 'q_proj', weight: changed(weight, 7, Number.NaN) })).rejects.toMatchObject(
      {
        code: 'NOT_FINITE',
        message: '1 weights of q_proj are NaN or infinite',
      },
    );
    await expect(pruneLayer({ ...good, weight: changed(weight, 7, Number.POSITIVE_INFINITY) })).rejects.toMatchObject({
      code: 'NOT_FINITE',
    });
  });

  test('NaN in the Gram matrix or the inputs is named', async () => {
    const message = expect.stringContaining('entries of the Gram matrix of the layer are NaN or infinite');
    await expect(pruneLayer({ ...good, gram: changed(gram, 3, Number.NaN) })).rejects.toMatchObject({
      code: 'NOT_FINITE',
      message,
    });
    const inputs = changed(activations, 3, Number.NaN);
    await expect(pruneLayer({ ...good, gram: undefined, activations: inputs })).rejects.toMatchObject({
      code: 'NOT_FINITE',
      message,
    });
  });

  test('a matrix that is no Gram matrix is refused after damping', async () => {
    const bad = Float32Array.from(gram, (value, i) =>
      i % (n + 1) === 0 ? value : value + 1e7 * (i % 3 === 0 ? 1 : -1),
    );
    for (let i = 0; i < n; i++) for (let j = 0; j < i; j++) bad[i * n + j] = bad[j * n + i]!;
    await expect(pruneLayer({ ...good, gram: bad })).rejects.toMatchObject({
      code: 'NOT_POSITIVE_DEFINITE',
      message: expect.stringContaining('The Gram matrix of the layer is not positive semi-definite'),
    });
  });

  test('fewer tokens than inputs, without a ridge: damped, and said so', async () => {
    const few = activations.slice(0, 5 * n);
    const result = await pruneLayer({ weight, shape, activations: few, sparsity: 0.5, ridge: 0 });
    expect(result.weight.every(Number.isFinite)).toBe(true);
    expect(result.dampingSteps).toBeGreaterThanOrEqual(0);
    expect(result.error).toBeLessThan(0.1);
  });

  const hard: [string, { weight?: Float32Array<ArrayBuffer>; activations?: Float32Array<ArrayBuffer> }][] = [
    ['all weights zero', { weight: new Float32Array(m * n) }],
    ['all weights equal (ties)', { weight: new Float32Array(m * n).fill(0.5) }],
    [
      'minus zero and subnormal weights',
      { weight: weight.map((w, i) => (i % 3 === 0 ? -0 : i % 3 === 1 ? 1e-40 * w : w)) },
    ],
    ['weights sparser than asked', { weight: weight.map((w, i) => (i % 10 === 0 ? w : 0)) }],
    ['a dead input', { activations: activations.map((x, i) => (i % n === 3 ? 0 : x)) }],
    ['no live input', { activations: new Float32Array(4 * n) }],
    ['a duplicated input', { activations: activations.map((x, i, all) => (i % n === 3 ? all[i - 1]! : x)) }],
    ['one input 10,000 times larger', { activations: activations.map((x, i) => (i % n === 3 ? 1e4 * x : x)) }],
    ['a condition number of 1e12', { activations: activations.map((x, i) => x * 10 ** (-6 * ((i % n) / (n - 1)))) }],
    ['tiny inputs', { activations: activations.map((x) => x * 1e-12) }],
  ];

  test.each(
    hard.flatMap(([name, change]) => [
      [name, change, {}] as const,
      [`${name}, published schedule`, change, published] as const,
    ]),
  )('%s', async (_name, change, schedule) => {
    const result = await pruneLayer({ weight, shape, activations, sparsity: 0.5, ...change, ...schedule });
    expect(result.mask.reduce((sum, bit) => sum + bit, 0)).toBe((m * n) / 2);
    expect(result.weight.every((w, i) => Number.isFinite(w) && (result.mask[i] || Object.is(w, 0)))).toBe(true);
    expect(result.error).toBeGreaterThanOrEqual(0);
    expect(result.error).toBeLessThan(0.5);
  });

  test('a dead input gets weight 0', async () => {
    const dead = activations.map((x, i) => (i % n === 3 ? 0 : x));
    const { weight: pruned } = await pruneLayer({ weight, shape, activations: dead, sparsity: 0.5 });
    for (let i = 0; i < m; i++) expect(Object.is(pruned[i * n + 3], 0)).toBe(true);
  });

  test('weights that are sparse enough already stay as they are', async () => {
    const sparse = weight.map((w, i) => (i % 10 === 0 ? w : 0));
    const result = await pruneLayer({ weight: sparse, shape, gram, sparsity: 0.5 });
    expect(relativeError(sparse, result.weight, gram, m, n)).toBeLessThan(1e-8);
  });

  test.each([
    [1, 13],
    [13, 1],
    [1, 1],
    [7, 11],
  ])('size %i × %i', async (rows, columns) => {
    const some = syntheticLayer(rows, columns);
    for (const schedule of [{}, published]) {
      const result = await pruneLayer({
        ...some,
        activations: undefined,
        sparsity: 0.5,
        ...schedule,
      } as PruneLayerOptions);
      expect(result.weight.every(Number.isFinite)).toBe(true);
      expect(result.kept).toBe(Math.round(rows * columns * 0.5));
    }
  });

  test('the iteration cap is reported', async () => {
    const result = await pruneLayer({ ...good, ...published, alpsSchedule: { maxIterations: 3 } });
    expect(result.iterations).toBe(3);
    expect(result.capped).toBe(true);
  });

  test.each<[string, Partial<PruneLayerOptions>]>([
    ['ALPS', {}],
    ['ALPS, without errors', { errors: false }],
    ['the balanced preset', { preset: 'balanced' }],
    ['SparseGPT', { method: 'sparsegpt' }],
    ['Wanda’s scores', { method: 'wanda', errors: false }],
    ['DSnoT’s scores', { method: 'dsnot', gram: undefined, activations }],
    ['a refit', { method: 'magnitude', refit: 'backsolve' }],
  ])('finite weights and inputs whose products are not: %s', async (_, options) => {
    const large = { ...good, weight: changed(weight, 0, 3e38), name: 'q', ...options } as PruneLayerOptions;
    if (large.activations) large.activations = large.activations.map((x) => x * 10);
    await expect(pruneLayer(large)).rejects.toMatchObject({
      code: 'NOT_FINITE',
      message: 'The weights of q times its inputs are too large for float32',
    });
  });

  test('an error that is lost in rounding is not told as none', async () => {
    // No Gram matrix, but its factorisation is not asked for.
    const indefinite = gram.map((value, i) => (i % (n + 1) === 0 ? value : 5 * value));
    const { error } = await pruneLayer({ ...good, gram: indefinite, method: 'wanda', refit: 'pcg' });
    expect(error).toBeNaN();
  });

  test.each([0, 1e-30])(
    'a refit with more steps than float32 has digits for: tolerance %d',
    async (refineTolerance) => {
      const layer = syntheticLayer(16, 32, { tokens: 64, seed: 2 });
      const options = { weight: layer.weight, shape: layer.shape, gram: layer.gram, sparsity: 0.3, refineTolerance };
      const short = await pruneLayer({ ...options, refineIterations: 200 });
      const long = await pruneLayer({ ...options, refineIterations: 3000 });
      expect(long.errorWithRidge).toBeLessThan(short.errorWithRidge * 1.001);
    },
  );

  test.each([4, 5])(
    '%d refit steps of reduced precision, of inputs that are next to copies of one another',
    async (steps) => {
      const [rows, columns, tokens] = [24, 36, 72];
      for (let seed = 1; seed <= 12; seed++) {
        const x = normal(seed, tokens * columns);
        for (let t = 0; t < tokens; t++)
          for (let j = 0; j < 8; j++)
            x[t * columns + j] = 100 * x[t * columns]! + (j === 0 ? 0 : 0.1 * x[t * columns + j]!);
        const options = { weight: normal(seed + 100, rows * columns), shape: [rows, columns], activations: x } as const;
        const all = { ...options, sparsity: 0.5, preset: 'balanced', refineIterations: steps } as const;
        const narrow = await pruneLayer(all);
        const exact = await pruneLayer({ ...all, mixedPrecision: false });
        expect(narrow.errorWithRidge).toBeLessThan(exact.errorWithRidge * 1.5);
      }
    },
  );

  test('rho at its cap', async () => {
    const result = await pruneLayer({ ...good, ...published, alpsSchedule: { initialRho: 1e6 } });
    expect(result.weight.every(Number.isFinite)).toBe(true);
    expect(result.trace[0]?.rho).toBe(1e6);
  });

  test('nothing of the device’s memory is kept', async () => {
    const { Device } = await import('../src/device/device.js');
    const device = Device.open('cpu', { memoryLimit: 1 << 28 });
    await pruneLayer({ ...good, device });
    await pruneLayer({ ...good, device, weight: changed(weight, 0, Number.NaN) }).catch(() => undefined);
    await pruneLayer({ ...good, device, activations: normal(1, 4 * n), gram: undefined });
    using stream = device.stream();
    await stream.sync();
    expect(device.info().memoryUsed).toBe(0);
  });
});
