import { Device } from '../src/device/device.js';
import { Scope } from '../src/device/tensor.js';
import { pruneLayer } from '../src/pruning/prune-layer.js';
import { nmse, normal, opDevice, product } from './helpers/numbers.js';

// Ops that take float32 factors as sums of two bfloat16 numbers where a GPU gains by it: large products alone, on this device all.
const split = Device.openKernels('cuda:0', 'split');
const plain = opDevice('cuda');

type Floats = Float32Array<ArrayBuffer>;
const n = 150;

/** A Gram matrix with a condition number of some 1e3. */
function gram(): Floats {
  const x = normal(1, 3 * n * n);
  return Float32Array.from(product(x, x, n, n, 3 * n, true), (value, i) => value / n + (i % (n + 1) === 0 ? 0.01 : 0));
}

test('quadratic forms', async () => {
  const [a, s] = [normal(2, 40 * n), gram()];
  const run = async (on: Device) => {
    using stream = on.stream();
    using scope = new Scope();
    const out = scope.hold(on.tensor('float64', [40]));
    stream.quadraticForms(
      scope.hold(stream.upload('float32', [40, n], a)),
      scope.hold(stream.upload('float32', [n, n], s)),
      out,
    );
    return stream.read(out);
  };
  const halves = product(a, s, 40, n, n);
  const exact = Float64Array.from({ length: 40 }, (_, i) => {
    let sum = 0;
    for (let j = 0; j < n; j++) sum += a[i * n + j]! * halves[i * n + j]!;
    return sum;
  });
  const [rough, fine] = [nmse(await run(split), exact), nmse(await run(plain), exact)];
  expect(rough).toBeLessThan(1e-10);
  expect(fine).toBeLessThan(1e-13);
  expect(rough).not.toBe(fine);
});

test('the inverse of a factor', async () => {
  const a = gram();
  const run = async (on: Device) => {
    using stream = on.stream();
    using matrix = stream.upload('float32', [n, n], a);
    stream.cholesky(matrix);
    stream.choleskyInverse(matrix, { split: true });
    return stream.read(matrix);
  };
  const residual = (x: Floats) =>
    nmse(
      product(a, x, n, n, n),
      Float64Array.from(a, (_, i) => (i % (n + 1) === 0 ? 1 : 0)),
    );
  const [rough, fine] = [await run(split), await run(plain)];
  expect(residual(fine)).toBeLessThan(1e-9);
  expect(residual(rough)).toBeLessThan(1e-8);
  expect(rough).not.toEqual(fine);
  for (let i = 0; i < n; i++) for (let j = 0; j < i; j++) expect(rough[i * n + j]).toBe(rough[j * n + i]);
});

test.each([1, 9])('%i iterations of ADMM', async (count) => {
  const [m, keep] = [20, 1000];
  const base = normal(3, m * n);
  // K = I − something small, as for a large ρ: an iteration then keeps most of what there is, and near ties are few.
  const k = gram().map((value, i) => (i % (n + 1) === 0 ? 0.9 : 0) + value / 300);
  const run = async (on: Device) => {
    using stream = on.stream();
    using scope = new Scope();
    const shape: [number, number] = [m, n];
    const tensors = {
      base: scope.hold(stream.upload('float32', shape, base)),
      b: scope.hold(on.tensor('float32', shape)),
      state: scope.hold(on.tensor('float32', shape)),
      mask: scope.hold(on.tensor('uint8', shape)),
      y: scope.hold(on.tensor('float32', shape)),
    };
    const segments = { rowEnds: [m], keep: [keep] };
    stream.project(tensors.base, tensors.mask, { keep: 0, of: 0 }, segments);
    stream.admmStart(tensors.base, tensors.mask, tensors.state, tensors.y);
    const operator = scope.hold(stream.upload('float32', [n, n], k));
    stream.admmIterate(operator, tensors, 1.5, { keep: 0, of: 0 }, segments, count);
    const mask = await stream.read(tensors.mask);
    return { mask, b: await stream.read(tensors.b), state: await stream.read(tensors.state) };
  };
  const [rough, fine] = [await run(split), await run(plain)];
  expect(rough.b).not.toEqual(fine.b);
  expect(rough.mask.filter(Boolean).length).toBe(keep);
  expect(nmse(rough.b, fine.b)).toBeLessThan(1e-7);
  expect(nmse(rough.state, fine.state)).toBeLessThan(1e-7);
});

test('SparseGPT factorises the inverse again: where one direction has half of the variance it needs no larger ridge', async () => {
  const size = 192;
  const x = normal(7, 2 * size * size);
  const direction = normal(8, size);
  const samples = normal(9, 2 * size);
  // Each input unit variance from a direction of its own, and as much from one that all have a part in.
  const data = x.map((value, i) => value + samples[Math.floor(i / size)]! * direction[i % size]!);
  const layer = {
    weight: normal(10, 24 * size),
    shape: [24, size] as const,
    gram: Float32Array.from(product(data, data, size, size, 2 * size, true)),
    sparsity: 0.5,
    method: 'sparsegpt' as const,
    ridge: 3e-4,
  };
  const [rough, fine] = [await pruneLayer({ ...layer, device: split }), await pruneLayer({ ...layer, device: plain })];
  expect(rough.dampingSteps).toBe(0);
  expect(rough.mask).toEqual(fine.mask);
});

test('ALPS by split products: the same error as by float32', async () => {
  const x = normal(11, 3 * n * n);
  const layer = {
    weight: normal(12, 40 * n),
    shape: [40, n] as const,
    gram: Float32Array.from(product(x, x, n, n, 3 * n, true)),
    sparsity: 0.6,
  };
  const [rough, fine] = [await pruneLayer({ ...layer, device: split }), await pruneLayer({ ...layer, device: plain })];
  expect(rough.weight).not.toEqual(fine.weight);
  expect(Math.abs(rough.error / fine.error - 1)).toBeLessThan(2e-3);
});
