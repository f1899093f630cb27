import { Device } from '../src/device/device.js';
import { Scope } from '../src/device/tensor.js';
import {
  cudaOrders,
  fromBf16,
  nmse,
  normal,
  opDevice,
  opDevices,
  product,
  threadCounts,
  toBf16,
} from './helpers/numbers.js';

type Bits = Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer>;
type Kind = 'float32' | 'bfloat16';
interface Options {
  transposeA?: boolean;
  transposeB?: boolean;
  alpha?: number;
  beta?: number;
  split?: boolean;
}

// Bounds on the NMSE against float64. float32 sums have relative errors of some 1e-7, a bfloat16 output rounds at 2⁻⁹.
const bound32 = 1e-11;
const bound16 = 1e-5;
// Factors of 16 binary digits; and sums in a GPU's matrix units.
const boundSplit = 1e-10;

const devices = { cpu: Device.open('cpu'), cuda: opDevice('cuda') };
const names = ['cpu', 'cuda'] as const;
const equalBits = (a: Bits, b: Bits) => Buffer.compare(Buffer.from(a.buffer), Buffer.from(b.buffer)) === 0;
const values = (bits: Bits) => (bits instanceof Uint16Array ? fromBf16(bits) : bits);
const encode = (kind: Kind, x: Float32Array<ArrayBuffer>): Bits => (kind === 'float32' ? x : toBf16(x));

/** Input bits of op(a) [m, k], op(b) [k, n] and what out [m, n] holds before. */
function inputs(m: number, n: number, k: number, kind: Kind, out: Kind) {
  return {
    a: encode(kind, normal(m + 7 * k, m * k)),
    b: encode(kind, normal(n + 3 * k + 1, k * n)),
    before: encode(out, normal(m + n, m * n)),
  };
}

async function gemm(
  on: Device,
  [m, n, k]: number[],
  data: { a: Bits; b: Bits; before: Bits },
  options: Options,
): Promise<Bits> {
  using stream = on.stream();
  using scope = new Scope();
  const upload = (shape: number[], bits: Bits) =>
    scope.hold(
      bits instanceof Uint16Array ? stream.upload('bfloat16', shape, bits) : stream.upload('float32', shape, bits),
    );
  const a = upload(options.transposeA ? [k!, m!] : [m!, k!], data.a);
  const b = upload(options.transposeB ? [n!, k!] : [k!, n!], data.b);
  const out = upload([m!, n!], data.before);
  stream.gemm(a, b, out, options);
  return (await stream.read(out)) as Bits;
}

function expected([m, n, k]: number[], data: { a: Bits; b: Bits; before: Bits }, options: Options): Float64Array {
  const { transposeA, transposeB, alpha = 1, beta = 0 } = options;
  const sums = product(values(data.a), values(data.b), m!, n!, k!, transposeA, transposeB);
  const before = values(data.before);
  return sums.map((x, i) => alpha * x + (beta === 0 ? 0 : beta * before[i]!));
}

const shapes = [
  [1, 1, 1],
  [1, 37, 5],
  [37, 1, 5],
  [13, 17, 1],
  [97, 101, 103],
  [129, 193, 64],
  [300, 50, 31],
  [31, 800, 29], // more than one tile of columns
  [257, 400, 17], // and of both
  [64, 512, 40], // rows half pages apart
  [512, 64, 40],
];

describe('gemm against float64', () => {
  const layouts = [
    {},
    { transposeA: true },
    { transposeB: true, alpha: -0.5, beta: 2 },
    { transposeA: true, transposeB: true, beta: 1 },
  ];
  for (const name of names)
    for (const options of layouts)
      test.each(shapes)(`${name}: float32 [%i, %i], k = %i, ${JSON.stringify(options)}`, async (...shape) => {
        const data = inputs(shape[0]!, shape[1]!, shape[2]!, 'float32', 'float32');
        const out = await gemm(devices[name], shape, data, options);
        expect(nmse(out, expected(shape, data, options))).toBeLessThan(bound32);
      });

  for (const isa of opDevices())
    for (const options of layouts)
      test(`bfloat16 on ${isa}, ${JSON.stringify(options)}`, async () => {
        for (const shape of shapes) {
          const data = inputs(shape[0]!, shape[1]!, shape[2]!, 'bfloat16', 'float32');
          const on = opDevice(isa);
          expect(nmse(await gemm(on, shape, data, options), expected(shape, data, options))).toBeLessThan(bound32);
        }
      });

  for (const name of names)
    test.each(['float32', 'bfloat16'] as const)(`${name}: %s into bfloat16`, async (kind) => {
      for (const shape of shapes) {
        const data = inputs(shape[0]!, shape[1]!, shape[2]!, kind, 'bfloat16');
        const out = await gemm(devices[name], shape, data, { transposeB: true, alpha: 3 });
        expect(nmse(values(out), expected(shape, data, { transposeB: true, alpha: 3 }))).toBeLessThan(bound16);
      }
    });

  // On a GPU large products alone are split; this device splits all.
  test.each(shapes)('float32 by split factors: [%i, %i], k = %i', async (...shape) => {
    const data = inputs(shape[0]!, shape[1]!, shape[2]!, 'float32', 'float32');
    const on = Device.openKernels('cuda:0', 'split');
    for (const layout of layouts) {
      const exact = expected(shape, data, layout);
      expect(nmse(await gemm(on, shape, data, { ...layout, split: true }), exact)).toBeLessThan(boundSplit);
      expect(nmse(await gemm(on, shape, data, layout), exact)).toBeLessThan(bound32);
    }
  });

  test('split factors have more digits than bfloat16, and fewer than float32', async () => {
    const shape = [97, 101, 103];
    const data = inputs(97, 101, 103, 'float32', 'float32');
    const error = nmse(
      await gemm(Device.openKernels('cuda:0', 'split'), shape, data, { split: true }),
      expected(shape, data, {}),
    );
    expect(error).toBeGreaterThan(bound32 / 10);
    expect(error).toBeLessThan(boundSplit);
  });

  test('float32 into a bfloat16 view at an odd place', async () => {
    using stream = devices.cuda.stream();
    using scope = new Scope();
    const [m, n, k] = [13, 21, 5];
    const data = inputs(m, n, k, 'float32', 'bfloat16');
    const a = scope.hold(stream.upload('float32', [m, k], data.a as Float32Array<ArrayBuffer>));
    const b = scope.hold(stream.upload('float32', [k, n], data.b as Float32Array<ArrayBuffer>));
    const out = scope.hold(devices.cuda.tensor('bfloat16', [m + 1, n]));
    stream.gemm(a, b, scope.hold(out.rows(1, m + 1)));
    const bits = (await stream.read(out)) as Bits;
    expect(values(bits.subarray(0, n) as Bits).every((x) => x === 0)).toBe(true);
    expect(nmse(values(bits.slice(n) as Bits), expected([m, n, k], data, {}))).toBeLessThan(bound16);
  });

  test.each(['float32', 'bfloat16'] as const)('%s: a sum longer than one call takes', async (kind) => {
    for (const isa of opDevices()) {
      const shape = [19, 33, 4500];
      const data = inputs(19, 33, 4500, kind, 'float32');
      for (const options of [
        { beta: -1 },
        { transposeA: true, beta: 2 },
        { transposeB: true },
        { transposeA: true, transposeB: true },
      ]) {
        const out = await gemm(opDevice(isa), shape, data, options);
        expect(nmse(out, expected(shape, data, options))).toBeLessThan(bound32);
      }
    }
  });

  test('bfloat16: columns so many that only a piece of the sum is packed at a time', async () => {
    const shape = [2, 44000, 800];
    const data = inputs(2, 44000, 800, 'bfloat16', 'float32');
    const options = { transposeA: true, alpha: 0.5, beta: -1 };
    const exact = expected(shape, data, options);
    for (const isa of opDevices()) {
      if (isa === 'cuda') continue; // it packs nothing
      expect(nmse(await gemm(opDevice(isa), shape, data, options), exact)).toBeLessThan(bound32);
    }
  });
});

describe.each(names)('gemm at the edges on %s', (name) => {
  const device = devices[name];
  test.each([
    ['float32', 'float32'],
    ['bfloat16', 'float32'],
    ['bfloat16', 'bfloat16'],
  ] as const)('%s into %s: beta = 0 does not read out', async (kind, outKind) => {
    for (const shape of [
      [5, 7, 3],
      [5, 7, 0],
      [257, 400, 17],
    ]) {
      const data = inputs(shape[0]!, shape[1]!, shape[2]!, kind, outKind);
      data.before = encode(outKind, new Float32Array(shape[0]! * shape[1]!).fill(Number.NaN));
      const out = values(await gemm(device, shape, data, {}));
      expect(nmse(out, expected(shape, data, {}))).toBeLessThan(outKind === 'float32' ? bound32 : bound16);
    }
  });

  test('k = 0 leaves beta times out', async () => {
    const data = inputs(5, 7, 0, 'float32', 'float32');
    const out = await gemm(device, [5, 7, 0], data, { alpha: 3, beta: 0.5 });
    expect([...out]).toEqual([...data.before].map((x) => x * 0.5));
  });

  test('no rows or no columns is no work', async () => {
    expect((await gemm(device, [0, 7, 3], inputs(0, 7, 3, 'float32', 'float32'), {})).length).toBe(0);
    expect((await gemm(device, [7, 0, 3], inputs(7, 0, 3, 'bfloat16', 'float32'), {})).length).toBe(0);
  });

  test('a NaN in an input reaches its row and no other', async () => {
    const data = inputs(300, 40, 20, 'float32', 'float32');
    data.a[17 * 20 + 3] = Number.NaN;
    const out = await gemm(device, [300, 40, 20], data, {});
    expect(out.every((x, i) => Number.isNaN(x) === (Math.floor(i / 40) === 17))).toBe(true);
  });
});

describe('gemm', () => {
  test.each(['float32', 'bfloat16'] as const)('%s: equal bits for any number of threads, and again', async (kind) => {
    const shape = [600, 500, 300];
    const data = inputs(600, 500, 300, kind, 'float32');
    const first = await gemm(devices.cpu, shape, data, { transposeB: true });
    for (const threads of [...threadCounts, ...threadCounts]) {
      const again = await gemm(Device.open('cpu', { threads }), shape, data, { transposeB: true });
      expect(equalBits(again, first)).toBe(true);
    }
  });
});

async function gram(on: Device, tokens: number, n: number, chunks: Bits[], start?: Float32Array<ArrayBuffer>) {
  using stream = on.stream();
  using sum = stream.upload('float32', [n, n], start ?? new Float32Array(n * n));
  for (const bits of chunks) {
    using x =
      bits instanceof Uint16Array
        ? stream.upload('bfloat16', [tokens, n], bits)
        : stream.upload('float32', [tokens, n], bits);
    stream.gramAccumulate(x, sum);
  }
  stream.symmetrize(sum);
  return stream.read(sum);
}

describe('gramAccumulate and symmetrize', () => {
  const cases = [
    [1, 1],
    [1, 9],
    [50, 1],
    [61, 67],
    [33, 300], // several blocks, strips within them
    [5000, 40], // several chunks of tokens
    [2100, 150],
    [40, 512],
  ] as const;
  for (const kind of ['float32', 'bfloat16'] as const)
    for (const isa of opDevices())
      test(`${kind} on ${isa} against float64`, async () => {
        // A GPU's matrix units cut off what their sums cannot hold: of 5000 positive terms 4e-6 is lost (measured on an H200).
        const bound = isa === 'cuda' && kind === 'bfloat16' ? boundSplit : bound32;
        for (const [tokens, n] of cases) {
          const x = encode(kind, normal(tokens + n, tokens * n));
          const actual = await gram(opDevice(isa), tokens, n, [x]);
          expect(nmse(actual, product(values(x), values(x), n, n, tokens, true))).toBeLessThan(bound);
        }
      });

  test.each(['float32', 'bfloat16'] as const)('%s: equal bits for any number of threads, and again', async (kind) => {
    const x = encode(kind, normal(5, 2500 * 333));
    const first = await gram(devices.cpu, 2500, 333, [x]);
    for (const threads of [...threadCounts, ...threadCounts])
      expect(equalBits(await gram(Device.open('cpu', { threads }), 2500, 333, [x]), first)).toBe(true);
  });

  for (const isa of opDevices())
    test(`of differences on ${isa}: as the differences’ own`, async () => {
      for (const [tokens, n] of cases) {
        const [x, y] = [encode('bfloat16', normal(1, tokens * n)), encode('bfloat16', normal(2, tokens * n))];
        using stream = opDevice(isa).stream();
        using scope = new Scope();
        const sum = scope.hold(opDevice(isa).tensor('float32', [n, n]));
        const [first, second] = [x, y].map((bits) =>
          scope.hold(stream.upload('bfloat16', [tokens, n], bits as Uint16Array<ArrayBuffer>)),
        );
        stream.differenceSums(first!, second!, { gram: sum });
        stream.symmetrize(sum);
        const [wide, other] = [values(x), values(y)];
        const difference = encode(
          'bfloat16',
          wide.map((value, i) => value - other[i]!),
        );
        expect(nmse(await stream.read(sum), await gram(opDevice(isa), tokens, n, [difference]))).toBeLessThan(1e-13);
      }
    });

  test('equal bits in any order of blocks and threads, over two panels', async () => {
    const x = encode('float32', normal(5, 3 * 2300));
    const upper = async (on: Device) => {
      using stream = on.stream();
      using scope = new Scope();
      const sum = scope.hold(on.tensor('float32', [2300, 2300])); // more than one panel
      stream.gramAccumulate(scope.hold(stream.upload('float32', [3, 2300], x as Float32Array<ArrayBuffer>)), sum);
      return stream.read(sum);
    };
    const first = await upper(devices.cuda);
    const exact = product(values(x), values(x), 2300, 2300, 3, true);
    const above = (_: number, i: number) => i % 2300 >= Math.floor(i / 2300);
    expect(nmse(first.filter(above), exact.filter(above))).toBeLessThan(bound32);
    for (const on of cudaOrders()) expect(equalBits(await upper(on), first)).toBe(true);
  });
});

describe.each(names)('Gram matrices on %s', (name) => {
  const device = devices[name];

  test('adds to what is there, call by call', async () => {
    const [tokens, n] = [41, 131];
    const chunks = [normal(1, tokens * n), normal(2, tokens * n)];
    const actual = await gram(device, tokens, n, chunks, new Float32Array(n * n).fill(2));
    const [one, two] = chunks.map((x) => product(x, x, n, n, tokens, true));
    expect(
      nmse(
        actual,
        one!.map((x, i) => 2 + x + two![i]!),
      ),
    ).toBeLessThan(bound32);
  });

  test('no tokens leave it as it is', async () => {
    expect(await gram(device, 0, 3, [new Float32Array(0)])).toEqual(new Float32Array(9));
  });

  test.each([1, 2, 63, 64, 65, 131, 200])('symmetrize copies the upper triangle: n = %i', async (n) => {
    using stream = device.stream();
    const data = normal(n, n * n);
    using a = stream.upload('float32', [n, n], data);
    stream.symmetrize(a);
    const out = await stream.read(a);
    expect(
      out.every((x, i) => x === data[Math.min(Math.floor(i / n), i % n) * n + Math.max(Math.floor(i / n), i % n)]),
    ).toBe(true);
  });

  test('addDiagonal and diagonal', async () => {
    using stream = device.stream();
    using a = stream.upload('float32', [3, 3], new Float32Array([1, 2, 3, 4, 5, 6, 7, 8, 9]));
    using d = device.tensor('float32', [3]);
    stream.addDiagonal(a, 0.5);
    stream.diagonal(a, d);
    expect([...(await stream.read(a))]).toEqual([1.5, 2, 3, 4, 5.5, 6, 7, 8, 9.5]);
    expect([...(await stream.read(d))]).toEqual([1.5, 5.5, 9.5]);
  });
});
