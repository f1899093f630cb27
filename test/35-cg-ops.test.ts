import { Device } from '../src/device/device.js';
import { Scope, type TypedArrayOf } from '../src/device/tensor.js';
import { iterationsIn, rowPieces } from '../src/pruning/refine.js';
import { cudaOrders, nmse, normal, opDevice, opDevices, product, random, threadCounts } from './helpers/numbers.js';

type Floats = Float32Array<ArrayBuffer>;

interface Problem {
  rows: number;
  columns: number;
  gram: Floats;
  target: Floats;
  mask: Uint8Array<ArrayBuffer>;
}

function problem(rows: number, columns: number, share = 0.4): Problem {
  const samples = 2 * columns + 3;
  const x = normal(columns, samples * columns);
  const gram = Float32Array.from(product(x, x, columns, columns, samples, true), (v) => v / samples);
  const next = random(rows + columns);
  const mask = Uint8Array.from({ length: rows * columns }, () => (next() < share ? 1 : 0));
  return { rows, columns, gram, target: normal(rows, rows * columns), mask };
}

/** A problem whose first rows end soon: 0 has no unknown, 1 starts at its end, 2 has one unknown and so one step. */
function endingSoon(rows: number, columns: number): Problem {
  const p = problem(rows, columns);
  p.mask.fill(0, 0, columns);
  p.target.fill(0, columns, 2 * columns);
  p.mask.fill(0, 2 * columns, 3 * columns);
  p.mask[2 * columns + 20] = 1;
  return p;
}

/** `steps` CG steps on min |…| with H = gram, right side target·H, support mask, all rows at once; from x = 0. */
async function solve(device: Device, { rows, columns, gram, target, mask }: Problem, steps: number, tolerance = 0) {
  using stream = device.stream();
  using scope = new Scope();
  const shape = [rows, columns];
  const h = scope.hold(stream.upload('float32', [columns, columns], gram));
  const t = scope.hold(stream.upload('float32', shape, target));
  const support = scope.hold(stream.upload('uint8', shape, mask));
  const x = scope.hold(device.tensor('float32', shape));
  const residual = scope.hold(device.tensor('float32', shape));
  const direction = scope.hold(device.tensor('float32', shape));
  const q = scope.hold(device.tensor('float32', shape));
  const rr = scope.hold(device.tensor('float64', [rows]));
  const rr0 = scope.hold(device.tensor('float64', [rows]));
  const active = scope.hold(device.tensor('uint32', [1]));
  stream.gemm(t, h, residual);
  stream.cgStart(residual, support, direction, rr, rr0);
  const trace: { active: number; rr: Float64Array; x: Floats }[] = [];
  for (let step = 0; step < steps; step++) {
    stream.gemm(direction, h, q);
    stream.cgStep(q, support, x, residual, direction, rr, rr0, tolerance, active);
    trace.push({ active: (await stream.read(active))[0]!, rr: await stream.read(rr), x: await stream.read(x) });
  }
  return {
    trace,
    x: await stream.read(x),
    residual: await stream.read(residual),
    direction: await stream.read(direction),
    rr0: await stream.read(rr0),
  };
}

/** The same by the op that takes each row on its own. `start`: x before the steps, zero off the mask. */
async function solveOnSupports(
  device: Device,
  { rows, columns, gram, target, mask }: Problem,
  steps: number,
  { tolerance = 0, start = new Float32Array(rows * columns) } = {},
) {
  using stream = device.stream();
  using scope = new Scope();
  const shape = [rows, columns];
  const h = scope.hold(stream.upload('float32', [columns, columns], gram));
  const rest = Float32Array.from(target, (value, i) => value - start[i]!);
  const t = scope.hold(stream.upload('float32', shape, rest));
  const support = scope.hold(stream.upload('uint8', shape, mask));
  const x = scope.hold(stream.upload('float32', shape, start));
  const residual = scope.hold(device.empty('float32', shape));
  const active = scope.hold(device.empty('uint32', [steps]));
  stream.gemm(t, h, residual);
  const kept = mask.reduce((sum, bit) => sum + bit, 0);
  stream.cgOnSupport(h, support, x, residual, { tolerance, kept }, active);
  return { x: await stream.read(x), active: [...(await stream.read(active))] };
}

/** The same in float64, row by row, as the textbook has it. */
function reference({ rows, columns, gram, target, mask }: Problem, steps: number): Float64Array {
  const out = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    const kept = mask.subarray(i * columns, (i + 1) * columns);
    const masked = (v: Float64Array) => v.map((value, j) => (kept[j] ? value : 0));
    const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, value, j) => sum + value * b[j]!, 0);
    const times = (v: Float64Array) => product(v, gram, 1, columns, columns);
    let r = masked(times(Float64Array.from(target.subarray(i * columns, (i + 1) * columns))));
    let p = r;
    let x = new Float64Array(columns);
    let rr = dot(r, r);
    const end = 1e-28 * rr;
    for (let step = 0; step < steps && rr > end; step++) {
      const q = masked(times(p));
      const alpha = rr / dot(p, q);
      x = x.map((value, j) => value + alpha * p[j]!);
      r = r.map((value, j) => value - alpha * q[j]!);
      const next = dot(r, r);
      p = r.map((value, j) => value + (next / rr) * p[j]!);
      rr = next;
    }
    out.set(x, i * columns);
  }
  return out;
}

/** ½ tr (x − t) H (x − t)ᵀ in float64 */
function objective({ rows, columns, gram, target }: Problem, x: ArrayLike<number>): number {
  const d = Float64Array.from(target, (value, i) => x[i]! - value);
  const dh = product(d, gram, rows, columns, columns);
  return d.reduce((sum, value, i) => sum + value * dh[i]!, 0) / 2;
}

for (const isa of opDevices()) {
  const device = opDevice(isa);
  describe(`batched conjugate gradient on ${isa}`, () => {
    test.each([
      [1, 1],
      [1, 40],
      [40, 1],
      [17, 61],
      [5, 128],
      [67, 33],
    ])('[%i, %i]: ten steps as in float64', async (rows, columns) => {
      const p = problem(rows, columns);
      const { x, residual, direction } = await solve(device, p, 10);
      // Ten steps on up to 128 unknowns, before float32 residuals have drifted.
      expect(nmse(x, reference(p, 10))).toBeLessThan(1e-8);
      for (const tensor of [x, residual, direction])
        expect(tensor.every((value, i) => p.mask[i] === 1 || value === 0)).toBe(true);
    });

    test('the objective never rises, and the end is the minimum', async () => {
      const p = problem(9, 48);
      const { trace } = await solve(device, p, 60);
      let before = objective(p, new Float64Array(p.target.length));
      const first = before;
      for (const { x } of trace) {
        const now = objective(p, x);
        expect(now).toBeLessThanOrEqual(before + 1e-6 * first);
        before = now;
      }
      const exact = objective(p, reference(p, 200));
      expect(before / exact).toBeLessThan(1 + 1e-6);
    });

    test('rows stop on their own: at their tolerance, without unknowns, with a right side of zero', async () => {
      const p = endingSoon(6, 50);
      const { trace, rr0 } = await solve(device, p, 40, 1e-3);
      expect(trace[0]!.active).toBe(4);
      expect(trace[1]!.active).toBe(3);
      expect(trace.at(-1)!.active).toBe(0);
      trace.at(-1)!.rr.forEach((value, i) => {
        expect(value).toBeLessThanOrEqual(1e-6 * rr0[i]!);
      });
      const [last, end] = [trace.findIndex(({ active }) => active === 0), trace.at(-1)!];
      expect(end.x).toEqual(trace[last]!.x);
      expect(end.x.every(Number.isFinite)).toBe(true);
      expect(end.x.subarray(0, 100).every((value) => value === 0)).toBe(true);
    });
  });
}

for (const isa of opDevices()) {
  const device = opDevice(isa);
  describe(`conjugate gradient on each row's support on ${isa}`, () => {
    test.each([
      [1, 1, 1],
      [1, 40, 0.4],
      [40, 1, 0.4],
      [17, 61, 0.4],
      [5, 128, 0.5],
      [9, 250, 0.05],
      [7, 250, 0.95],
      [3, 259, 1],
    ])('[%i, %i], %d kept: ten steps as in float64', async (rows, columns, share) => {
      const p = problem(rows, columns, share);
      const { x, active } = await solveOnSupports(device, p, 10);
      expect(nmse(x, reference(p, 10))).toBeLessThan(1e-8);
      expect(x.every((value, i) => p.mask[i] === 1 || value === 0)).toBe(true);
      expect(active[0]).toBe(
        Array.from({ length: rows }, (_, i) => p.mask.subarray(i * columns, (i + 1) * columns).includes(1)).filter(
          Boolean,
        ).length,
      );
    });

    (isa === 'cuda' ? test.skip : test)('supports that are not gathered beside some that are', async () => {
      const n = 1500;
      const waves = Array.from({ length: n }, (_, i) => [Math.sin(i), Math.cos(0.3 * i)]);
      const gram = Float32Array.from({ length: n * n }, (_, at) => {
        const [i, j] = [Math.floor(at / n), at % n];
        return (i === j ? 1 : 0) + 0.01 * (waves[i]![0]! * waves[j]![0]! + waves[i]![1]! * waves[j]![1]!);
      });
      const next = random(n);
      const mask = Uint8Array.from({ length: 4 * n }, () => (next() < 0.05 ? 1 : 0));
      const p = { rows: 4, columns: n, gram, target: normal(4, 4 * n), mask };
      p.mask.fill(1, 1500, 3000); // row 1: everything kept
      p.mask.fill(1, 3001, 4449); // row 2: more than is gathered
      const { x } = await solveOnSupports(device, p, 5);
      expect(nmse(x, reference(p, 5))).toBeLessThan(1e-8);
    });

    test('as many rows move in each step, and as far, as side by side; what stands still stays as it was', async () => {
      const p = endingSoon(8, 90);
      const { x, active } = await solveOnSupports(device, p, 40, { tolerance: 1e-3 });
      const { trace } = await solve(device, p, 40, 1e-3);
      expect(active.slice(0, 2)).toEqual([7 - 1, 7 - 2]);
      expect(active.at(-1)).toBe(0);
      const side = trace.map(({ active: count }) => count);
      // A row at the very edge of its tolerance may take a step more or less.
      active.forEach((count, i) => {
        expect(Math.abs(count - side[i]!)).toBeLessThanOrEqual(1);
      });
      expect(nmse(x, trace.at(-1)!.x)).toBeLessThan(1e-5);
      expect(x.subarray(0, 180).every((value) => value === 0)).toBe(true);
    });

    test('goes on from weights that are there, and no step changes nothing', async () => {
      const p = problem(6, 70);
      const start = Float32Array.from(normal(5, 420), (value, i) => (p.mask[i] ? value : 0));
      const exact = reference(p, 200);
      const { x } = await solveOnSupports(device, p, 60, { start });
      expect(nmse(x, exact)).toBeLessThan(1e-6);
      expect((await solveOnSupports(device, p, 0, { start })).x).toEqual(start);
    });

    test('a Gram matrix that is not positive, or not finite, moves nothing', async () => {
      const p = problem(3, 50);
      for (const gram of [p.gram.map((v) => -v), p.gram.map((v, i) => (i % 51 === 0 ? Number.NaN : v))]) {
        const { x, active } = await solveOnSupports(device, { ...p, gram }, 3);
        expect(active).toEqual([0, 0, 0]);
        expect(x.every((value) => value === 0)).toBe(true);
      }
    });
  });
}

/** One step from given vectors, H being a diagonal of positive numbers. `skip`: rows before the tensors in their memory. */
async function step(device: Device, rows: number, columns: number, skip: number, spoil?: (q: Floats) => void) {
  using stream = device.stream();
  using scope = new Scope();
  const length = rows * columns;
  const hold = <D extends 'float32' | 'uint8'>(type: D, values: TypedArrayOf<D>) => {
    const part = scope.hold(scope.hold(device.tensor(type, [rows + skip, columns])).rows(skip, rows + skip));
    stream.write(part, values);
    return part;
  };
  const next = random(columns);
  const mask = Uint8Array.from({ length }, (_, i) => (next() < 0.4 || i % columns < 2 ? 1 : 0));
  const right = normal(1, length);
  const start = normal(2, length);
  const residual = hold('float32', right);
  const direction = hold('float32', new Float32Array(length));
  const support = hold('uint8', mask);
  const x = hold('float32', start);
  const rr = scope.hold(device.tensor('float64', [rows]));
  const rr0 = scope.hold(device.tensor('float64', [rows]));
  const active = scope.hold(device.tensor('uint32', [1]));
  stream.cgStart(residual, support, direction, rr, rr0);
  const first = await stream.read(direction);
  const firstRr = await stream.read(rr);
  const qs = first.map((p, i) => p * (0.5 + (i % 7) / 7) + (mask[i] ? 0 : 3));
  spoil?.(qs);
  stream.cgStep(hold('float32', qs), support, x, residual, direction, rr, rr0, 0, active);
  const out = {
    active: (await stream.read(active))[0],
    x: await stream.read(x),
    residual: await stream.read(residual),
    direction: await stream.read(direction),
    rr: await stream.read(rr),
  };
  return { out, first, firstRr, start, right, mask, qs };
}

for (const isa of opDevices()) {
  test.each([13, 510, 511, 516, 1300, 4100, 16_384, 16_390])(
    `a step on ${isa} as in float64: rows of %i`,
    async (n) => {
      const rows = n > 10_000 ? 2 : 6;
      for (const skip of [0, 1]) {
        const { out, first, firstRr, start, right, mask, qs } = await step(opDevice(isa), rows, n, skip);
        expect(out.active).toBe(rows);
        expect(first).toEqual(right.map((r, i) => (mask[i] ? r : 0)));
        for (let row = 0; row < rows; row++) {
          const part = <A extends Floats | Uint8Array>(a: A) => a.subarray(row * n, (row + 1) * n);
          const [p, q] = [Float64Array.from(part(first)), part(qs)];
          const rr = p.reduce((sum, v) => sum + v * v, 0);
          expect(Math.abs(firstRr[row]! / rr - 1)).toBeLessThan(1e-12);
          const alpha = rr / p.reduce((sum, v, j) => sum + v * q[j]!, 0);
          const x = p.map((v, j) => part(start)[j]! + alpha * v);
          const r = p.map((v, j) => (part(mask)[j] ? v - alpha * q[j]! : 0));
          const next = r.reduce((sum, v) => sum + v * v, 0);
          expect(nmse(part(out.x), x)).toBeLessThan(1e-12);
          expect(nmse(part(out.residual), r)).toBeLessThan(1e-12);
          expect(
            nmse(
              part(out.direction),
              r.map((v, j) => v + (next / rr) * p[j]!),
            ),
          ).toBeLessThan(1e-12);
          expect(Math.abs(out.rr[row]! / next - 1)).toBeLessThan(1e-5);
        }
      }
    },
  );

  test(`on ${isa} rows stand still whose direction does not descend or whose numbers are not finite`, async () => {
    for (const n of [40, 700]) {
      const { out, first, start } = await step(opDevice(isa), 4, n, 0, (q) => {
        for (let j = 0; j < n; j++) q[n + j] = -q[n + j]!;
        q.fill(Number.NaN, 2 * n, 3 * n);
      });
      expect(out.active).toBe(2);
      expect(out.x.subarray(n, 3 * n)).toEqual(start.subarray(n, 3 * n));
      expect(out.direction.subarray(n, 3 * n)).toEqual(first.subarray(n, 3 * n));
      expect(out.x.subarray(0, n)).not.toEqual(start.subarray(0, n));
    }
  });
}

test('rows go to the op in pieces of so many operations, and the iterations of all pieces count', () => {
  expect(rowPieces(10, 3, 12)).toEqual([
    [0, 4],
    [4, 8],
    [8, 10],
  ]);
  expect(rowPieces(3, 100, 12)).toEqual([
    [0, 1],
    [1, 2],
    [2, 3],
  ]);
  expect(rowPieces(5, 0, 12)).toEqual([[0, 5]]);
  expect(iterationsIn(Uint32Array.from([4, 2, 0, 0, 4, 3, 1, 0]), 4)).toBe(3);
  expect(iterationsIn(Uint32Array.from([0, 0]), 2)).toBe(0);
  expect(iterationsIn(new Uint32Array(1_000_000).fill(1, 0, 7), 500_000)).toBe(7);
});

test('pieces give the bits of the whole', async () => {
  const device = Device.open('cpu');
  const p = problem(23, 61);
  const whole = await solveOnSupports(device, p, 6);
  const parts = await Promise.all(
    rowPieces(23, 1, 7).map(([first, end]) => {
      const part = <A extends Floats | Uint8Array>(a: A) => a.slice(first * 61, end * 61) as A;
      return solveOnSupports(device, { ...p, rows: end - first, target: part(p.target), mask: part(p.mask) }, 6);
    }),
  );
  expect(parts.flatMap(({ x }) => [...x])).toEqual([...whole.x]);
  expect(whole.active).toEqual(whole.active.map((_, i) => parts.reduce((sum, { active }) => sum + active[i]!, 0)));
});

test('equal bits on cuda in any order', async () => {
  for (const columns of [61, 1300]) {
    const results = await Promise.all(cudaOrders().map((device) => step(device, 5, columns, 0)));
    for (const result of results) expect(result).toEqual(results[0]);
  }
  const p = problem(5, 61);
  const results = await Promise.all(cudaOrders().map((device) => solveOnSupports(device, p, 4)));
  for (const result of results) expect(result).toEqual(results[0]);
});

test('equal bits for any number of threads', async () => {
  const p = problem(131, 307);
  for (const way of [solve, solveOnSupports]) {
    const results = await Promise.all(threadCounts.map((threads) => way(Device.open('cpu', { threads }), p, 6)));
    for (const result of results) expect(result).toEqual(results[0]);
  }
});
