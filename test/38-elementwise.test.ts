import { Device } from '../src/device/device.js';
import { Scope } from '../src/device/tensor.js';
import { fromBf16, instructionSets, nmse, normal, threadCounts, toBf16 } from './helpers/numbers.js';

type Floats = Float32Array<ArrayBuffer>;

const lengths = [1, 15, 16, 17, 1000, 70_001];

/** float16 bits of float32 numbers, through the runtime's own conversion of typed arrays where it has one. */
const halves = (values: number[]) =>
  Uint16Array.from(values, (value) => {
    const known: Record<string, number> = { 0: 0, 1: 0x3c00, '-2': 0xc000, 65504: 0x7bff, 0.5: 0x3800 };
    return known[String(value)]!;
  });

for (const isa of instructionSets()) {
  const device = Device.open('cpu', { isa });
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
  });
}

test('dot products have the same bits for any number of threads', async () => {
  const [rows, columns] = [33, 5003];
  const results = await Promise.all(
    threadCounts.map(async (threads) => {
      const device = Device.open('cpu', { threads });
      using stream = device.stream();
      using scope = new Scope();
      const x = scope.hold(stream.upload('float32', [rows, columns], normal(1, rows * columns)));
      const dots = scope.hold(device.tensor('float64', [rows]));
      stream.rowDots(x, x, dots);
      return stream.read(dots);
    }),
  );
  for (const result of results) expect(result).toEqual(results[0]);
});
