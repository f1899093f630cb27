import { Device } from '../src/device/device.js';
import { Scope } from '../src/device/tensor.js';
import { cudaBlockSizes, cudaOrders, nmse, normal, opDevice, opDevices, product, random } from './helpers/numbers.js';

// The methods' sweeps over rows, op by op: SparseGPT, DSnoT, and the exact refit. Reference: plain loops in float64.

type Floats = Float32Array<ArrayBuffer>;
type Mask = Uint8Array<ArrayBuffer>;
type Pattern = { keep: number; of: number } | null;

const cuda = opDevice('cuda');
const equalBits = (a: Floats | Mask, b: Floats | Mask) =>
  Buffer.compare(Buffer.from(a.buffer), Buffer.from(b.buffer)) === 0;

function randomMask(seed: number, length: number, density: number): Mask {
  const next = random(seed);
  return Uint8Array.from({ length }, () => (next() < density ? 1 : 0));
}

/** A Gram matrix of normal numbers plus a tenth of the identity. */
function gramMatrix(n: number): Floats {
  const x = normal(n + 1, (n + 8) * n);
  return Float32Array.from(product(x, x, n, n, n + 8, true), (v, i) => v / n + (i % (n + 1) === 0 ? 0.1 : 0));
}

// ---- backsolve --------------------------------------------------------------------------------------------------------

interface Solve {
  m: number;
  n: number;
  gram: Floats;
  right: Floats;
  mask: Mask;
}

function solveInputs(m: number, n: number, density: (row: number) => number): Solve {
  const mask = new Uint8Array(m * n);
  for (let i = 0; i < m; i++) mask.set(randomMask(i + 3, n, density(i)), i * n);
  return { m, n, gram: gramMatrix(n), right: normal(n + 2, m * n), mask };
}

async function backsolve(device: Device, { m, n, gram, right, mask }: Solve, inPlace = false): Promise<Floats> {
  using stream = device.stream();
  using scope = new Scope();
  const g = scope.hold(stream.upload('float32', [n, n], gram));
  const b = scope.hold(stream.upload('float32', [m, n], right));
  const x = inPlace ? b : scope.hold(stream.upload('float32', [m, n], new Float32Array(m * n).fill(Number.NaN)));
  stream.backsolve(g, b, scope.hold(stream.upload('uint8', [m, n], mask)), x);
  return stream.read(x);
}

/** Row by row: Gaussian elimination on the support. */
function solved({ m, n, gram, right, mask }: Solve): Float64Array {
  const out = new Float64Array(m * n);
  for (let i = 0; i < m; i++) {
    const support = [...Array(n).keys()].filter((j) => mask[i * n + j]);
    const a = support.map((r) => Float64Array.from([...support.map((c) => gram[r * n + c]!), right[i * n + r]!]));
    for (let k = 0; k < a.length; k++)
      for (let r = k + 1; r < a.length; r++) {
        const factor = a[r]![k]! / a[k]![k]!;
        for (let c = k; c <= a.length; c++) a[r]![c]! -= factor * a[k]![c]!;
      }
    for (let k = a.length - 1; k >= 0; k--) {
      let sum = a[k]![a.length]!;
      for (let c = k + 1; c < a.length; c++) sum -= a[k]![c]! * out[i * n + support[c]!]!;
      out[i * n + support[k]!] = sum / a[k]![k]!;
    }
  }
  return out;
}

describe.each(opDevices())('backsolve on %s', (name) => {
  const device = opDevice(name);

  test.each([
    [1, 1, 1],
    [3, 64, 1], // one whole block
    [5, 65, 1], // one more
    [4, 200, 0.9], // several blocks
    [9, 150, 0.5],
    [14, 70, 0.1],
  ])('against float64: [%i, %i], a share of %d', async (m, n, density) => {
    const given = solveInputs(m, n, (row) => (row % 5 === 1 ? 0 : row % 5 === 2 ? density / 3 : density));
    const x = await backsolve(device, given);
    expect(nmse(x, solved(given))).toBeLessThan(1e-10);
    expect(x.every((value, i) => given.mask[i] || Object.is(value, 0))).toBe(true);
    expect(equalBits(await backsolve(device, given, true), x)).toBe(true);
  });

  test('a support that is not positive definite is told by its row, others are not', async () => {
    const given = solveInputs(9, 100, () => 0.7);
    given.gram[90 * 101] = -1;
    for (let i = 0; i < 9; i++) given.mask[i * 100 + 90] = i === 4 ? 1 : 0;
    await expect(backsolve(device, given)).rejects.toMatchObject({
      code: 'NOT_POSITIVE_DEFINITE',
      message: 'The Gram matrix on the support of row 4 is not positive definite',
    });
    given.mask[4 * 100 + 90] = 0;
    expect(nmse(await backsolve(device, given), solved(given))).toBeLessThan(1e-10);
  });

  test('no rows', async () => {
    expect((await backsolve(device, { ...solveInputs(0, 5, () => 1) })).length).toBe(0);
  });
});

test('backsolve: more rows than there is memory for at once if all supports were full', async () => {
  const [m, n] = [60, 1500];
  const u = normal(1, n);
  const gram = Float32Array.from(
    { length: n * n },
    (_, i) => (i % (n + 1) === 0 ? 2 : 0) + (u[i % n]! * u[Math.floor(i / n)]!) / n,
  );
  const given = { m, n, gram, right: normal(2, m * n), mask: randomMask(3, m * n, 0.01) };
  expect(nmse(await backsolve(cuda, given), solved(given))).toBeLessThan(1e-10);
});

test('backsolve by more threads than OpenBLAS has work buffers for; the first row that cannot be solved is told', async () => {
  const given = solveInputs(3000, 60, () => 0.9);
  const many = Device.open('cpu', { threads: 200 });
  const first = await backsolve(Device.open('cpu', { threads: 1 }), given);
  expect(equalBits(await backsolve(many, given), first)).toBe(true);
  const broken = given.gram.map((x, i) => (i === 0 ? -1 : x));
  const firstRow = given.mask.findIndex((kept, i) => kept === 1 && i % 60 === 0) / 60;
  for (let i = 0; i < 10; i++)
    await expect(backsolve(many, { ...given, gram: broken })).rejects.toMatchObject({
      message: `The Gram matrix on the support of row ${firstRow} is not positive definite`,
    });
});

test('backsolve: equal bits in any order of blocks and threads', async () => {
  const given = solveInputs(5, 150, (row) => row / 5);
  const first = await backsolve(cuda, given);
  for (const on of [...cudaOrders(), ...cudaBlockSizes()])
    expect(equalBits(await backsolve(on, given), first)).toBe(true);
});

// ---- SparseGPT --------------------------------------------------------------------------------------------------------

interface Sweep {
  m: number;
  n: number;
  weight: Floats;
  factor: Floats;
  pattern: Pattern;
  segments: { rowEnds: number[]; keep: number[] };
  block: number;
}

async function sweepInputs(m: number, n: number, block: number, pattern: Pattern): Promise<Sweep> {
  const device = Device.open('cpu');
  using stream = device.stream();
  using gram = stream.upload('float32', [n, n], gramMatrix(n));
  stream.cholesky(gram);
  stream.choleskyInverse(gram);
  stream.cholesky(gram);
  const split = Math.ceil(m / 3);
  const segments = { rowEnds: [split, m], keep: [Math.floor(split * n * 0.4), Math.floor((m - split) * n * 0.55)] };
  return { m, n, weight: normal(m + n, m * n), factor: await stream.read(gram), pattern, segments, block };
}

async function sparseGpt(device: Device, given: Sweep): Promise<{ weight: Floats; mask: Mask }> {
  const { m, n, pattern, segments, block } = given;
  using stream = device.stream();
  using scope = new Scope();
  const weight = scope.hold(stream.upload('float32', [m, n], given.weight));
  const factor = scope.hold(stream.upload('float32', [n, n], given.factor));
  const mask = scope.hold(stream.upload('uint8', [m, n], new Uint8Array(m * n).fill(7)));
  stream.sparseGpt(weight, factor, mask, pattern, segments, block);
  return { weight: await stream.read(weight), mask: await stream.read(mask) };
}

/** Column by column, in float64. */
function swept({ m, n, factor, pattern, segments, block, ...given }: Sweep) {
  const weight = Float64Array.from(given.weight);
  const mask = new Uint8Array(m * n);
  const score = (at: number) => (weight[at]! / factor[(at % n) * (n + 1)]!) ** 2;
  const choose = (places: number[], keep: number) => {
    const scores = new Map(places.map((at) => [at, score(at)]));
    places.sort((a, b) => scores.get(b)! - scores.get(a)! || a - b);
    for (const at of places.slice(0, keep)) mask[at] = 1;
  };
  const places = (begin: number, end: number, first: number, width: number) =>
    Array.from({ length: (end - begin) * width }, (_, i) => (begin + Math.floor(i / width)) * n + first + (i % width));
  for (let j = 0; j < n; j++) {
    if (pattern && j % pattern.of === 0)
      for (let i = 0; i < m; i++) choose(places(i, i + 1, j, pattern.of), pattern.keep);
    if (!pattern && j % block === 0) {
      const end = Math.min(n, j + block);
      segments.keep.forEach((keep, s) => {
        const share = Math.round((keep * end) / n) - Math.round((keep * j) / n);
        choose(places(s === 0 ? 0 : segments.rowEnds[s - 1]!, segments.rowEnds[s]!, j, end - j), share);
      });
    }
    for (let i = 0; i < m; i++) {
      if (mask[i * n + j]) continue;
      const error = weight[i * n + j]! / factor[j * (n + 1)]!;
      weight[i * n + j] = 0;
      for (let c = j + 1; c < n; c++) weight[i * n + c]! -= error * factor[c * n + j]!;
    }
  }
  return { weight, mask };
}

const sweeps: [number, number, number, Pattern][] = [
  [7, 50, 128, null],
  [1, 1, 1, null],
  [20, 131, 32, null],
  [6, 300, 128, null],
  [6, 300, 200, null], // a block of two sweeps
  [19, 96, 32, { keep: 2, of: 4 }],
  [5, 273, 126, { keep: 3, of: 7 }],
  [5, 276, 276, { keep: 1, of: 3 }],
  [4, 300, 150, { keep: 60, of: 150 }], // groups of two sweeps
  [3, 40, 8, { keep: 0, of: 4 }],
  [3, 40, 40, { keep: 4, of: 4 }],
];

describe.each(opDevices())('sparseGpt on %s', (name) => {
  test.each(sweeps)('against float64: [%i, %i], block %i, %j', async (m, n, block, pattern) => {
    const given = await sweepInputs(m, n, block, pattern);
    const actual = await sparseGpt(opDevice(name), given);
    const expected = swept(given);
    expect(equalBits(actual.mask, expected.mask)).toBe(true);
    expect(nmse(actual.weight, expected.weight)).toBeLessThan(1e-9);
    expect(actual.weight.every((value, i) => actual.mask[i] || Object.is(value, 0))).toBe(true);
  });
});

test.each([null, { keep: 2, of: 4 }])(
  'sparseGpt, %j: equal bits in any order of blocks and threads',
  async (pattern) => {
    const given = await sweepInputs(21, 200, 128, pattern);
    const first = await sparseGpt(cuda, given);
    for (const on of [...cudaOrders(), ...cudaBlockSizes()]) {
      const again = await sparseGpt(on, given);
      expect(equalBits(again.weight, first.weight) && equalBits(again.mask, first.mask)).toBe(true);
    }
  },
);

// ---- DSnoT ------------------------------------------------------------------------------------------------------------

interface Swaps {
  m: number;
  n: number;
  weight: Floats;
  metric: Floats;
  expected: Floats;
  variance: Floats;
  mask: Mask;
}

/** Numbers of few values, so that many are equal; `whole` makes every sum exact. */
function swapInputs(m: number, n: number, density: number, pattern: Pattern, whole: boolean): Swaps {
  const rounded = (seed: number, length: number) => normal(seed, length).map((x) => (whole ? Math.round(2 * x) : x));
  const mask = randomMask(5, m * n, density);
  if (pattern) for (let i = 0; i < m * n; i++) mask[i] = i % pattern.of < pattern.keep ? 1 : 0;
  return {
    m,
    n,
    weight: rounded(1, m * n),
    metric: rounded(2, m * n),
    expected: rounded(3, n),
    variance: normal(4, n).map((x) => (whole ? 1 + Math.abs(Math.round(x)) : x * x)),
    mask,
  };
}

async function dsnot(
  device: Device,
  { m, n, ...given }: Swaps,
  pattern: Pattern,
  options: { cycles: number; threshold: number; sameSign: boolean },
): Promise<Mask> {
  using stream = device.stream();
  using scope = new Scope();
  const weight = scope.hold(stream.upload('float32', [m, n], given.weight));
  const metric = scope.hold(stream.upload('float32', [m, n], given.metric));
  const expected = scope.hold(stream.upload('float32', [n], given.expected));
  const variance = scope.hold(stream.upload('float32', [n], given.variance));
  const mask = scope.hold(stream.upload('uint8', [m, n], given.mask));
  stream.dsnot(weight, metric, { expected, variance }, mask, pattern, options);
  return stream.read(mask);
}

describe('dsnot on cuda gives the masks of the CPU', () => {
  const patterns: Pattern[] = [null, { keep: 2, of: 4 }, { keep: 3, of: 9 }];
  const settings = [
    { cycles: 50, threshold: 0.1, sameSign: true },
    { cycles: 50, threshold: 0.1, sameSign: false },
    { cycles: 3, threshold: 0, sameSign: false },
    { cycles: 0, threshold: 0, sameSign: false },
    { cycles: 400, threshold: 0, sameSign: false }, // until the candidates are used up
  ];
  for (const whole of [true, false])
    for (const pattern of patterns)
      test.each(settings)(`${JSON.stringify(pattern)}, ${whole ? 'with ties' : 'without'}, %j`, async (options) => {
        let swaps = 0;
        for (const [m, n] of [
          [1, 36],
          [9, 108],
          [5, 612],
        ] as const) {
          const given = swapInputs(m, n, 0.5, pattern, whole);
          const expected = await dsnot(Device.open('cpu'), given, pattern, options);
          expect(equalBits(await dsnot(cuda, given, pattern, options), expected)).toBe(true);
          swaps += expected.filter((kept, i) => kept !== given.mask[i]).length;
        }
        expect(swaps > 0).toBe(options.cycles > 0);
      });

  test('all kept, none kept, no rows', async () => {
    for (const density of [0, 2]) {
      const given = swapInputs(3, 40, density, null, false);
      expect(await dsnot(cuda, given, null, settings[1]!)).toEqual(given.mask);
    }
    expect((await dsnot(cuda, swapInputs(0, 8, 0.5, null, false), null, settings[0]!)).length).toBe(0);
  });

  test('equal bits in any order of blocks and threads', async () => {
    const given = swapInputs(7, 600, 0.4, null, false);
    const first = await dsnot(cuda, given, null, settings[1]!);
    for (const on of cudaOrders()) expect(equalBits(await dsnot(on, given, null, settings[1]!), first)).toBe(true);
  });
});
