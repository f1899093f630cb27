import { Device } from '../src/device/device.js';
import type { Stream } from '../src/device/stream.js';
import { Scope, type Tensor, type TypedArrayOf } from '../src/device/tensor.js';
import {
  cudaBlockSizes,
  cudaOrders,
  fromBf16,
  nmse,
  normal,
  opDevice,
  opDevices,
  product,
  random,
  threadCounts,
  toBf16,
} from './helpers/numbers.js';
import { groupMask, segmentMask } from './helpers/reference-projection.js';

type Floats = Float32Array<ArrayBuffer>;

const [rows, columns] = [37, 131];
const size = rows * columns;
const segments = { rowEnds: [10, 37], keep: [400, 1500] };
const unstructured = { keep: 0, of: 0 };
const relaxation = 1.3;

interface State {
  base: Floats;
  state: Floats;
  mask: Uint8Array<ArrayBuffer>;
  product: Floats;
}

function inputs(length = size): State {
  const next = random(7);
  return {
    base: normal(1, length),
    state: normal(2, length),
    mask: Uint8Array.from({ length }, () => (next() < 0.4 ? 1 : 0)),
    product: normal(3, length).map((x) => 0.3 * x),
  };
}

/** Y = (mask ? S : −S) − B₀ in float64 */
const reflected = (state: ArrayLike<number>, base: ArrayLike<number>, mask: Uint8Array) =>
  Float64Array.from(mask, (kept, i) => (kept ? state[i]! : -state[i]!) - base[i]!);

interface Tensors {
  base: Tensor<'float32'>;
  state: Tensor<'float32'>;
  b: Tensor<'float32'>;
  mask: Tensor<'uint8'>;
  y: Tensor<'float32' | 'bfloat16'>;
}

/** `skip`: the tensors begin so many rows behind the start of their memory, so at any alignment. */
async function run(
  device: Device,
  dtype: 'float32' | 'bfloat16',
  data: State,
  shape: [number, number],
  act: (stream: Stream, tensors: Tensors) => void,
  skip = 0,
) {
  using stream = device.stream();
  using scope = new Scope();
  const hold = <D extends 'float32' | 'bfloat16' | 'uint8'>(type: D, values?: TypedArrayOf<D>) => {
    const [first, columns] = shape;
    const part = scope.hold(scope.hold(device.tensor(type, [first + skip, columns])).rows(skip, first + skip));
    if (values) stream.write(part, values);
    return part;
  };
  const tensors: Tensors = {
    base: hold('float32', data.base),
    state: hold('float32', data.state),
    b: hold('float32', data.product),
    mask: hold('uint8', data.mask),
    y: hold(dtype),
  };
  act(stream, tensors);
  const y = await stream.read(tensors.y);
  return {
    b: await stream.read(tensors.b),
    state: await stream.read(tensors.state),
    mask: await stream.read(tensors.mask),
    y: y instanceof Uint16Array ? fromBf16(y) : y,
  };
}
/** That `out` is what an update makes of `data`. */
function expectUpdate(
  out: Awaited<ReturnType<typeof run>>,
  data: State,
  shape: [number, number],
  pattern: { keep: number; of: number },
  parts: { rowEnds: number[]; keep: number[] },
  bound: number,
  omega = relaxation,
) {
  const b = Float64Array.from(data.base, (x, i) => x + data.product[i]!);
  const state = b.map((x, i) => omega * x + (data.mask[i] ? 1 - omega : 1) * data.state[i]!);
  expect(nmse(out.b, b)).toBeLessThan(bounds.float32);
  expect(nmse(out.state, state)).toBeLessThan(bounds.float32);
  // The mask is that of the rounded scores exactly.
  const mask =
    pattern.of > 0
      ? groupMask(out.state, pattern.keep, pattern.of)
      : segmentMask(out.state, shape[1], parts.rowEnds, parts.keep);
  expect(Buffer.compare(out.mask, mask)).toBe(0);
  expect(nmse(out.y, reflected(state, data.base, mask))).toBeLessThan(bound);
}

const bounds = { float32: 1e-13, bfloat16: 1e-5 };

for (const isa of opDevices())
  for (const dtype of ['float32', 'bfloat16'] as const) {
    const device = opDevice(isa);
    const bound = bounds[dtype];

    describe(`ADMM on ${isa} with Y in ${dtype}`, () => {
      test('start: S is the masked base', async () => {
        const data = inputs();
        const out = await run(device, dtype, data, [rows, columns], (stream, { base, mask, state, y }) =>
          stream.admmStart(base, mask, state, y),
        );
        const state = data.base.map((x, i) => (data.mask[i] ? x : 0));
        expect(out.state).toEqual(state);
        expect(nmse(out.y, reflected(state, data.base, data.mask))).toBeLessThan(bound);
      });

      test.each<[string, { keep: number; of: number }, [number, number]]>([
        ['unstructured, in two segments', unstructured, [rows, columns]],
        ['2 of 4', { keep: 2, of: 4 }, [rows, 132]],
        ['4 of 8', { keep: 4, of: 8 }, [rows, 64]],
        ['1 of 3', { keep: 1, of: 3 }, [rows, 33]],
        ['1 of 2', { keep: 1, of: 2 }, [rows, 34]],
        ['7 of 16', { keep: 7, of: 16 }, [rows, 48]],
        ['20 of 64', { keep: 20, of: 64 }, [rows, 128]],
        ['a single row', unstructured, [1, 257]],
        ['a single column', unstructured, [257, 1]],
        ['one weight', unstructured, [1, 1]],
      ])('update: %s', async (_, pattern, shape) => {
        const length = shape[0] * shape[1];
        const data = inputs(length);
        const parts = shape[0] === rows ? segments : { rowEnds: [shape[0]], keep: [Math.ceil(length / 3)] };
        for (const [skip, relaxation] of [
          [0, 1.3],
          [1, 1],
        ] as const) {
          const out = await run(
            device,
            dtype,
            data,
            shape,
            (stream, { b, base, state, mask, y }) =>
              stream.admmUpdate({ b, base, state, mask, y }, relaxation, pattern, parts),
            skip,
          );
          expectUpdate(out, data, shape, pattern, parts, bound, relaxation);
        }
      });

      test.each<[string, { keep: number; of: number }]>([
        ['unstructured', unstructured],
        ['2 of 4', { keep: 2, of: 4 }],
        ['1 of 3', { keep: 1, of: 3 }],
      ])('iterations have the bits of products and updates one after the other: %s', async (_, pattern) => {
        const [shape, parts] = [[50, 36] as [number, number], { rowEnds: [3, 50], keep: [40, 600] }];
        const data = inputs(50 * 36);
        const samples = normal(5, 50 * 36);
        const gram = product(samples, samples, 36, 36, 50, true).map((x) => x / 100);
        for (const [count, int8] of [0, 1, 3, 9].flatMap((count) => [
          [count, false] as const,
          [count, true] as const,
        ])) {
          if (int8 && dtype === 'float32') continue;
          const results = [];
          for (const together of [true, false])
            results.push(
              await run(device, dtype, data, shape, (stream, { b, base, state, mask, y }) => {
                const f32 = stream.upload('float32', [36, 36], Float32Array.from(gram));
                const operator =
                  dtype === 'float32' ? f32 : stream.upload('bfloat16', [36, 36], toBf16(Float32Array.from(gram)));
                stream.admmStart(base, mask, state, y);
                if (together)
                  stream.admmIterate(operator, { base, b, state, mask, y }, relaxation, pattern, parts, count, int8);
                for (let i = 0; i < count && !together; i++) {
                  if (int8) stream.int8Gemm(y as Tensor<'bfloat16'>, operator as Tensor<'bfloat16'>, b);
                  else stream.gemm(y, operator, b);
                  stream.admmUpdate({ b, base, state, mask, y }, relaxation, pattern, parts);
                }
              }),
            );
          expect(results[0]).toEqual(results[1]);
        }
      });

      test('rescale: S shrinks off the mask only', async () => {
        const data = inputs();
        const out = await run(device, dtype, data, [rows, columns], (stream, { base, state, mask, y }) =>
          stream.admmRescale(base, state, mask, y, 0.7),
        );
        const state = Float64Array.from(data.state, (x, i) => (data.mask[i] ? x : 0.7 * x));
        expect(nmse(out.state, state)).toBeLessThan(bounds.float32);
        expect(nmse(out.y, reflected(state, data.base, data.mask))).toBeLessThan(bound);
      });
    });
  }

test('an update has the same bits for any number of threads, on many tiles', async () => {
  const shape: [number, number] = [300, 1031];
  const data = inputs(shape[0] * shape[1]);
  for (const pattern of [unstructured, { keep: 1, of: 1031 }]) {
    const results = [];
    for (const threads of threadCounts) {
      const parts = { rowEnds: [300], keep: [100_000] };
      const device = Device.open('cpu', { threads });
      results.push(
        await run(device, 'float32', data, shape, (stream, { b, base, state, mask, y }) =>
          stream.admmUpdate({ b, base, state, mask, y }, relaxation, pattern, parts),
        ),
      );
    }
    for (const result of results) expect(result).toEqual(results[0]);
    const kept = results[0]!.mask.reduce((total, value) => total + value, 0);
    expect(kept).toBe(pattern.of === 0 ? 100_000 : 300);
  }
});

describe.each(['float32', 'bfloat16'] as const)('large updates on cuda with Y in %s', (dtype) => {
  // More than 2^16 weights: the selection goes by a sample of the new state.
  const shape: [number, number] = [233, 331];
  const data = inputs(shape[0] * shape[1]);
  const parts = { rowEnds: [230, 233], keep: [30_000, 100] };

  test('exact, with equal bits in any order', async () => {
    const results = [];
    for (const [i, device] of cudaOrders().entries())
      for (const skip of i === 0 ? [0, 1] : [0])
        results.push(
          await run(
            device,
            dtype,
            data,
            shape,
            (stream, { b, base, state, mask, y }) =>
              stream.admmUpdate({ b, base, state, mask, y }, relaxation, unstructured, parts),
            skip,
          ),
        );
    expectUpdate(results[0]!, data, shape, unstructured, parts, bounds[dtype]);
    for (const result of results) expect(result).toEqual(results[0]);
  });

  test('the same for any size of blocks', async () => {
    const small = inputs(5 * 264);
    const results = [];
    for (const device of [opDevice('cuda'), ...cudaBlockSizes()])
      results.push(
        await run(device, dtype, small, [5, 264], (stream, { b, base, state, mask, y }) => {
          stream.admmStart(base, mask, state, y);
          stream.admmRescale(base, state, mask, y, 0.9);
          stream.admmUpdate({ b, base, state, mask, y }, relaxation, { keep: 30, of: 66 }, { rowEnds: [5], keep: [0] });
        }),
      );
    for (const result of results) expect(result).toEqual(results[0]);
  });
});
