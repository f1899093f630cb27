import { Device } from '../src/device/device.js';
import { allocateArray, Scope, type Tensor, type TypedArrayOf } from '../src/device/tensor.js';
import {
  cudaBlockSizes,
  cudaOrders,
  fromBf16,
  nmse,
  normal,
  opDevice,
  opDevices,
  threadCounts,
  toBf16,
} from './helpers/numbers.js';

type Floats = Float32Array<ArrayBuffer>;

const lengths = [1, 15, 16, 17, 1000, 70_001];

/** float16 bits of float32 numbers, through the runtime's own conversion of typed arrays where it has one. */
const halves = (values: number[]) =>
  Uint16Array.from(values, (value) => {
    const known: Record<string, number> = { 0: 0, 1: 0x3c00, '-2': 0xc000, 65504: 0x7bff, 0.5: 0x3800 };
    return known[String(value)]!;
  });

for (const isa of opDevices()) {
  const device = opDevice(isa);
  describe(`elementwise ops on ${isa}`, () => {
    test.each(lengths)('fill and axpby of %i numbers', async (length) => {
      using stream = device.stream();
      using scope = new Scope();
      const [a, b] = [normal(1, length), normal(2, length)];
      const x = scope.hold(stream.upload('float32', [length], a));
      const y = scope.hold(stream.upload('float32', [length], b));
      stream.axpby(x, y, 0.25, -3);
      expect(
        nmse(
          await stream.read(y),
          Float64Array.from(a, (value, i) => 0.25 * value - 3 * b[i]!),
        ),
      ).toBeLessThan(1e-13);
      stream.fill(y, -1.5);
      expect((await stream.read(y)).every((value) => value === -1.5)).toBe(true);
    });

    test('axpby with β = 0 does not read what was there', async () => {
      using stream = device.stream();
      using scope = new Scope();
      const x = scope.hold(stream.upload('float32', [40], normal(1, 40)));
      const y = scope.hold(stream.upload('float32', [40], new Float32Array(40).fill(Number.NaN)));
      stream.axpby(x, y, 1, 0);
      expect(await stream.read(y)).toEqual(normal(1, 40));
    });

    test.each(lengths)('axpby of %i bfloat16 numbers rounds once, to nearest even', async (length) => {
      using stream = device.stream();
      using scope = new Scope();
      const [a, b] = [normal(1, length), normal(2, length)].map(toBf16) as [
        Uint16Array<ArrayBuffer>,
        Uint16Array<ArrayBuffer>,
      ];
      const x = scope.hold(stream.upload('bfloat16', [length], a));
      const y = scope.hold(stream.upload('bfloat16', [length], b));
      stream.axpby(x, y, -1, 1);
      const [from, to] = [fromBf16(a), fromBf16(b)];
      expect(await stream.read(y)).toEqual(toBf16(Float32Array.from(from, (value, i) => to[i]! - value)));
      const nothing = scope.hold(stream.upload('bfloat16', [length], new Uint16Array(length).fill(0x7fc0)));
      stream.axpby(x, nothing, 1, 0);
      expect(await stream.read(nothing)).toEqual(a);
    });

    test.each(lengths)('copies of %i numbers between dtypes round to nearest even', async (length) => {
      using stream = device.stream();
      using scope = new Scope();
      const values = normal(3, length);
      const from = scope.hold(stream.upload('float32', [length], values));
      const short = scope.hold(device.tensor('bfloat16', [length]));
      const double = scope.hold(device.tensor('float64', [length]));
      const back = scope.hold(device.tensor('float32', [length]));
      stream.copy(from, short);
      expect(await stream.read(short)).toEqual(toBf16(values));
      stream.copy(short, back);
      expect(await stream.read(back)).toEqual(fromBf16(toBf16(values)));
      stream.copy(from, double);
      expect(await stream.read(double)).toEqual(Float64Array.from(values));
    });

    test('special values survive a copy to bfloat16 and float16', async () => {
      using stream = device.stream();
      using scope = new Scope();
      const values = Float32Array.from([
        0,
        -0,
        Infinity,
        -Infinity,
        Number.NaN,
        3.4e38,
        1e-45,
        1 + 2 ** -8,
        1 + 3 * 2 ** -8,
      ]);
      const from = scope.hold(stream.upload('float32', [values.length], values));
      const short = scope.hold(device.tensor('bfloat16', [values.length]));
      stream.copy(from, short);
      const bits = await stream.read(short);
      const expected = [0, -0, Infinity, -Infinity, Number.NaN, Infinity, 0, 1, 1 + 2 ** -6];
      expect([...fromBf16(bits)]).toEqual(expected);

      const numbers = [0, 1, -2, 65504, 0.5];
      const plain = scope.hold(stream.upload('float32', [numbers.length], Float32Array.from(numbers)));
      const half = scope.hold(device.tensor('float16', [numbers.length]));
      stream.copy(plain, half);
      expect(await stream.read(half)).toEqual(halves(numbers));
    });

    // The last one in several pieces on a GPU.
    test.each([
      [1, 1],
      [7, 33],
      [129, 257],
      [8200, 3],
    ])('quadratic forms of [%i, %i]', async (rows, columns) => {
      using stream = device.stream();
      using scope = new Scope();
      const [a, half] = [normal(4, rows * columns), normal(5, columns * columns)];
      const s = half.map((value, at) => value + half[(at % columns) * columns + Math.floor(at / columns)]!);
      const x = scope.hold(stream.upload('float32', [rows, columns], a));
      const square = scope.hold(stream.upload('float32', [columns, columns], s));
      const out = scope.hold(stream.upload('float64', [rows], new Float64Array(rows).fill(7)));
      stream.quadraticForms(x, square, out);
      const expected = Float64Array.from({ length: rows }, (_, r) => {
        const row = a.subarray(r * columns, (r + 1) * columns);
        const product = (i: number) => row.reduce((sum, value, j) => sum + value * s[i * columns + j]!, 0);
        return row.reduce((sum, value, i) => sum + value * product(i), 0);
      });
      expect(nmse(await stream.read(out), expected)).toBeLessThan(1e-12);
      // A NaN stays in its row.
      a[0] = Number.NaN;
      stream.quadraticForms(scope.hold(stream.upload('float32', [rows, columns], a)), square, out);
      const [first, ...others] = await stream.read(out);
      expect(first).toBeNaN();
      expect(others.every(Number.isFinite)).toBe(true);
    });

    test.each([
      [1, 1],
      [7, 33],
      [129, 257],
    ])('rows and columns of [%i, %i]: bias, scales, dot products', async (rows, columns) => {
      using stream = device.stream();
      using scope = new Scope();
      const [a, b, row, column] = [
        normal(4, rows * columns),
        normal(5, rows * columns),
        normal(6, rows),
        normal(7, columns),
      ];
      const upload = (shape: number[], data: Floats) => scope.hold(stream.upload('float32', shape, data));
      const [x, y, r, c] = [
        upload([rows, columns], a),
        upload([rows, columns], b),
        upload([rows], row),
        upload([columns], column),
      ];
      const out = scope.hold(device.tensor('float32', [rows, columns]));
      const each = (f: (i: number, j: number, at: number) => number) =>
        Float64Array.from(a, (_, at) => f(Math.floor(at / columns), at % columns, at));

      stream.scaleRowsColumns(x, { row: r, column: c }, out);
      expect(
        nmse(
          await stream.read(out),
          each((i, j, at) => a[at]! * row[i]! * column[j]!),
        ),
      ).toBeLessThan(1e-13);
      stream.scaleRowsColumns(x, { row: r }, out);
      expect(
        nmse(
          await stream.read(out),
          each((i, _, at) => a[at]! * row[i]!),
        ),
      ).toBeLessThan(1e-13);
      stream.scaleRowsColumns(x, { column: c }, out);
      expect(
        nmse(
          await stream.read(out),
          each((_, j, at) => a[at]! * column[j]!),
        ),
      ).toBeLessThan(1e-13);

      const dots = scope.hold(device.tensor('float64', [rows]));
      stream.rowDots(x, y, dots);
      const sums = new Float64Array(rows);
      a.forEach((value, at) => {
        sums[Math.floor(at / columns)]! += value * b[at]!;
      });
      expect(nmse(await stream.read(dots), sums)).toBeLessThan(1e-24);

      const short = scope.hold(stream.upload('bfloat16', [rows, columns], toBf16(a)));
      stream.addBias(x, c);
      stream.addBias(short, c);
      expect(
        nmse(
          await stream.read(x),
          each((_, j, at) => a[at]! + column[j]!),
        ),
      ).toBeLessThan(1e-13);
      const rounded = fromBf16(toBf16(a));
      const added = fromBf16(await stream.read(short));
      expect(
        nmse(
          added,
          each((_, j, at) => rounded[at]! + column[j]!),
        ),
      ).toBeLessThan(1e-5);
    });

    test.each(lengths)('masks of %i numbers', async (length) => {
      using stream = device.stream();
      using scope = new Scope();
      const values = normal(8, length).map((x, i) => (i % 3 === 0 ? -0 : x));
      const x = scope.hold(stream.upload('float32', [length], values));
      const mask = scope.hold(device.tensor('uint8', [length]));
      stream.nonZeroMask(x, mask);
      expect(await stream.read(mask)).toEqual(Uint8Array.from(values, (value) => (value === 0 ? 0 : 1)));
      stream.applyMask(x, mask);
      const masked = await stream.read(x);
      expect(masked.every((value, i) => Object.is(value, values[i] === 0 ? 0 : values[i]))).toBe(true);
    });

    test('a masked NaN is gone', async () => {
      using stream = device.stream();
      using scope = new Scope();
      const x = scope.hold(stream.upload('float32', [20], new Float32Array(20).fill(Number.NaN)));
      const mask = scope.hold(stream.upload('uint8', [20], new Uint8Array(20)));
      stream.applyMask(x, mask);
      expect(await stream.read(x)).toEqual(new Float32Array(20));
    });

    test.each(['float32', 'bfloat16', 'float16'] as const)('counts what is not finite in %s', async (dtype) => {
      for (const length of lengths) {
        using stream = device.stream();
        using scope = new Scope();
        const bad = { float32: 0x7f800001, bfloat16: 0x7f80, float16: 0xfc00 }[dtype];
        const largest = { float32: 0x7f7fffff, bfloat16: 0x7f7f, float16: 0x7bff }[dtype];
        const bits = (dtype === 'float32' ? new Uint32Array(length) : new Uint16Array(length)).fill(largest);
        const places = [0, length >> 1, length - 1].filter((at, i, all) => all.indexOf(at) === i);
        for (const at of places) bits[at] = bad;
        const x = scope.hold(device.tensor(dtype, [length]));
        stream.write(x, dtype === 'float32' ? new Float32Array(bits.buffer) : bits);
        const count = scope.hold(stream.upload('uint32', [1], Uint32Array.of(5)));
        stream.countNonFinite(x, count);
        expect((await stream.read(count))[0]).toBe(5 + places.length);
      }
    });

    test.each([
      [0, 0],
      [1, 1],
      [3, 2],
      [2, 3],
    ])('views from elements %i and %i on', async (first, second) => {
      using stream = device.stream();
      using scope = new Scope();
      const length = 261;
      const cut = <D extends 'float32' | 'bfloat16' | 'uint8'>(dtype: D, data: TypedArrayOf<D>, start: number) =>
        scope.hold(scope.hold(stream.upload(dtype, [data.length], data)).rows(start, start + length)) as Tensor<D>;
      const [a, b] = [normal(1, length + 4), normal(2, length + 4)];
      const keep = Uint8Array.from(a, (_, i) => i % 3);
      const [x, y] = [cut('float32', a, first), cut('float32', b, second)];
      stream.axpby(x, y, 2, 0.5);
      stream.addTo(cut('bfloat16', toBf16(a), second), y);
      stream.applyMask(y, cut('uint8', keep, first));
      const rounded = fromBf16(toBf16(a));
      const expected = Float64Array.from({ length }, (_, i) =>
        keep[first + i] ? 2 * a[first + i]! + 0.5 * b[second + i]! + rounded[second + i]! : 0,
      );
      expect(nmse(await stream.read(y), expected)).toBeLessThan(1e-13);
      const short = cut('bfloat16', new Uint16Array(length + 4), second);
      stream.copy(x, short);
      expect(await stream.read(short)).toEqual(toBf16(a.subarray(first, first + length)));
      stream.fill(short, 1);
      expect(await stream.read(short)).toEqual(new Uint16Array(length).fill(0x3f80));
      const [mask, count] = [cut('uint8', keep, second), scope.hold(device.tensor('uint32', [1]))];
      stream.nonZeroMask(x, mask);
      stream.countNonFinite(short, count);
      expect((await stream.read(mask)).every((value) => value === 1)).toBe(true);
      expect((await stream.read(count))[0]).toBe(0);
    });

    test('every float16 number becomes float32 and comes back; a NaN keeps its sign', async () => {
      using stream = device.stream();
      using scope = new Scope();
      const bits = Uint16Array.from({ length: 1 << 16 }, (_, i) => i);
      const half = scope.hold(stream.upload('float16', [bits.length], bits));
      const wide = scope.hold(device.tensor('float32', [bits.length]));
      stream.copy(half, wide);
      const words = new Uint32Array((await stream.read(wide)).buffer);
      const expected = new Float32Array(bits.length);
      const expectedWords = new Uint32Array(expected.buffer);
      for (const b of bits) {
        const [exponent, fraction, sign] = [(b >> 10) & 31, b & 1023, b & 0x8000 ? -1 : 1];
        expected[b] = sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
        if (exponent === 31) expectedWords[b] = (((b & 0x8000) << 16) | 0x7f800000 | (fraction << 13)) >>> 0;
      }
      expect(words).toEqual(expectedWords);
      stream.copy(wide, half);
      const isNaN16 = (b: number) => (b & 0x7fff) > 0x7c00;
      expect(await stream.read(half)).toEqual(bits.map((b) => (isNaN16(b) ? (b & 0x8000) | 0x7e00 : b)));
    });

    test('float16 rounds to nearest even: ties, denormals, the edge of infinity', async () => {
      using stream = device.stream();
      using scope = new Scope();
      // Between two neighbours a and b: the middle, and what is next to the middle.
      const neighbours = [0, 1, 2, 0x3ff, 0x400, 0x401, 0x3c00, 0x3c01, 0x7bfe];
      const decoded = (b: number) => (b < 0x400 ? b * 2 ** -24 : (1 + (b & 1023) / 1024) * 2 ** ((b >> 10) - 15));
      const cases = neighbours.flatMap((b) => {
        const middle = (decoded(b) + decoded(b + 1)) / 2;
        const step = middle * 2 ** -22;
        const even = b % 2 === 0 ? b : b + 1;
        return [
          [middle, even],
          [middle - step, b],
          [middle + step, b + 1],
        ] as const;
      });
      const all = [...cases, [65519.996, 0x7bff], [65520, 0x7c00], [1e30, 0x7c00], [1e-30, 0], [2 ** -149, 0]] as const;
      const values = Float32Array.from(all.flatMap(([value]) => [value, -value]));
      const half = scope.hold(device.tensor('float16', [values.length]));
      stream.copy(scope.hold(stream.upload('float32', [values.length], values)), half);
      expect([...(await stream.read(half))]).toEqual(all.flatMap(([, b]) => [b, b | 0x8000]));
    });

    test('fill and copies of every pair of dtypes', async () => {
      using stream = device.stream();
      using scope = new Scope();
      const dtypes = ['float32', 'bfloat16', 'float16', 'float64'] as const;
      const values = Float64Array.from({ length: 37 }, (_, i) => (i - 18) / 4); // exact in all of them
      const source = scope.hold(stream.upload('float64', [37], values));
      for (const from of dtypes)
        for (const to of dtypes) {
          const [a, b] = [scope.hold(device.tensor(from, [37])), scope.hold(device.tensor(to, [37]))];
          const back = scope.hold(device.tensor('float64', [37]));
          stream.copy(source, a);
          stream.copy(a, b);
          stream.copy(b, back);
          expect(await stream.read(back)).toEqual(values);
          stream.fill(b, -2.5);
          stream.copy(b, back);
          expect(await stream.read(back)).toEqual(new Float64Array(37).fill(-2.5));
        }
      for (const dtype of ['uint8', 'uint32'] as const) {
        const [a, b] = [scope.hold(device.tensor(dtype, [37])), scope.hold(device.tensor(dtype, [37]))];
        stream.fill(a, 7);
        stream.copy(a, b);
        expect([...(await stream.read(b))]).toEqual(new Array(37).fill(7));
      }
    });

    test.each([1, 63, 64, 65, 131])('symmetrize, addDiagonal and diagonal of %i', async (n) => {
      using stream = device.stream();
      using scope = new Scope();
      const data = normal(n, n * n);
      const a = scope.hold(stream.upload('float32', [n, n], data));
      const d = scope.hold(device.tensor('float32', [n]));
      stream.symmetrize(a);
      stream.addDiagonal(a, 0.5);
      stream.diagonal(a, d);
      const expected = data.map((_, at) => {
        const [i, j] = [Math.floor(at / n), at % n];
        return data[Math.min(i, j) * n + Math.max(i, j)]! + (i === j ? 0.5 : 0);
      });
      expect(await stream.read(a)).toEqual(expected);
      expect(await stream.read(d)).toEqual(expected.filter((_, at) => at % (n + 1) === 0));
      stream.addToDiagonal(a, d, -1);
      expect(await stream.read(a)).toEqual(expected.map((x, at) => (at % (n + 1) === 0 ? 0 : x)));
    });

    test.each(['uint8', 'bfloat16', 'uint32', 'float64'] as const)('transpose of %s', async (dtype) => {
      using stream = device.stream();
      using scope = new Scope();
      for (const [m, n] of [
        [1, 70],
        [70, 1],
        [64, 64],
        [131, 65],
      ] as const) {
        const [data, expected] = [allocateArray(dtype, m * n), allocateArray(dtype, m * n)];
        for (let i = 0; i < m * n; i++) data[i] = (i * 7) % 251;
        for (let i = 0; i < m * n; i++) expected[i] = data[(i % m) * n + Math.floor(i / m)]!;
        const out = scope.hold(device.tensor(dtype, [n, m]));
        stream.transpose(scope.hold(stream.upload(dtype, [m, n], data)), out);
        expect(await stream.read(out)).toEqual(expected);
      }
    });

    test('tensors without elements', async () => {
      using stream = device.stream();
      using scope = new Scope();
      const none = scope.hold(device.tensor('float32', [0, 5]));
      const [sums, dots] = [scope.hold(device.tensor('float64', [5])), scope.hold(device.tensor('float64', [0]))];
      const column = scope.hold(device.tensor('float32', [5]));
      stream.fill(none, 1);
      stream.axpby(none, none, 1, 1);
      stream.addBias(none, column);
      stream.scaleRowsColumns(none, { column }, none);
      stream.rowDots(none, none, dots);
      stream.quadraticForms(none, scope.hold(device.tensor('float32', [5, 5])), dots);
      const over = scope.hold(stream.upload('float64', [3], new Float64Array(3).fill(7)));
      stream.quadraticForms(
        scope.hold(device.tensor('float32', [3, 0])),
        scope.hold(device.tensor('float32', [0, 0])),
        over,
      );
      expect(await stream.read(over)).toEqual(new Float64Array(3));
      stream.columnSums(none, sums);
      stream.transpose(none, scope.hold(device.tensor('float32', [5, 0])));
      expect(await stream.read(sums)).toEqual(new Float64Array(5));
    });
  });
}

test('dot products and quadratic forms have the same bits for any number of threads', async () => {
  const [rows, columns, width] = [33, 5003, 401];
  const results = await Promise.all(
    threadCounts.map(async (threads) => {
      const device = Device.open('cpu', { threads });
      using stream = device.stream();
      using scope = new Scope();
      const x = scope.hold(stream.upload('float32', [rows, columns], normal(1, rows * columns)));
      const dots = scope.hold(device.tensor('float64', [rows]));
      stream.rowDots(x, x, dots);
      const a = scope.hold(stream.upload('float32', [400, width], normal(2, 400 * width)));
      const square = scope.hold(stream.upload('float32', [width, width], normal(3, width * width)));
      const forms = scope.hold(device.tensor('float64', [400]));
      stream.symmetrize(square);
      stream.quadraticForms(a, square, forms);
      return [await stream.read(dots), await stream.read(forms)];
    }),
  );
  for (const result of results) expect(result).toEqual(results[0]);
});

/** A few ops on more elements than a launch has threads, one after the other. */
async function chain(device: Device): Promise<Buffer> {
  using stream = device.stream();
  using scope = new Scope();
  const [rows, columns] = [1201, 257];
  const values = normal(9, 4096);
  const at = (seed: number) => Float32Array.from({ length: rows * columns }, (_, i) => values[(i * seed) % 4096]!);
  const x = scope.hold(stream.upload('float32', [rows, columns], at(3)));
  const y = scope.hold(stream.upload('float32', [rows, columns], at(5)));
  const short = scope.hold(device.tensor('bfloat16', [rows, columns]));
  const turned = scope.hold(device.tensor('bfloat16', [columns, rows]));
  const sums = scope.hold(device.tensor('float64', [rows]));
  const column = scope.hold(stream.upload('float32', [columns], normal(10, columns)));
  stream.axpby(x, y, 0.5, -2);
  stream.scaleRowsColumns(y, { column }, y);
  stream.copy(y, short);
  stream.addBias(short, column);
  stream.transpose(short, turned);
  stream.columnSums(turned, sums);
  return Buffer.concat([await stream.read(y), await stream.read(sums)].map(({ buffer }) => Buffer.from(buffer)));
}

test('CUDA kernels give equal bits in any order of blocks and threads, and with blocks of any size', async () => {
  const first = await chain(opDevice('cuda'));
  for (const device of [...cudaOrders(), ...cudaBlockSizes()]) expect((await chain(device)).equals(first)).toBe(true);
});

test('dot products by CUDA kernels: equal bits in any order, any size of blocks within rounding', async () => {
  const [rows, columns] = [5, 1003];
  const values = normal(1, rows * columns);
  const dots = async (device: Device) => {
    using stream = device.stream();
    using scope = new Scope();
    const x = scope.hold(stream.upload('float32', [rows, columns], values));
    const out = scope.hold(device.tensor('float64', [rows]));
    const count = scope.hold(device.tensor('uint32', [1]));
    stream.rowDots(x, x, out);
    stream.countNonFinite(x, count);
    expect((await stream.read(count))[0]).toBe(0);
    return stream.read(out);
  };
  const first = await dots(opDevice('cuda'));
  for (const device of cudaOrders()) expect(await dots(device)).toEqual(first);
  for (const device of cudaBlockSizes()) expect(nmse(await dots(device), first)).toBeLessThan(1e-30);
});
