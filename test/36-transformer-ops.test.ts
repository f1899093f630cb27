import { Device } from '../src/device/device.js';
import type { Stream } from '../src/device/stream.js';
import { Scope, type Tensor } from '../src/device/tensor.js';
import { logSoftmax } from './helpers/log-softmax.js';
import {
  cudaBlockSizes,
  cudaOrders,
  fromBf16,
  nmse,
  normal,
  opDevice,
  opDevices,
  random,
  threadCounts,
  toBf16,
} from './helpers/numbers.js';

type FloatType = 'float32' | 'bfloat16';
type Float = Tensor<'float32'> | Tensor<'bfloat16'>;
const types: FloatType[] = ['float32', 'bfloat16'];

/**
 * Bounds on the NMSE. float32 results agree to 1e-6. bfloat16 ones are compared with the reference rounded to bfloat16: they differ
 * only where float32 fell on the other side of a tie.
 */
const bounds = { float32: 1e-12, bfloat16: 1e-6 } as const;

/** The values that a dtype keeps of `values`. */
const kept = <T extends Float32Array | Float64Array>(dtype: FloatType, values: T) =>
  dtype === 'float32' ? values : fromBf16(toBf16(values));

function upload(stream: Stream, dtype: FloatType, shape: number[], values: Float32Array<ArrayBuffer>): Float {
  return dtype === 'float32' ? stream.upload(dtype, shape, values) : stream.upload(dtype, shape, toBf16(values));
}

async function read(stream: Stream, tensor: Float): Promise<Float32Array> {
  return tensor.dtype === 'float32'
    ? stream.read(tensor as Tensor<'float32'>)
    : fromBf16(await stream.read(tensor as Tensor<'bfloat16'>));
}

function referenceNorm(x: ArrayLike<number>, weight: ArrayLike<number>, eps: number, offset: number): Float64Array {
  const out = new Float64Array(x.length);
  const n = weight.length;
  for (let at = 0; at < x.length; at += n) {
    let squares = 0;
    for (let i = 0; i < n; i++) squares += x[at + i]! ** 2;
    const rms = Math.sqrt(squares / n + eps);
    for (let i = 0; i < n; i++) out[at + i] = (x[at + i]! / rms) * (weight[i]! + offset);
  }
  return out;
}

/** Rotary positions as Hugging Face's LLaMA has them: dimension i turns with i + half. */
function referenceRope(
  x: ArrayLike<number>,
  cosine: Float32Array,
  sine: Float32Array,
  options: RopeCase,
): Float64Array {
  const { heads, headDim, half, sequence } = options;
  const out = Float64Array.from(x);
  for (let at = 0; at < x.length; at += headDim) {
    const position = Math.floor(at / (heads * headDim)) % sequence;
    for (let i = 0; i < half; i++) {
      const c = cosine[position * half + i]!;
      const s = sine[position * half + i]!;
      out[at + i] = x[at + i]! * c - x[at + half + i]! * s;
      out[at + half + i] = x[at + half + i]! * c + x[at + i]! * s;
    }
  }
  return out;
}

interface RopeCase {
  heads: number;
  headDim: number;
  half: number;
  sequence: number;
  windows: number;
}

/** erf by its series below 3 and its continued fraction above. */
function erf(x: number): number {
  const z = Math.abs(x);
  if (z < 3) {
    let term = z;
    let sum = z;
    for (let n = 1; n < 100; n++) {
      term *= (-z * z) / n;
      sum += term / (2 * n + 1);
    }
    return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
  }
  let fraction = z;
  for (let n = 60; n > 0; n--) fraction = z + n / 2 / fraction;
  return Math.sign(x) * (1 - Math.exp(-z * z) / (fraction * Math.sqrt(Math.PI)));
}

const activations = {
  silu: (x: number) => x / (1 + Math.exp(-x)),
  gelu: (x: number) => (x * (1 + erf(x / Math.SQRT2))) / 2,
  gelu_tanh: (x: number) => (x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)))) / 2,
  relu: (x: number) => Math.max(x, 0),
} as const;
type Activation = keyof typeof activations;

function referenceLoss(logits: Float32Array, targets: ArrayLike<number>, vocabulary: number): number[] {
  return Array.from(targets, (target, row) => {
    return -logSoftmax(logits.subarray(row * vocabulary, (row + 1) * vocabulary))[target]!;
  });
}

describe.each(opDevices())('forward ops on %s', (isa) => {
  const device = opDevice(isa);
  let scope: Scope;
  let stream: Stream;
  beforeEach(() => {
    scope = new Scope();
    stream = scope.hold(device.stream());
  });
  afterEach(() => scope.dispose());

  test.each(['float32', 'bfloat16', 'float16'] as const)('embedding of %s rows: exact', async (dtype) => {
    const [vocabulary, hidden] = [50, 37];
    const ids = Uint32Array.from([0, 49, 7, 7, 31]);
    const plain = scope.hold(stream.upload('float32', [vocabulary, hidden], normal(1, vocabulary * hidden)));
    const table = scope.hold(device.tensor(dtype, [vocabulary, hidden]));
    const rounded = scope.hold(device.tensor('float32', [vocabulary, hidden]));
    const out = scope.hold(device.tensor('float32', [ids.length, hidden]));
    stream.copy(plain, table);
    stream.copy(table, rounded);
    stream.embedding(table, scope.hold(stream.upload('uint32', [ids.length], ids)), out);
    const rows = await stream.read(rounded);
    const expected = Array.from(ids, (id) => [...rows.subarray(id * hidden, (id + 1) * hidden)]).flat();
    expect([...(await stream.read(out))]).toEqual(expected);
  });

  test.each(
    types.flatMap((from) =>
      types.flatMap((to) => [1, 8, 64, 100, 576, 2053, 4099, 16392].map((width) => ({ from, to, width }))),
    ),
  )('rmsNorm of $from $width to $to: NMSE < 1e-12, bfloat16 1e-6', async ({ from, to, width }) => {
    const norms = width === 64 ? 3 : 1; // qk-norm: several norms a row
    const rows = width > 4000 ? 2 : 7;
    const values = normal(2, rows * norms * width);
    const weight = normal(3, width);
    const x = scope.hold(upload(stream, from, [rows, norms * width], values));
    const out = scope.hold(device.tensor(to, [rows, norms * width]));
    const scale = scope.hold(stream.upload('float32', [width], weight));
    for (const [eps, offset] of [
      [1e-5, 0],
      [1e-6, 1],
    ] as const) {
      stream.rmsNorm(x, scale, eps, out as Float, offset);
      const expected = referenceNorm(kept(from, values), weight, eps, offset);
      expect(nmse(await read(stream, out as Float), kept(to, expected))).toBeLessThan(bounds[to]);
    }
  });

  test.each(types)('rmsNorm of %s in place, and of zeros: same as out of place, zeros', async (dtype) => {
    const x = scope.hold(upload(stream, dtype, [5, 72], normal(4, 360)));
    const weight = scope.hold(stream.upload('float32', [72], normal(5, 72)));
    const out = scope.hold(device.tensor(dtype, [5, 72])) as Float;
    const zeros = scope.hold(device.tensor(dtype, [2, 72])) as Float;
    stream.rmsNorm(x, weight, 1e-5, out);
    stream.rmsNorm(x, weight, 1e-5, x);
    stream.rmsNorm(zeros, weight, 1e-5, zeros);
    expect(await read(stream, x)).toEqual(await read(stream, out));
    expect((await read(stream, zeros)).every((value) => value === 0)).toBe(true);
  });

  const ropes: RopeCase[] = [
    { heads: 9, headDim: 64, half: 32, sequence: 17, windows: 2 },
    { heads: 2, headDim: 8, half: 4, sequence: 1, windows: 3 },
    { heads: 3, headDim: 80, half: 16, sequence: 129, windows: 1 }, // partial rotary
    { heads: 1, headDim: 80, half: 40, sequence: 5, windows: 2 },
    { heads: 4, headDim: 128, half: 64, sequence: 30, windows: 1 },
  ];
  test.each(types.flatMap((dtype) => ropes.map((options) => ({ dtype, ...options }))))(
    'rope of $dtype, $heads × $headDim, half $half, $windows × $sequence: NMSE < 1e-12, bfloat16 1e-6',
    async ({ dtype, ...options }) => {
      const tokens = options.sequence * options.windows;
      const width = options.heads * options.headDim;
      const positions = options.sequence + 3;
      const angles = Float32Array.from({ length: positions * options.half }, (_, i) => i * 0.37);
      const cosine = angles.map(Math.cos);
      const sine = angles.map(Math.sin);
      const values = normal(6, tokens * width);
      const x = scope.hold(upload(stream, dtype, [tokens, width], values));
      const [c, s] = [cosine, sine].map((table) =>
        scope.hold(stream.upload('float32', [positions, options.half], table)),
      );
      stream.rope(x, c!, s!, options.headDim, options.sequence);
      const actual = await read(stream, x);
      const expected = referenceRope(kept(dtype, values), cosine, sine, options);
      expect(nmse(actual, kept(dtype, expected))).toBeLessThan(bounds[dtype]);
      for (let i = 2 * options.half; i < options.headDim; i++) expect(actual[i]).toBe(expected[i]);
    },
  );

  test.each(types.flatMap((dtype) => (Object.keys(activations) as Activation[]).map((name) => ({ dtype, name }))))(
    'gated $name of $dtype, also in place: NMSE < 1e-12, bfloat16 1e-6',
    async ({ dtype, name }) => {
      const gates = normal(7, 13 * 71).map((x, i) => (i % 3 === 0 ? x * 6 : x));
      const ups = normal(8, gates.length);
      const gate = scope.hold(upload(stream, dtype, [13, 71], gates));
      const up = scope.hold(upload(stream, dtype, [13, 71], ups));
      const out = scope.hold(device.tensor(dtype, [13, 71])) as Float;
      stream.gatedActivation(gate, up, out, name);
      stream.gatedActivation(gate, up, gate, name);
      const [g, u] = [kept(dtype, gates), kept(dtype, ups)];
      const actual = await read(stream, out);
      const expected = Float64Array.from(g, (x, i) => activations[name](x) * u[i]!);
      expect(nmse(actual, kept(dtype, expected))).toBeLessThan(bounds[dtype]);
      expect(await read(stream, gate)).toEqual(actual);
    },
  );

  test.each(Object.keys(activations) as Activation[])('%s point by point, within 1e-6 of max(1, |x|)', async (name) => {
    const points = Float32Array.from({ length: 10001 }, (_, i) => (i - 5000) / 250);
    points.set([1e4, -1e4, 0, 1e30, -1e30, -88, 88, -0.001]);
    const gate = scope.hold(stream.upload('float32', [points.length], points));
    const up = scope.hold(
      stream.upload(
        'float32',
        [points.length],
        points.map(() => 1),
      ),
    );
    stream.gatedActivation(gate, up, gate, name);
    const actual = await stream.read(gate);
    let worst = 0;
    points.forEach((x, i) => {
      const expected = x < -100 ? 0 : activations[name](x);
      const error = Math.abs(actual[i]! - expected) / Math.max(1, Math.abs(x));
      worst = Math.max(worst, error);
    });
    expect(worst).toBeLessThan(1e-6);
  });

  test.each([
    [1, 1],
    [3, 17],
    [5, 1000],
    [9, 4099],
    [1, 262144],
  ])('crossEntropy of %i × %i: within 1e-6 of max(1, loss)', async (rows, vocabulary) => {
    const next = random(9);
    const logits = Float32Array.from({ length: rows * vocabulary }, (_, i) => (next() - 0.5) * (1 + (i % 20)));
    const targets = Uint32Array.from({ length: rows }, () => Math.floor(next() * vocabulary));
    const out = scope.hold(device.tensor('float64', [rows]));
    stream.crossEntropy(
      scope.hold(stream.upload('float32', [rows, vocabulary], logits)),
      scope.hold(stream.upload('uint32', [rows], targets)),
      out,
    );
    const actual = await stream.read(out);
    referenceLoss(logits, targets, vocabulary).forEach((expected, i) => {
      expect(Math.abs(actual[i]! - expected) / Math.max(1, expected)).toBeLessThan(1e-6);
    });
  });

  test('crossEntropy of huge and of excluded logits: no overflow; a NaN shows', async () => {
    const no = Number.NEGATIVE_INFINITY;
    const rows = [
      [1e4, -1e4, 0, 1e4],
      [no, 3, no, no],
      [-1e4, -1e4, -1e4, -1e4],
      [no, no, no, no],
      [0, Number.NaN, 0, 0],
    ];
    const logits = scope.hold(stream.upload('float32', [5, 4], Float32Array.from(rows.flat())));
    const out = scope.hold(device.tensor('float64', [5]));
    stream.crossEntropy(logits, scope.hold(stream.upload('uint32', [5], Uint32Array.from([1, 1, 0, 0, 0]))), out);
    const [first, second, third, fourth, last] = await stream.read(out);
    expect(first).toBeCloseTo(2e4 + Math.log(2), 6);
    expect(second).toBe(0);
    expect(third).toBeCloseTo(Math.log(4), 6);
    expect(fourth).toBeNaN();
    expect(last).toBeNaN();
  });

  test.each([
    [1, 1],
    [3, 17],
    [5, 1000],
    [2, 4099],
    [1, 262144],
  ])('divergence of %i × %i: within 5e-7, also of logits that are nearly the same', async (rows, vocabulary) => {
    const next = random(10);
    const scales = [1, 0.03, 1e-3];
    const p = Float32Array.from({ length: rows * vocabulary }, (_, i) => (next() - 0.5) * (1 + (i % 20)) - 90);
    for (const scale of scales) {
      const q = p.map((x) => x + 3 + scale * (next() - 0.5));
      const out = scope.hold(device.tensor('float64', [rows]));
      const [a, b] = [p, q].map((x) => scope.hold(stream.upload('float32', [rows, vocabulary], x)));
      stream.divergence(a!, b!, out);
      const actual = await stream.read(out);
      for (const [row, divergence] of actual.entries()) {
        const part = (x: Float32Array) => logSoftmax(x.subarray(row * vocabulary, (row + 1) * vocabulary));
        const [first, second] = [part(p), part(q)];
        const expected = first.reduce((sum, value, i) => sum + Math.exp(value) * (value - second[i]!), 0);
        // The last is below what is lost by rounding.
        expect(Math.abs(divergence - expected)).toBeLessThan(5e-7);
        if (scale === 0.03 && vocabulary > 17) expect(expected).toBeGreaterThan(1e-5);
      }
    }
  });

  test('divergence of equal rows is 0, of huge logits does not overflow; NaN and infinity show', async () => {
    const no = Number.NEGATIVE_INFINITY;
    const p = [
      [1e4, -1e4, 0],
      [1e4, -1e4, 0],
      [0, Number.NaN, 0],
      [0, 0, 0],
      [0, 0, 0],
      [no, 0, 0],
      [0, Infinity, 0],
    ];
    const q = [
      [1e4, -1e4, 0],
      [0, 0, 0],
      [0, 0, 0],
      [0, no, 0],
      [no, 0, 0],
      [0, 0, 0],
      [0, 0, 0],
    ];
    const [a, b] = [p, q].map((rows) => scope.hold(stream.upload('float32', [7, 3], Float32Array.from(rows.flat()))));
    const out = scope.hold(device.tensor('float64', [7]));
    stream.divergence(a!, b!, out);
    const [same, far, ...notFinite] = await stream.read(out);
    expect(same).toBe(0);
    expect(far).toBeCloseTo(Math.log(3), 6);
    expect(notFinite.map(Number.isFinite)).toEqual([false, false, false, false, false]);
  });

  async function sample(logits: number[], draws: number[], temperature: number): Promise<number[]> {
    const rows = draws.flatMap(() => logits);
    const ids = scope.hold(stream.upload('uint32', [draws.length], new Uint32Array(draws.length).fill(2 ** 32 - 1)));
    stream.sample(
      scope.hold(stream.upload('float32', [draws.length, logits.length], Float32Array.from(rows))),
      scope.hold(stream.upload('float64', [draws.length], Float64Array.from(draws))),
      ids,
      temperature,
    );
    return [...(await stream.read(ids))];
  }

  test.each([1, 64, 1024, 32768])('sample of %i equal logits: exact at every place', async (vocabulary) => {
    const logits = new Array(vocabulary).fill(-2);
    const places = [0, 1, 31, 32, 511, 512, 513, 2047, 2048, 32767].filter((i) => i < vocabulary);
    const draws = places.flatMap((i) => [i, i + 0.5, i + 1 - 2 ** -20].map((x) => x / vocabulary));
    for (const temperature of [1e-300, 0.7, 1, 1e6]) {
      expect(await sample(logits, draws, temperature)).toEqual(places.flatMap((i) => [i, i, i]));
      expect(await sample(logits, [1 - 2 ** -53], temperature)).toEqual([vocabulary - 1]);
    }
  });

  test.each([
    { vocabulary: 3, temperature: 1 },
    { vocabulary: 50, temperature: 0.2 },
    { vocabulary: 5003, temperature: 0.8 },
    { vocabulary: 5003, temperature: 5 },
  ])(
    'sample of $vocabulary, temperature $temperature: the first past the draw',
    async ({ vocabulary, temperature }) => {
      const logits = Array.from(normal(15, vocabulary), (x) => x);
      logits[Math.floor(vocabulary / 2)] = Number.NEGATIVE_INFINITY;
      const weights = logits.map((x) => Math.exp(x / temperature));
      const total = weights.reduce((a, b) => a + b);
      const draws: number[] = [];
      const expected: number[] = [];
      let below = 0;
      let next = 0; // of some twenty ids
      for (const [i, weight] of weights.entries()) {
        const p = weight / total;
        // Just inside what is this id's, by more than float32's errors.
        if (p > 1e-5 && i >= next) {
          next = i + vocabulary / 20;
          draws.push(below + 2e-6, below + p - 2e-6);
          expected.push(i, i);
        }
        below += p;
      }
      expect(draws.length).toBeGreaterThanOrEqual(4);
      expect(await sample(logits, draws, temperature)).toEqual(expected);
    },
  );

  test('sample at temperature 0 and at the ends of temperatures', async () => {
    const draws = [0, 0.3, 0.7, 1 - 2 ** -53];
    const long = new Array(3000).fill(0);
    long[1700] = 1;
    long[2999] = 1;
    expect(await sample(long, draws, 0)).toEqual([1700, 1700, 1700, 1700]);
    expect(await sample(long, draws, 1e-300)).toEqual([1700, 1700, 2999, 2999]);
    expect(await sample([-1, -5, -1.0001], draws, 1e-6)).toEqual([0, 0, 0, 0]);
    expect(await sample([8, 0, -8, 3], draws, 1e6)).toEqual([0, 1, 2, 3]);
    expect(await sample([3e38, -3e38, 3e38], draws, 1)).toEqual([0, 0, 2, 2]);
  });

  test('sample never draws what is excluded or unknown, and gives some id for any row', async () => {
    const draws = [0, 0.5, 1 - 2 ** -53];
    const [no, yes] = [Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY];
    const long = new Array(2000).fill(no);
    long[1234] = -7;
    long[1999] = Number.NaN;
    for (const temperature of [0, 1e-300, 0.5, 1, 1e6]) {
      expect(await sample(long, draws, temperature)).toEqual([1234, 1234, 1234]);
      expect(await sample([no, Number.NaN, 5, no], draws, temperature)).toEqual([2, 2, 2]);
      expect(await sample([0, yes, Number.NaN, yes], draws, temperature)).toEqual([1, 1, 1]);
      for (const logits of [new Array(700).fill(Number.NaN), new Array(700).fill(no), [no, Number.NaN]])
        for (const id of await sample(logits, draws, temperature)) expect(id).toBeLessThan(logits.length);
    }
  });

  test('sample takes no other shapes and temperatures', () => {
    const logits = scope.hold(device.tensor('float32', [2, 4]));
    const [draws, ids] = [scope.hold(device.tensor('float64', [2])), scope.hold(device.tensor('uint32', [2]))];
    const three = scope.hold(device.tensor('uint32', [3]));
    const refused = (message: string) =>
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(message) });
    for (const temperature of [-0.1, 1e7, Number.NaN, Number.POSITIVE_INFINITY])
      expect(() => stream.sample(logits, draws, ids, temperature)).toThrow(refused('for temperature'));
    expect(() => stream.sample(logits, draws, three, 1)).toThrow(refused('2 elements for ids'));
    const none = scope.hold(device.tensor('float32', [2, 0]));
    expect(() => stream.sample(none, draws, ids, 1)).toThrow(refused('at least one id'));
  });

  test('an id past the table or the vocabulary fails and names it', async () => {
    const ids = scope.hold(stream.upload('uint32', [2], Uint32Array.from([3, 4])));
    const table = scope.hold(device.tensor('float32', [4, 8]));
    stream.embedding(table, ids, scope.hold(device.tensor('float32', [2, 8])));
    await expect(stream.sync()).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: 'Expected token ids below 4 but received 4',
    });
    const logits = scope.hold(device.tensor('float32', [2, 4]));
    stream.crossEntropy(logits, ids, scope.hold(device.tensor('float64', [2])));
    await expect(stream.sync()).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: 'Expected target ids below 4 but received 4',
    });
  });
});

/** The bits of a chain of forward ops. */
async function forward(device: Device, tokens: number, width: number): Promise<Buffer> {
  using scope = new Scope();
  const stream = scope.hold(device.stream());
  const angles = normal(14, tokens * 32);
  const x = scope.hold(stream.upload('float32', [tokens, width], normal(11, tokens * width)));
  const up = scope.hold(stream.upload('float32', [tokens, width], normal(12, tokens * width)));
  const short = scope.hold(device.tensor('bfloat16', [tokens, width]));
  const weight = scope.hold(stream.upload('float32', [width], normal(13, width)));
  const cosine = scope.hold(stream.upload('float32', [tokens, 32], angles.map(Math.cos)));
  const sine = scope.hold(stream.upload('float32', [tokens, 32], angles.map(Math.sin)));
  const order = Uint32Array.from({ length: tokens }, (_, i) => i % Math.min(tokens, width));
  const targets = scope.hold(stream.upload('uint32', [tokens], order));
  const loss = scope.hold(device.tensor('float64', [tokens]));
  const rows = scope.hold(device.tensor('float32', [tokens, width]));
  stream.rmsNorm(x, weight, 1e-5, x);
  stream.rope(x, cosine, sine, 64, tokens);
  stream.gatedActivation(x, up, x, 'silu');
  stream.crossEntropy(x, targets, loss);
  const divergence = scope.hold(device.tensor('float64', [tokens]));
  stream.divergence(x, up, divergence);
  stream.layerNorm(x, weight, weight, 1e-5, short);
  stream.rope(short, cosine, sine, 64, tokens);
  stream.activate(short, short, 'gelu');
  stream.embedding(short, targets, rows);
  const draws = scope.hold(stream.upload('float64', [tokens], Float64Array.from({ length: tokens }, random(15))));
  const ids = scope.hold(device.tensor('uint32', [tokens]));
  stream.sample(rows, draws, ids, 0.9);
  const read = [
    await stream.read(x),
    await stream.read(loss),
    await stream.read(divergence),
    await stream.read(short),
    await stream.read(rows),
    await stream.read(ids),
  ];
  return Buffer.concat(read.map(({ buffer }) => Buffer.from(buffer)));
}

test('every forward op gives equal bits whatever the threads, and twice', async () => {
  const runs: Buffer[] = [];
  for (const threads of [...threadCounts, 1]) runs.push(await forward(Device.open('cpu', { threads }), 300, 640));
  expect(runs.map((run) => run.equals(runs[0]!))).toEqual(runs.map(() => true));
});

test('CUDA kernels give equal bits in any order of blocks and threads, and with blocks of any size', async () => {
  for (const width of [64, 640]) {
    const first = await forward(opDevice('cuda'), 37, width);
    for (const device of [...cudaOrders(), ...cudaBlockSizes()])
      expect((await forward(device, 37, width)).equals(first)).toBe(true);
  }
});
