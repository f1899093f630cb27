import { Device } from '../src/device/device.js';
import { Scope } from '../src/device/tensor.js';
import { cudaOrders, nmse, normal, opDevice, product, threadCounts } from './helpers/numbers.js';

type Floats = Float32Array<ArrayBuffer>;

const devices = { cpu: Device.open('cpu'), cuda: opDevice('cuda') };
const equalBits = (a: Floats, b: Floats) => Buffer.compare(Buffer.from(a.buffer), Buffer.from(b.buffer)) === 0;

/** What these ops, one after the other, make of a matrix [n, n]. */
const inPlace =
  (...ops: ('cholesky' | 'choleskyInverse' | 'inverseFactor')[]) =>
  async (on: Device, a: Floats, n: number): Promise<Floats> => {
    using stream = on.stream();
    using tensor = stream.upload('float32', [n, n], a);
    for (const op of ops) stream[op](tensor);
    return stream.read(tensor);
  };

const factor = inPlace('cholesky');
const inverse = inPlace('cholesky', 'choleskyInverse');
/** L with a⁻¹ = L Lᵀ. */
const inverseFactor = inPlace('inverseFactor');

async function inverseDiagonal(on: Device, a: Floats, n: number): Promise<Floats> {
  using stream = on.stream();
  using tensor = stream.upload('float32', [n, n], a);
  using out = stream.upload('float32', [n], new Float32Array(n).fill(7));
  stream.inverseDiagonal(tensor, out);
  return stream.read(out);
}

/** A Gram matrix of normal numbers plus the identity. */
function wellConditioned(n: number): Floats {
  const x = normal(n + 1, (n + 8) * n);
  return Float32Array.from(product(x, x, n, n, n + 8, true), (value, i) => value / n + (i % (n + 1) === 0 ? 1 : 0));
}

/** Q diag(1 ... 1/condition) Qᵀ, exactly symmetric; Q is the product of `n` reflections. */
function conditioned(n: number, condition: number): Floats {
  const q = new Float64Array(n * n);
  for (let i = 0; i < n; i++) q[i * n + i] = 1;
  for (let r = 0; r < 8; r++) {
    const v = normal(100 + r, n);
    const scale = 2 / v.reduce((sum, x) => sum + x * x, 0);
    for (let i = 0; i < n; i++) {
      let dot = 0;
      for (let j = 0; j < n; j++) dot += q[i * n + j]! * v[j]!;
      for (let j = 0; j < n; j++) q[i * n + j]! -= scale * dot * v[j]!;
    }
  }
  const scaled = q.map((x, i) => x * condition ** (-(i % n) / Math.max(1, n - 1)));
  const out = Float32Array.from(product(scaled, q, n, n, n, false, true));
  for (let i = 0; i < n; i++) for (let j = 0; j < i; j++) out[i * n + j] = out[j * n + i]!;
  return out;
}

/** Lower Cholesky factor and inverse, row by row, every operation rounded by `round`. */
function reference(a: ArrayLike<number>, n: number, round: (x: number) => number) {
  const l = new Float64Array(n * n);
  for (let i = 0; i < n; i++)
    for (let j = 0; j <= i; j++) {
      let sum = a[i * n + j]!;
      for (let k = 0; k < j; k++) sum = round(sum - round(l[i * n + k]! * l[j * n + k]!));
      l[i * n + j] = i === j ? round(Math.sqrt(sum)) : round(sum / l[j * n + j]!);
    }
  const x = new Float64Array(n * n); // L⁻¹
  for (let j = 0; j < n; j++)
    for (let i = j; i < n; i++) {
      let sum = i === j ? 1 : 0;
      for (let k = j; k < i; k++) sum = round(sum - round(l[i * n + k]! * x[k * n + j]!));
      x[i * n + j] = round(sum / l[i * n + i]!);
    }
  const inverse = new Float64Array(n * n);
  for (let i = 0; i < n; i++)
    for (let j = 0; j <= i; j++) {
      let sum = 0;
      for (let k = i; k < n; k++) sum = round(sum + round(x[k * n + i]! * x[k * n + j]!));
      inverse[i * n + j] = inverse[j * n + i] = sum;
    }
  return { l, inverse };
}

/** ‖A·B − I‖ in the Frobenius norm. */
function residual(a: ArrayLike<number>, b: ArrayLike<number>, n: number): number {
  return Math.sqrt(product(a, b, n, n, n).reduce((sum, x, i) => sum + (x - (i % (n + 1) === 0 ? 1 : 0)) ** 2, 0));
}

const single = Math.fround;
const double = (x: number) => x;

describe.each(['cpu', 'cuda'] as const)('cholesky and choleskyInverse on %s', (name) => {
  const device = devices[name];
  // One leaf, its edge, one block, its edge, several blocks, more than one tile with and without a remainder.
  const sizes = [1, 2, 3, 31, 32, 33, 63, 64, 65, 97, 128, 191, 257, 400];

  test.each(sizes)('against float64: n = %i', async (n) => {
    const a = wellConditioned(n);
    const exact = reference(a, n, double);
    const l = await factor(device, a, n);
    expect(nmse(l, exact.l)).toBeLessThan(1e-12); // Relative error below 1e-6.
    expect(l.every((x, i) => i % n <= Math.floor(i / n) || Object.is(x, 0))).toBe(true);
    const x = await inverse(device, a, n);
    expect(nmse(x, exact.inverse)).toBeLessThan(1e-11);
    expect(x.every((value, i) => Object.is(value, x[(i % n) * n + Math.floor(i / n)]))).toBe(true);
    const f = await inverseFactor(device, a, n);
    expect(nmse(f, reference(exact.inverse, n, double).l)).toBeLessThan(1e-11);
    expect(f.every((value, i) => i % n <= Math.floor(i / n) || Object.is(value, 0))).toBe(true);
    const diagonal = exact.inverse.filter((_, i) => i % (n + 1) === 0);
    expect(nmse(await inverseDiagonal(device, a, n), diagonal)).toBeLessThan(1e-12);
  });

  test.each(name === 'cpu' ? [770, 1540] : [770])('L Lᵀ and A A⁻¹ on rows of a large matrix: n = %i', async (n) => {
    // A = D + u uᵀ has the inverse D⁻¹ − D⁻¹u uᵀD⁻¹ / (1 + uᵀD⁻¹u). These sizes have panels of another width.
    const u = normal(n, n).map((x) => x / Math.sqrt(n));
    const d = Float32Array.from({ length: n }, (_, i) => 1 + (i % 7));
    const a = new Float32Array(n * n);
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) a[i * n + j] = u[i]! * u[j]! + (i === j ? d[i]! : 0);
    const dot = u.reduce((sum, x, i) => sum + x ** 2 / d[i]!, 0);
    const exact = new Float64Array(n * n);
    for (let i = 0; i < n; i++)
      for (let j = 0; j < n; j++)
        exact[i * n + j] = (i === j ? 1 / d[i]! : 0) - (u[i]! * u[j]!) / (d[i]! * d[j]! * (1 + dot));
    expect(nmse(await inverse(device, a, n), exact)).toBeLessThan(1e-12);
    expect(
      nmse(
        await inverseDiagonal(device, a, n),
        exact.filter((_, i) => i % (n + 1) === 0),
      ),
    ).toBeLessThan(1e-12);
    const f = await inverseFactor(device, a, n);
    expect(f.every((value, i) => i % n <= Math.floor(i / n) || Object.is(value, 0))).toBe(true);
    // Some rows of L Lᵀ.
    for (const row of [0, 1, Math.floor(n / 2), n - 1]) {
      const own = f.subarray(row * n, (row + 1) * n);
      const found = Float64Array.from({ length: n }, (_, j) =>
        own.reduce((sum, value, k) => sum + value * f[j * n + k]!, 0),
      );
      expect(nmse(found, exact.subarray(row * n, (row + 1) * n))).toBeLessThan(1e-12);
    }
  });

  test.each([1e2, 1e4, 1e6])('condition number %d: as accurate as plain float32', async (condition) => {
    const n = 200;
    const a = conditioned(n, condition);
    const plain = reference(a, n, single);
    const l = await factor(device, a, n);
    const x = await inverse(device, a, n);
    // Backward error of the factor, residual of the inverse: both within a small factor of the row-by-row float32 loop.
    const backward = (f: ArrayLike<number>) => Math.sqrt(nmse(product(f, f, n, n, n, false, true), a));
    expect(backward(l)).toBeLessThan(2 * backward(plain.l) + 1e-7);
    expect(residual(a, x, n)).toBeLessThan(3 * residual(a, plain.inverse, n));
    const f = await inverseFactor(device, a, n);
    expect(residual(a, product(f, f, n, n, n, false, true), n)).toBeLessThan(3 * residual(a, plain.inverse, n));
  });

  test('a matrix of no rows', async () => {
    for (const op of [inverse, inverseFactor, inverseDiagonal])
      expect((await op(device, new Float32Array(0), 0)).length).toBe(0);
  });

  test.each([
    [1, 0],
    [40, 0],
    [40, 39],
    [300, 5],
    [300, 63],
    [300, 64],
    [300, 191],
    [300, 299],
  ])('not positive definite: n = %i, row %i', async (n, row) => {
    for (const value of [0, -1, Number.NaN, Number.NEGATIVE_INFINITY]) {
      const a = new Float32Array(n * n);
      for (let i = 0; i < n; i++) a[i * n + i] = i === row ? value : 1;
      await expect(factor(device, a, n)).rejects.toMatchObject({
        code: 'NOT_POSITIVE_DEFINITE',
        message: `The matrix [${n}, ${n}] is not positive definite: pivot ${row + 1}`,
      });
      for (const op of [inverseFactor, inverseDiagonal])
        await expect(op(device, a, n)).rejects.toMatchObject({
          code: 'NOT_POSITIVE_DEFINITE',
          message: `The matrix [${n}, ${n}] is not positive definite: pivot ${row + 1}`,
        });
    }
  });

  test('NaN or infinity off the diagonal fails where it is first met', async () => {
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const n = 200;
      const a = wellConditioned(n);
      a[150 * n + 20] = a[20 * n + 150] = value;
      await expect(inverse(device, a, n)).rejects.toMatchObject({ code: 'NOT_POSITIVE_DEFINITE' });
    }
  });

  test('several matrices: each as alone', async () => {
    for (const [count, n] of [
      [1, 5],
      [2, 130],
      [3, 257],
    ] as const) {
      const matrices = Array.from({ length: count }, (_, i) =>
        wellConditioned(n).map((x, at) => x + (at % (n + 1) === 0 ? i : 0)),
      );
      using stream = device.stream();
      using together = stream.upload('float32', [count, n, n], Float32Array.from(matrices.flatMap((a) => [...a])));
      stream.cholesky(together);
      const factors = await stream.read(together);
      stream.choleskyInverse(together);
      const inverses = await stream.read(together);
      for (const [i, a] of matrices.entries()) {
        const part = (all: Floats) => all.slice(i * n * n, (i + 1) * n * n);
        expect(equalBits(part(factors), await factor(device, a, n))).toBe(true);
        expect(equalBits(part(inverses), await inverse(device, a, n))).toBe(true);
      }
    }
  });

  test('several matrices, one of them not positive definite', async () => {
    const n = 100;
    const good = wellConditioned(n);
    using stream = device.stream();
    using together = stream.upload('float32', [2, n, n], Float32Array.from([...good, ...good.map((x) => -x)]));
    stream.cholesky(together);
    await expect(stream.sync()).rejects.toMatchObject({ code: 'NOT_POSITIVE_DEFINITE' });
  });

  test('the stream works on after a failure', async () => {
    using stream = device.stream();
    using a = device.tensor('float32', [70, 70]);
    stream.cholesky(a);
    await expect(stream.sync()).rejects.toMatchObject({ code: 'NOT_POSITIVE_DEFINITE' });
    stream.fill(a, 0);
    stream.addDiagonal(a, 4);
    stream.cholesky(a);
    expect((await stream.read(a)).reduce((sum, x) => sum + x, 0)).toBe(140);
  });
});

test('a GPU keeps a stream’s failure whatever many other streams do meanwhile', async () => {
  const device = devices.cuda;
  using scope = new Scope();
  const first = scope.hold(device.stream());
  first.cholesky(scope.hold(device.tensor('float32', [3, 3])));
  const table = scope.hold(device.tensor('float32', [2, 4]));
  const ids = scope.hold(device.tensor('uint32', [1]));
  const out = scope.hold(device.tensor('float32', [1, 4]));
  const others = Array.from({ length: 1100 }, () => scope.hold(device.stream()));
  for (const stream of others) stream.embedding(table, ids, out);
  await others.at(-1)!.sync();
  await expect(first.sync()).rejects.toMatchObject({ code: 'NOT_POSITIVE_DEFINITE' });
  await Promise.all(others.map((stream) => stream.sync()));
});

describe('cholesky and choleskyInverse', () => {
  test('equal bits for any number of threads, and again', async () => {
    for (const n of [100, 450, 900]) {
      const a = conditioned(n <= 450 ? n : 1, 100);
      const data = n <= 450 ? a : diagonalPlusBand(n);
      const [l, x] = [await factor(devices.cpu, data, n), await inverse(devices.cpu, data, n)];
      const [f, d] = [await inverseFactor(devices.cpu, data, n), await inverseDiagonal(devices.cpu, data, n)];
      for (const threads of [...threadCounts, ...threadCounts]) {
        const on = Device.open('cpu', { threads });
        expect(equalBits(await factor(on, data, n), l)).toBe(true);
        expect(equalBits(await inverse(on, data, n), x)).toBe(true);
        expect(equalBits(await inverseFactor(on, data, n), f)).toBe(true);
        expect(equalBits(await inverseDiagonal(on, data, n), d)).toBe(true);
      }
    }
  });

  test('equal bits in any order of blocks and threads', async () => {
    const n = 300;
    const a = conditioned(n, 100);
    const [l, x] = [await factor(devices.cuda, a, n), await inverse(devices.cuda, a, n)];
    for (const on of cudaOrders()) {
      expect(equalBits(await factor(on, a, n), l)).toBe(true);
      expect(equalBits(await inverse(on, a, n), x)).toBe(true);
    }
  });

  test('what is above the diagonal is neither read by cholesky nor by choleskyInverse', async () => {
    const n = 300;
    const a = wellConditioned(n);
    const [l, x] = [await factor(devices.cuda, a, n), await inverse(devices.cuda, a, n)];
    const filled = (from: Floats) => from.map((value, i) => (i % n > Math.floor(i / n) ? Number.NaN : value));
    expect(equalBits(await factor(devices.cuda, filled(a), n), l)).toBe(true);
    using stream = devices.cuda.stream();
    using tensor = stream.upload('float32', [n, n], filled(l));
    stream.choleskyInverse(tensor);
    expect(equalBits(await stream.read(tensor), x)).toBe(true);
  });

  test.each(['cpu', 'cuda'] as const)('a factor with a zero on its diagonal, on %s', async (name) => {
    for (const row of [0, 40, 140, 299]) {
      const l = new Float32Array(300 * 300).map((_, i) => (i % 301 === 0 && i !== row * 301 ? 1 : 0));
      using stream = devices[name].stream();
      using tensor = stream.upload('float32', [300, 300], l);
      stream.choleskyInverse(tensor);
      await expect(stream.sync()).rejects.toMatchObject({
        code: 'NOT_POSITIVE_DEFINITE',
        message: 'The Cholesky factor has a zero on its diagonal',
      });
    }
  });
});

test('an abort in the middle of a factorisation: ABORTED, and the device goes on', async () => {
  const n = 1536;
  const a = diagonalPlusBand(n);
  for (const threads of [1, 3]) {
    const device = Device.open('cpu', { threads });
    const whole = await inverse(device, a, n);
    for (const delay of [1, 4, 9, 15]) {
      const controller = new AbortController();
      using stream = device.stream({ signal: controller.signal });
      using scope = new Scope();
      const given = scope.hold(stream.upload('float32', [n, n], a));
      const matrix = scope.hold(device.tensor('float32', [n, n]));
      for (let i = 0; i < 500; i++) {
        stream.copy(given, matrix);
        stream.cholesky(matrix);
        stream.choleskyInverse(matrix);
      }
      setTimeout(() => controller.abort(), delay);
      await expect(stream.sync()).rejects.toMatchObject({ code: 'ABORTED' });
      expect(equalBits(await inverse(device, a, n), whole)).toBe(true);
    }
  }
});

/** A diagonally dominant band matrix: quick to make at any size. */
function diagonalPlusBand(n: number): Floats {
  const a = new Float32Array(n * n);
  const values = normal(n, n * 40);
  for (let i = 0; i < n; i++) {
    a[i * n + i] = 100;
    for (let d = 1; d < 40 && i + d < n; d++) a[i * n + i + d] = a[(i + d) * n + i] = values[i * 40 + d]!;
  }
  return a;
}
