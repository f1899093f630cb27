import { Device } from '../src/device/device.js';
import { Scope } from '../src/device/tensor.js';
import { fromBf16, nmse, normal, opDevice, opDevices, random, threadCounts } from './helpers/numbers.js';
import { groupMask, segmentMask } from './helpers/reference-projection.js';

type Floats = Float32Array<ArrayBuffer>;

const [rows, columns] = [37, 131];
const size = rows * columns;
const segments = { rowEnds: [10, 37], keep: [400, 1500] };
const unstructured = { keep: 0, of: 0 };

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

async function run(
  device: Device,
  dtype: 'float32' | 'bfloat16',
  data: State,
  shape: [number, number],
  act: (
    stream: ReturnType<Device['stream']>,
    t: Record<'base' | 'state' | 'b', ReturnType<typeof hold>> & {
      mask: ReturnType<typeof holdMask>;
      y: ReturnType<typeof holdY>;
    },
  ) => void,
) {
  using stream = device.stream();
  using scope = new Scope();
  const tensors = {
    base: scope.hold(hold(stream, shape, data.base)),
    state: scope.hold(hold(stream, shape, data.state)),
    b: scope.hold(hold(stream, shape, data.product)),
    mask: scope.hold(holdMask(stream, shape, data.mask)),
    y: scope.hold(holdY(device, dtype, shape)),
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
const hold = (stream: ReturnType<Device['stream']>, shape: number[], data: Floats) =>
  stream.upload('float32', shape, data);
const holdMask = (stream: ReturnType<Device['stream']>, shape: number[], data: Uint8Array<ArrayBuffer>) =>
  stream.upload('uint8', shape, data);
const holdY = (device: Device, dtype: 'float32' | 'bfloat16', shape: number[]) => device.tensor(dtype, shape);

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
        ['a single row', unstructured, [1, 257]],
        ['a single column', unstructured, [257, 1]],
        ['one weight', unstructured, [1, 1]],
      ])('update: %s', async (_, pattern, shape) => {
        const length = shape[0] * shape[1];
        const data = inputs(length);
        const parts = shape[0] === rows ? segments : { rowEnds: [shape[0]], keep: [Math.ceil(length / 3)] };
        const out = await run(device, dtype, data, shape, (stream, { b, base, state, mask, y }) =>
          stream.admmUpdate(b, base, state, mask, y, pattern, parts),
        );
        const b = Float64Array.from(data.base, (x, i) => x + data.product[i]!);
        const state = b.map((x, i) => x + (data.mask[i] ? 0 : data.state[i]!));
        expect(nmse(out.b, b)).toBeLessThan(bounds.float32);
        expect(nmse(out.state, state)).toBeLessThan(bounds.float32);
        // The mask is that of the rounded scores exactly.
        const mask =
          pattern.of > 0
            ? groupMask(out.state, pattern.keep, pattern.of)
            : segmentMask(out.state, shape[1], parts.rowEnds, parts.keep);
        expect(out.mask).toEqual(mask);
        expect(nmse(out.y, reflected(state, data.base, mask))).toBeLessThan(bound);
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
          stream.admmUpdate(b, base, state, mask, y, pattern, parts),
        ),
      );
    }
    for (const result of results) expect(result).toEqual(results[0]);
    const kept = results[0]!.mask.reduce((total, value) => total + value, 0);
    expect(kept).toBe(pattern.of === 0 ? 100_000 : 300);
  }
});
