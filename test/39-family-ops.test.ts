import type { Device } from '../src/device/device.js';
import { Scope, type Tensor } from '../src/device/tensor.js';
import {
  cudaBlockSizes,
  cudaOrders,
  fromBf16,
  nmse,
  normal,
  opDevice,
  opDevices,
  random,
  toBf16,
} from './helpers/numbers.js';

type Floats = Float32Array<ArrayBuffer>;

/** Runs `work` on a device and reads the tensor that it returns. */
async function run(on: string | Device, work: (device: Tools) => Tensor) {
  const device = typeof on === 'string' ? opDevice(on) : on;
  using stream = device.stream();
  using scope = new Scope();
  const tools = {
    stream,
    make: (dtype: 'float32' | 'float64' | 'uint32' | 'bfloat16', ...shape: number[]) =>
      scope.hold(device.tensor(dtype, shape)),
    up: (values: Floats, ...shape: number[]) => scope.hold(stream.upload('float32', shape, values)),
    up16: (values: Floats, ...shape: number[]) => scope.hold(stream.upload('bfloat16', shape, toBf16(values))),
    ids: (values: number[], ...shape: number[]) => scope.hold(stream.upload('uint32', shape, Uint32Array.from(values))),
  };
  return stream.read(work(tools as never));
}
// biome-ignore lint/suspicious/noExplicitAny: tensors of any dtype go in and out
type Tools = any;

const round = (values: Floats) => fromBf16(toBf16(values));
const rows = 5;

describe.each(opDevices())('%s', (isa) => {
  describe.each([1, 7, 64, 577, 4100])('%d columns', (n) => {
    const x = normal(n, rows * n).map((v) => v * 3 + 1);
    const weight = normal(n + 1, n);
    const bias = normal(n + 2, n);

    test.each(['float32', 'bfloat16'] as const)('layerNorm of %s', async (dtype) => {
      const from = dtype === 'float32' ? x : round(x);
      const moments = Array.from({ length: rows }, (_, i) => {
        const row = from.subarray(i * n, i * n + n);
        const mean = row.reduce((sum, v) => sum + v, 0) / n;
        return [mean, Math.sqrt(row.reduce((sum, v) => sum + (v - mean) ** 2, 0) / n + 1e-5)] as const;
      });
      const expected = Float64Array.from(from, (value, i) => {
        const [mean, deviation] = moments[Math.floor(i / n)]!;
        return ((value - mean) / deviation) * weight[i % n]! + bias[i % n]!;
      });
      for (const out of ['float32', 'bfloat16'] as const) {
        const result = await run(isa, ({ stream, make, up, up16 }) => {
          const made = make(out, rows, n);
          const input = dtype === 'float32' ? up(x, rows, n) : up16(x, rows, n);
          stream.layerNorm(input, up(weight, n), up(bias, n), 1e-5, made);
          return made;
        });
        const values = out === 'float32' ? (result as Floats) : fromBf16(result as Uint16Array);
        expect(nmse(values, expected)).toBeLessThan(out === 'float32' ? 1e-11 : 1e-5);
      }
    });

    test('activate: each activation in place', async () => {
      const functions = {
        relu: (v: number) => Math.max(v, 0),
        silu: (v: number) => v / (1 + Math.exp(-v)),
        gelu_tanh: (v: number) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))),
      };
      for (const [name, f] of Object.entries(functions)) {
        const result = await run(isa, ({ stream, up }) => {
          const t = up(x, rows, n);
          stream.activate(t, t, name);
          return t;
        });
        expect(nmse(result, Float64Array.from(x, f))).toBeLessThan(1e-11);
      }
    });

    test('softCap', async () => {
      const result = await run(isa, ({ stream, up }) => {
        const t = up(x, rows, n);
        stream.softCap(t, 2.5);
        return t;
      });
      expect(
        nmse(
          result,
          Float64Array.from(x, (v) => 2.5 * Math.tanh(v / 2.5)),
        ),
      ).toBeLessThan(1e-11);
    });

    test.each(['float32', 'bfloat16'] as const)(
      'differenceSquares of %s: the differences are rounded',
      async (dtype) => {
        const other = x.map((v, i) => Math.fround(0.5 * v + (i % 5) / 8));
        const sums = await run(isa, ({ stream, up, up16, make }) => {
          const out = make('float64', n);
          const upload = dtype === 'float32' ? up : up16;
          for (let time = 0; time < 2; time++)
            stream.differenceSquares(upload(x, rows, n), upload(other, rows, n), out);
          return out;
        });
        const [a, b] = dtype === 'float32' ? [x, other] : [round(x), round(other)];
        const differences = Float32Array.from(a, (v, i) => v - b[i]!);
        const expected = new Float64Array(n);
        for (const [i, v] of (dtype === 'float32' ? differences : round(differences)).entries())
          expected[i % n]! += 2 * v * v;
        expect(nmse(sums, expected)).toBeLessThan(1e-25);
      },
    );

    test('columnSums adds up, transpose turns', async () => {
      for (const squares of [false, true]) {
        const sums = await run(isa, ({ stream, up, up16, make }) => {
          const out = make('float64', n);
          stream.columnSums(up(x, rows, n), out, { squares });
          stream.columnSums(up16(x, rows, n), out, { squares });
          return out;
        });
        const expected = new Float64Array(n);
        for (const values of [x, round(x)])
          for (const [i, v] of values.entries()) expected[i % n]! += squares ? v * v : v;
        expect(nmse(sums, expected)).toBeLessThan(1e-25);
      }
      const turned = await run(isa, ({ stream, up, make }) => {
        const out = make('float32', n, rows);
        stream.transpose(up(x, rows, n), out);
        return out;
      });
      expect(turned).toEqual(x.map((_, i) => x[(i % rows) * n + Math.floor(i / rows)]!));
    });
  });

  test('topExperts: the largest, ties to the lower id, softmax over all or over the chosen', async () => {
    const logits = Float32Array.from([1, 3, 3, 0, -1, 5, 5, 5]);
    const weights = (normalise: boolean) =>
      run(isa, ({ stream, up, make }) => {
        const out = make('float32', 2, 2);
        stream.topExperts(up(logits, 2, 4), make('uint32', 2, 2), out, normalise);
        return out;
      });
    const ids = await run(isa, ({ stream, up, make }) => {
      const out = make('uint32', 2, 2);
      stream.topExperts(up(logits, 2, 4), out, make('float32', 2, 2), true);
      return out;
    });
    expect(Array.from(ids)).toEqual([1, 2, 1, 2]);
    expect(Array.from(await weights(true))).toEqual([0.5, 0.5, 0.5, 0.5]);
    const total = Math.exp(1) + 2 * Math.exp(3) + 1;
    expect((await weights(false))[0]).toBeCloseTo(Math.exp(3) / total, 6);
  });

  test.each([
    [1, 1],
    [8, 8],
    [33, 5],
    [300, 40],
  ])('topExperts of %i experts, %i of them: as a stable sort', async (experts, k) => {
    const next = random(6);
    // Few values, so that there are ties; −0 and 0 are one.
    const logits = Float32Array.from({ length: 9 * experts }, () => [-1, -0, 0, 0.5, 2][Math.floor(next() * 5)]!);
    for (const normalise of [false, true]) {
      const read = (which: 'ids' | 'weights') =>
        run(isa, ({ stream, up, make }) => {
          const out = { ids: make('uint32', 9, k), weights: make('float32', 9, k) };
          stream.topExperts(up(logits, 9, experts), out.ids, out.weights, normalise);
          return out[which];
        });
      const order = Array.from({ length: 9 }, (_, t) => {
        const row = Array.from(logits.subarray(t * experts, (t + 1) * experts));
        return {
          row,
          chosen: row
            .map((_, j) => j)
            .sort((a, b) => row[b]! - row[a]! || a - b)
            .slice(0, k),
        };
      });
      expect(Array.from(await read('ids'))).toEqual(order.flatMap(({ chosen }) => chosen));
      const expected = order.flatMap(({ row, chosen }) => {
        const total = (normalise ? chosen.map((e) => row[e]!) : row).reduce((sum, v) => sum + Math.exp(v), 0);
        return chosen.map((e) => Math.exp(row[e]!) / total);
      });
      expect(nmse(await read('weights'), expected)).toBeLessThan(1e-14);
    }
  });

  test.each([
    [64, 0],
    [64, 1],
    [20, 0],
  ])('rows of %i bfloat16, from row %i of a longer tensor: gathered, added', async (n, start) => {
    const x = normal(9, 6 * n);
    const y = normal(10, 3 * n);
    const gathered = await run(isa, ({ stream, up16, ids, make }) => {
      const out = make('bfloat16', 3, n);
      stream.gatherRows(up16(x, 6, n).rows(start, 6), ids([4, 0, 4], 3), out);
      return out;
    });
    const taken = [4, 0, 4].flatMap((i) => Array.from(x.subarray((start + i) * n, (start + i + 1) * n)));
    expect(gathered).toEqual(toBf16(taken));
    const added = await run(isa, ({ stream, up, up16, ids }) => {
      const out = up(x, 6, n);
      const rows = up16(y, 3, n).rows(start, 3);
      stream.scatterAddRows(rows, ids([1, 3, 5].slice(start), 3 - start), up(x.slice(0, 3 - start), 3 - start), out);
      return out;
    });
    const [expected, rounded] = [Float64Array.from(x), round(y)];
    [1, 3, 5].slice(start).forEach((row, i) => {
      for (let j = 0; j < n; j++) expected[row * n + j]! += x[i]! * rounded[(start + i) * n + j]!;
    });
    expect(nmse(added, expected)).toBeLessThan(1e-13);
  });

  test('gatherRows and scatterAddRows', async () => {
    const x = normal(9, 6 * 33);
    const y = normal(10, 2 * 33);
    const gathered = await run(isa, ({ stream, up, ids, make }) => {
      const out = make('float32', 3, 33);
      stream.gatherRows(up(x, 6, 33), ids([4, 0, 4], 3), out);
      return out;
    });
    expect(gathered).toEqual(Float32Array.from([4, 0, 4].flatMap((i) => Array.from(x.subarray(i * 33, i * 33 + 33)))));
    const added = await run(isa, ({ stream, up, ids }) => {
      const out = up(x, 6, 33);
      stream.scatterAddRows(up(y, 2, 33), ids([1, 5], 2), up(Float32Array.from([0.5, -2]), 2), out);
      return out;
    });
    const expected = Float64Array.from(x);
    for (let j = 0; j < 33; j++) {
      expected[33 + j]! += 0.5 * y[j]!;
      expected[5 * 33 + j]! -= 2 * y[33 + j]!;
    }
    expect(nmse(added, expected)).toBeLessThan(1e-13);
    await expect(
      run(isa, ({ stream, up, ids, make }) => {
        const out = make('float32', 1, 33);
        stream.gatherRows(up(x, 6, 33), ids([6], 1), out);
        return out;
      }),
    ).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: 'Expected row ids below 6 but received 6' });
  });

  test('projectRows: exact, ties to the lowest index', async () => {
    const next = random(5);
    const scores = Float32Array.from({ length: 7 * 50 }, () => Math.floor(next() * 9) - 4);
    for (const keep of [0, 1, 20, 49, 50]) {
      const device = opDevice(isa);
      using stream = device.stream();
      using t = stream.upload('float32', [7, 50], scores);
      using mask = device.tensor('uint8', [7, 50]);
      stream.projectRows(t, mask, keep);
      const expected = Array.from({ length: 7 }, (_, i) => {
        const row = Array.from(scores.subarray(i * 50, i * 50 + 50), Math.abs);
        const order = row.map((_, j) => j).sort((a, b) => row[b]! - row[a]! || a - b);
        const chosen = new Set(order.slice(0, keep));
        return row.map((_, j) => (chosen.has(j) ? 1 : 0));
      });
      expect(Array.from(await stream.read(mask))).toEqual(expected.flat());
    }
  });
});

test('CUDA kernels give equal bits in any order of blocks and threads, and with blocks of any size', async () => {
  const works: ((tools: Tools) => Tensor)[] = [
    ({ stream, up, make }) => {
      const out = make('float32', 41, 5);
      stream.topExperts(up(normal(1, 41 * 70), 41, 70), make('uint32', 41, 5), out, false);
      return out;
    },
    ({ stream, up, make }) => {
      const out = make('float64', 70);
      stream.columnSums(up(normal(2, 333 * 70), 333, 70), out);
      return out;
    },
    ({ stream, up, ids }) => {
      const out = up(normal(3, 60 * 48), 60, 48);
      const rows = Array.from({ length: 50 }, (_, i) => i + 3);
      stream.scatterAddRows(up(normal(4, 50 * 48), 50, 48), ids(rows, 50), up(normal(5, 50), 50), out);
      return out;
    },
  ];
  for (const work of works) {
    const first = await run('cuda', work);
    for (const device of [...cudaOrders(), ...cudaBlockSizes()]) expect(await run(device, work)).toEqual(first);
  }
});
