import { Device } from '../src/device/device.js';
import { Scope, type Tensor } from '../src/device/tensor.js';
import { cudaOrders, fromBf16, nmse, normal, opDevice, opDevices, threadCounts, toBf16 } from './helpers/numbers.js';

interface Case {
  windows: number;
  sequence: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  /** Sliding window; 0 is none. */
  window: number;
  /** Scores become softCap * tanh(score / softCap); none is none. */
  softCap?: number;
}

interface Inputs {
  q: Float32Array<ArrayBuffer>;
  k: Float32Array<ArrayBuffer>;
  v: Float32Array<ArrayBuffer>;
}

const describeCase = '$windows × $sequence, heads $heads:$kvHeads × $headDim, window $window';
const cases: Case[] = [
  { windows: 3, sequence: 1, heads: 4, kvHeads: 1, headDim: 8, window: 0 },
  { windows: 2, sequence: 17, heads: 9, kvHeads: 3, headDim: 64, window: 0 },
  { windows: 2, sequence: 129, heads: 2, kvHeads: 1, headDim: 80, window: 0 },
  { windows: 1, sequence: 300, heads: 4, kvHeads: 4, headDim: 32, window: 0 },
  { windows: 1, sequence: 300, heads: 1, kvHeads: 1, headDim: 128, window: 0 },
  { windows: 2, sequence: 17, heads: 4, kvHeads: 4, headDim: 8, window: 1 },
  { windows: 1, sequence: 300, heads: 4, kvHeads: 1, headDim: 32, window: 40 },
  { windows: 1, sequence: 700, heads: 1, kvHeads: 1, headDim: 16, window: 0 }, // more than one block of keys
  { windows: 1, sequence: 1100, heads: 1, kvHeads: 1, headDim: 8, window: 600 },
  { windows: 1, sequence: 300, heads: 4, kvHeads: 4, headDim: 64, window: 0 }, // more than a small cache holds
  { windows: 1, sequence: 70, heads: 2, kvHeads: 1, headDim: 1, window: 0 },
  { windows: 1, sequence: 70, heads: 6, kvHeads: 2, headDim: 5, window: 9, softCap: 2 },
  { windows: 2, sequence: 65, heads: 2, kvHeads: 2, headDim: 33, window: 64 },
  { windows: 1, sequence: 129, heads: 1, kvHeads: 1, headDim: 96, window: 65, softCap: 30 },
  { windows: 3, sequence: 40, heads: 2, kvHeads: 1, headDim: 112, window: 0, softCap: 0.5 },
  { windows: 1, sequence: 97, heads: 1, kvHeads: 1, headDim: 160, window: 0 },
  { windows: 1, sequence: 97, heads: 2, kvHeads: 1, headDim: 256, window: 33 },
  { windows: 1, sequence: 67, heads: 1, kvHeads: 1, headDim: 301, window: 0 },
];

function inputs({ windows, sequence, heads, kvHeads, headDim }: Case, factor = 1): Inputs {
  const tokens = windows * sequence;
  return {
    q: normal(1, tokens * heads * headDim).map((x) => x * factor),
    k: normal(2, tokens * kvHeads * headDim),
    v: normal(3, tokens * kvHeads * headDim),
  };
}

function reference({ q, k, v }: Inputs, options: Case): Float64Array {
  const { windows, sequence, heads, kvHeads, headDim, window, softCap } = options;
  const out = new Float64Array(q.length);
  const row = kvHeads * headDim;
  for (let base = 0; base < windows * sequence; base += sequence) {
    for (let head = 0; head < heads; head++) {
      const from = base * row + Math.floor((head * kvHeads) / heads) * headDim;
      for (let t = 0; t < sequence; t++) {
        const at = (base + t) * heads * headDim + head * headDim;
        const start = window > 0 ? Math.max(0, t - window + 1) : 0;
        const scores: number[] = [];
        for (let s = start; s <= t; s++) {
          let dot = 0;
          for (let d = 0; d < headDim; d++) dot += q[at + d]! * k[from + s * row + d]!;
          const score = dot / Math.sqrt(headDim);
          scores.push(softCap ? softCap * Math.tanh(score / softCap) : score);
        }
        const peak = scores.reduce((a, b) => Math.max(a, b));
        const weights = scores.map((score) => Math.exp(score - peak));
        const total = weights.reduce((a, b) => a + b);
        weights.forEach((weight, i) => {
          for (let d = 0; d < headDim; d++) out[at + d]! += (weight / total) * v[from + (start + i) * row + d]!;
        });
      }
    }
  }
  return out;
}

/** With `skip`, tensors are views that begin that many elements into their memory. */
async function attention(device: Device, dtype: 'float32' | 'bfloat16', { q, k, v }: Inputs, options: Case, skip = 0) {
  using scope = new Scope();
  const stream = scope.hold(device.stream());
  const tokens = options.windows * options.sequence;
  const tensors = [q, k, v, new Float32Array(q.length).fill(Number.NaN)].map((values) => {
    const shape = [tokens, values.length / tokens];
    const all = new Float32Array(skip + values.length).fill(Number.NaN);
    all.set(values, skip);
    const memory =
      dtype === 'float32' ? stream.upload(dtype, [all.length], all) : stream.upload(dtype, [all.length], toBf16(all));
    const view: Tensor<'float32' | 'bfloat16'> = scope.hold(scope.hold(memory).rows(skip, all.length));
    return scope.hold(view.reshape(...shape));
  });
  const out = tensors[3]!;
  stream.attention(tensors[0]!, tensors[1]!, tensors[2]!, out, { ...options, scale: 1 / Math.sqrt(options.headDim) });
  const values = await stream.read(out);
  return values instanceof Float32Array ? values : fromBf16(values);
}

/** The same by attentionStep, position by position from `from` on; what the caches hold behind the position is NaN. */
async function steps(
  device: Device,
  dtype: 'float32' | 'bfloat16',
  { q, k, v }: Inputs,
  options: Case,
  { skip = 0, from = 0 } = {},
) {
  using scope = new Scope();
  const stream = scope.hold(device.stream());
  const { windows, sequence, heads, kvHeads, headDim } = options;
  const [wide, narrow] = [heads * headDim, kvHeads * headDim];
  const upload = (rows: number, values: Float32Array): Tensor<'float32' | 'bfloat16'> => {
    const all = new Float32Array(skip + values.length).fill(Number.NaN);
    all.set(values, skip);
    const memory =
      dtype === 'float32' ? stream.upload(dtype, [all.length], all) : stream.upload(dtype, [all.length], toBf16(all));
    const view: Tensor<'float32' | 'bfloat16'> = scope.hold(scope.hold(memory).rows(skip, all.length));
    return scope.hold(view.reshape(rows, values.length / rows));
  };
  const read = async (tensor: Tensor<'float32' | 'bfloat16'>) => {
    const values = await stream.read(tensor);
    return values instanceof Float32Array ? values : fromBf16(values);
  };
  /** The rows of one position, of every window. */
  const at = (values: Float32Array, width: number, position: number) => {
    const rows = Array.from({ length: windows }, (_, i) => {
      const first = (i * sequence + position) * width;
      return [...values.subarray(first, first + width)];
    });
    return upload(windows, Float32Array.from(rows.flat()));
  };
  const [keys, values] = [k, v].map((all) =>
    upload(
      windows * sequence,
      all.map((x, i) => (Math.floor(i / narrow) % sequence < from ? x : Number.NaN)),
    ),
  );
  const cached = { keys: keys!, values: values! };
  const outs: Tensor<'float32' | 'bfloat16'>[] = [];
  for (let position = from; position < sequence; position++) {
    const rows = { q: at(q, wide, position), k: at(k, narrow, position), v: at(v, narrow, position) };
    const out = upload(windows, new Float32Array(windows * wide).fill(Number.NaN));
    stream.attentionStep({ ...rows, ...cached }, out, { ...options, position, scale: 1 / Math.sqrt(headDim) });
    outs.push(out);
  }
  const out = new Float32Array(q.length);
  for (const [position, tensor] of outs.entries()) {
    const rows = await read(tensor);
    for (let i = 0; i < windows; i++)
      out.set(rows.subarray(i * wide, (i + 1) * wide), (i * sequence + from + position) * wide);
  }
  return { out, keys: await read(cached.keys), values: await read(cached.values) };
}

const rounded = ({ q, k, v }: Inputs): Inputs => {
  const round = (x: Float32Array) => fromBf16(toBf16(x));
  return { q: round(q), k: round(k), v: round(v) };
};

const prepared = new Map<string, { given: Inputs; expected: Float64Array }>();

/** The inputs of a case and what is to come out, made once for all instruction sets. */
function prepare(dtype: 'float32' | 'bfloat16', options: Case, factor = 1) {
  const key = JSON.stringify([dtype, options, factor]);
  let pair = prepared.get(key);
  if (!pair) {
    const given = dtype === 'float32' ? inputs(options, factor) : rounded(inputs(options, factor));
    pair = { given, expected: reference(given, options) };
    prepared.set(key, pair);
  }
  return pair;
}

describe.each(opDevices())('attention on %s', (isa) => {
  const device = opDevice(isa);

  test.each(cases)(`float32, ${describeCase}: NMSE < 1e-12`, async (options) => {
    const { given, expected } = prepare('float32', options);
    expect(nmse(await attention(device, 'float32', given, options), expected)).toBeLessThan(1e-12);
  });

  test.each(cases)(`bfloat16, ${describeCase}: NMSE < 1e-5`, async (options) => {
    const { given, expected } = prepare('bfloat16', options);
    expect(nmse(await attention(device, 'bfloat16', given, options), expected)).toBeLessThan(1e-5);
  });

  // Scores of thousands: float32 leaves them off by 1e-3, so a query whose two best keys are that close may differ.
  test('scores up to ±1e4 neither overflow nor lose the largest: NMSE < 1e-4', async () => {
    const options: Case = { windows: 1, sequence: 600, heads: 1, kvHeads: 1, headDim: 8, window: 0 };
    const { given, expected } = prepare('float32', options, 3000);
    expect(nmse(await attention(device, 'float32', given, options), expected)).toBeLessThan(1e-4);
  });

  // Few keys count, and which are the largest changes from block to block: sums so far are scaled down.
  test('bfloat16, scores of tens over more than one block of keys: NMSE < 1e-5', async () => {
    const options: Case = { windows: 1, sequence: 1300, heads: 2, kvHeads: 1, headDim: 65, window: 0 };
    const { given, expected } = prepare('bfloat16', options, 10);
    expect(nmse(await attention(device, 'bfloat16', given, options), expected)).toBeLessThan(1e-5);
  });

  test.each(['float32', 'bfloat16'] as const)(
    'a NaN in a key reaches every query that sees it, and none before: %s',
    async (kind) => {
      const options: Case = { windows: 1, sequence: 300, heads: 2, kvHeads: 1, headDim: 8, window: 0 };
      const given = inputs(options);
      given.k[200 * 8 + 3] = Number.NaN;
      const out = await attention(device, kind, given, options);
      expect(out.findIndex(Number.isNaN)).toBe(200 * 16);
      expect(out.subarray(200 * 16).every(Number.isNaN)).toBe(true);
    },
  );

  // All weights are equal: a query's output is the mean of the values it sees, which are 1, 2, 3, ... One key too many
  // or too few at either end moves it by a half, which is more than bfloat16's rounding as long as it is below 128.
  test.each([0, 1, 2, 31, 63, 64, 65, 139])('each query sees just its keys, window %i', async (window) => {
    const options: Case = { windows: 2, sequence: 140, heads: 1, kvHeads: 1, headDim: 8, window };
    const given = inputs(options);
    given.q.fill(0);
    given.v.forEach((_, i) => {
      given.v[i] = (Math.floor(i / 8) % 140) + 1;
    });
    const expected = reference(given, options);
    for (const dtype of ['float32', 'bfloat16'] as const) {
      const out = await attention(device, dtype, given, options);
      const wrong = expected.findIndex(
        (x, i) => !(Math.abs(out[i]! - x) <= x * (dtype === 'float32' ? 1e-6 : 2 ** -8)),
      );
      expect(wrong).toBe(-1);
    }
  });

  test.each(['float32', 'bfloat16'] as const)('%s: views that begin anywhere', async (dtype) => {
    const options: Case = { windows: 2, sequence: 90, heads: 4, kvHeads: 2, headDim: 16, window: 70 };
    const { given, expected } = prepare(dtype, options);
    const limit = dtype === 'float32' ? 1e-12 : 1e-5;
    expect(nmse(await attention(device, dtype, given, options, 1), expected)).toBeLessThan(limit);
    expect(nmse(await attention(device, dtype, given, options, 8), expected)).toBeLessThan(limit);
  });

  test('no tokens', async () => {
    const options: Case = { windows: 0, sequence: 4, heads: 2, kvHeads: 1, headDim: 8, window: 0 };
    using scope = new Scope();
    const stream = scope.hold(device.stream());
    const [q, k, v, out] = [16, 8, 8, 16].map((width) =>
      scope.hold(stream.upload('float32', [0, width], new Float32Array())),
    );
    stream.attention(q!, k!, v!, out!, { ...options, scale: 1 });
    expect(await stream.read(out!)).toHaveLength(0);
  });
});

const stepCases: Case[] = [
  { windows: 3, sequence: 1, heads: 4, kvHeads: 1, headDim: 8, window: 0 },
  { windows: 2, sequence: 17, heads: 9, kvHeads: 3, headDim: 64, window: 0 },
  { windows: 1, sequence: 70, heads: 6, kvHeads: 2, headDim: 5, window: 9, softCap: 2 },
  { windows: 2, sequence: 17, heads: 4, kvHeads: 4, headDim: 8, window: 1 },
  { windows: 2, sequence: 45, heads: 2, kvHeads: 1, headDim: 80, window: 33, softCap: 30 },
  { windows: 1, sequence: 40, heads: 2, kvHeads: 1, headDim: 1, window: 0 },
  { windows: 1, sequence: 20, heads: 2, kvHeads: 2, headDim: 256, window: 0 },
  { windows: 2, sequence: 11, heads: 2, kvHeads: 1, headDim: 301, window: 4 },
];

describe.each(opDevices())('attention for one more token on %s', (isa) => {
  const device = opDevice(isa);

  test.each((['float32', 'bfloat16'] as const).flatMap((dtype) => stepCases.map((options) => ({ dtype, ...options }))))(
    `$dtype, ${describeCase}: NMSE < 1e-12, bfloat16 1e-5; keys and values are kept`,
    async ({ dtype, ...options }) => {
      const { given, expected } = prepare(dtype, options);
      const limit = dtype === 'float32' ? 1e-12 : 1e-5;
      for (const skip of [0, 1]) {
        const { out, keys, values } = await steps(device, dtype, given, options, { skip });
        expect(nmse(out, expected)).toBeLessThan(limit);
        expect(nmse(out, await attention(device, dtype, given, options))).toBeLessThan(limit);
        expect(keys).toEqual(given.k);
        expect(values).toEqual(given.v);
      }
    },
  );

  test.each(['float32', 'bfloat16'] as const)('%s: behind more keys than a block has', async (dtype) => {
    const options: Case = { windows: 1, sequence: 1100, heads: 2, kvHeads: 1, headDim: 8, window: 0 };
    const { given, expected } = prepare(dtype, options);
    const { out } = await steps(device, dtype, given, options, { from: 1095 });
    const limit = dtype === 'float32' ? 1e-12 : 1e-5;
    expect(nmse(out.subarray(1095 * 16), expected.subarray(1095 * 16))).toBeLessThan(limit);
  });

  test('scores up to ±1e4 neither overflow nor lose the largest: NMSE < 1e-4', async () => {
    const options: Case = { windows: 1, sequence: 100, heads: 1, kvHeads: 1, headDim: 8, window: 0 };
    const { given, expected } = prepare('float32', options, 3000);
    expect(nmse((await steps(device, 'float32', given, options)).out, expected)).toBeLessThan(1e-4);
  });

  test('a NaN in a key reaches every query that sees it, and no other', async () => {
    const options: Case = { windows: 1, sequence: 60, heads: 2, kvHeads: 1, headDim: 8, window: 25 };
    const given = inputs(options);
    given.k[30 * 8 + 3] = Number.NaN;
    const { out } = await steps(device, 'float32', given, options);
    expect([...out].map(Number.isNaN)).toEqual(Array.from(out, (_, i) => i >= 30 * 16 && i < 55 * 16));
  });

  test('shapes that do not fit are refused', () => {
    using scope = new Scope();
    const stream = scope.hold(device.stream());
    const zeros = (rows: number, columns: number) => scope.hold(device.tensor('float32', [rows, columns]));
    const right = { q: zeros(2, 16), k: zeros(2, 8), v: zeros(2, 8), keys: zeros(10, 8), values: zeros(10, 8) };
    const step = (tensors: Partial<typeof right>, options = {}) =>
      stream.attentionStep({ ...right, ...tensors }, zeros(2, 16), { headDim: 8, position: 4, scale: 1, ...options });
    expect(() => step({})).not.toThrow();
    for (const [message, tensors, options] of [
      ['a position in sequences of 5 but received 5', {}, { position: 5 }],
      ['a position in sequences of 5 but received -1', {}, { position: -1 }],
      ['keys of 2 sequences', { keys: zeros(9, 8), values: zeros(9, 8) }, {}],
      ['keys of 2 sequences, as wide as k', { keys: zeros(10, 16), values: zeros(10, 16) }, {}],
      ['the same shape for values and keys', { values: zeros(8, 8) }, {}],
      ['whole windows of 1 tokens', { k: zeros(3, 8), v: zeros(3, 8) }, {}],
      ['query heads to be a multiple of key heads of 3 dimensions', {}, { headDim: 3 }],
      ['a window of at least 0', {}, { window: -1 }],
    ] as const) {
      expect(() => step(tensors, options)).toThrow(
        expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(message) }),
      );
    }
  });
});

test.each([
  { dtype: 'float32', headDim: 64 },
  { dtype: 'bfloat16', headDim: 64 },
  { dtype: 'bfloat16', headDim: 301 },
] as const)('one more token, $dtype × $headDim: equal bits in any order, and whatever the threads', async (options) => {
  const { dtype, headDim } = options;
  const shape: Case = { windows: 2, sequence: 40, heads: 6, kvHeads: 2, headDim, window: 30 };
  const given = inputs(shape);
  for (const devices of [cudaOrders(), [...threadCounts, 1].map((threads) => Device.open('cpu', { threads }))]) {
    const runs: Buffer[] = [];
    for (const device of devices) {
      const { out, keys, values } = await steps(device, dtype, given, shape);
      runs.push(Buffer.concat([out, keys, values].map(({ buffer }) => Buffer.from(buffer))));
    }
    expect(runs.map((run) => run.equals(runs[0]!))).toEqual(runs.map(() => true));
  }
});

test.each([
  { dtype: 'float32', headDim: 64 },
  { dtype: 'bfloat16', headDim: 64 },
  { dtype: 'bfloat16', headDim: 136 },
] as const)('$dtype × $headDim: equal bits in whatever order blocks and threads run', async ({ dtype, headDim }) => {
  const options: Case = { windows: 2, sequence: 150, heads: 2, kvHeads: 1, headDim, window: 100 };
  const given = inputs(options);
  const runs: Buffer[] = [];
  for (const device of cudaOrders()) runs.push(Buffer.from((await attention(device, dtype, given, options)).buffer));
  expect(runs.map((run) => run.equals(runs[0]!))).toEqual(runs.map(() => true));
});

test.each(['float32', 'bfloat16'] as const)('%s: equal bits whatever the threads, and twice', async (dtype) => {
  const options: Case = { windows: 2, sequence: 300, heads: 6, kvHeads: 2, headDim: 64, window: 200 };
  const given = inputs(options);
  const runs: Buffer[] = [];
  for (const threads of [...threadCounts, 1]) {
    runs.push(Buffer.from((await attention(Device.open('cpu', { threads }), dtype, given, options)).buffer));
  }
  expect(runs.map((run) => run.equals(runs[0]!))).toEqual(runs.map(() => true));
});
