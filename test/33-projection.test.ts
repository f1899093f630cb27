import fc from 'fast-check';
import { Device } from '../src/device/device.js';
import { Scope } from '../src/device/tensor.js';
import { cudaOrders, normal, opDevice, opDevices, random, threadCounts } from './helpers/numbers.js';
import { groupMask, segmentMask } from './helpers/reference-projection.js';

type Floats = Float32Array<ArrayBuffer>;

/** `skip`: the matrices begin so many rows behind the start of their memory, so at any alignment. */
async function project(
  device: Device,
  scores: Floats,
  rows: number,
  options: { rowEnds?: number[]; keep?: number[]; kept?: number; group?: number; skip?: number },
): Promise<Uint8Array> {
  const { rowEnds = [rows], kept = 0, group = 0, skip = 0 } = options;
  const keep = options.keep ?? rowEnds.map(() => 0);
  using stream = device.stream();
  using scope = new Scope();
  const shape = [rows + skip, scores.length / rows];
  const from = scope.hold(scope.hold(device.tensor('float32', shape)).rows(skip, rows + skip));
  const mask = scope.hold(scope.hold(device.tensor('uint8', shape)).rows(skip, rows + skip));
  stream.write(from, scores);
  stream.write(mask, new Uint8Array(scores.length).fill(7));
  stream.project(from, mask, { keep: kept, of: group }, { rowEnds, keep });
  return stream.read(mask);
}

/** Where the kernels take their sample of a single segment from: the first elements of quads (native/cuda/select.h). */
function sampledQuads(length: number): number[] {
  const quads = 1024 * Math.min(Math.max(Math.floor(length / (64 * 1024)), 1), 4);
  const stratum = Math.floor(length / quads);
  return Array.from({ length: quads }, (_, i) => {
    const hash = BigInt.asUintN(64, (BigInt(i) + 1n) * 0x9e3779b97f4a7c15n) >> 32n;
    return (i * stratum + Number(hash % BigInt(stratum - 3))) & ~3;
  });
}

/** Ways in which magnitudes may lie: each one breaks some shortcut of a selection. */
const distributions: Record<string, (length: number) => Floats> = {
  normal: (length) => normal(1, length),
  'all equal': (length) => new Float32Array(length).fill(-3),
  'all zero, of both signs': (length) => Float32Array.from({ length }, (_, i) => (i % 2 ? 0 : -0)),
  subnormal: (length) => normal(2, length).map((x) => x * 1e-40),
  'few values': (length) => normal(3, length).map((x) => Math.round(x)),
  'mostly zero': (length) => normal(4, length).map((x) => (Math.abs(x) > 2 ? x : 0)),
  'many magnitudes': (length) => normal(5, length).map((x, i) => x * 10 ** ((i % 70) - 35)),
  ascending: (length) => Float32Array.from({ length }, (_, i) => i + 1),
  descending: (length) => Float32Array.from({ length }, (_, i) => length - i),
  'one large column': (length) => normal(6, length).map((x, i) => (i % 64 === 5 ? 1e4 * x : x)),
  'next to each other': (length) => Float32Array.from({ length }, (_, i) => 1 + ((i * 7919) % length) * 2 ** -23),
  'the largest finite': (length) => normal(7, length).map((x) => Math.sign(x) * (Math.abs(x) > 1 ? 3.4028235e38 : 1)),
};

for (const isa of opDevices()) {
  const device = opDevice(isa);

  describe(`project on ${isa}: a sort in float64 gives the same mask`, () => {
    test.each(Object.keys(distributions))('%s', async (name) => {
      for (const [rows, columns] of [
        [1, 1],
        [1, 97],
        [97, 1],
        [13, 61],
        [24, 640],
      ] as const) {
        const scores = distributions[name]!(rows * columns);
        for (const share of [0, 0.03, 0.5, 0.9, 1]) {
          const keep = [Math.round(share * scores.length)];
          const mask = await project(device, scores, rows, { keep });
          expect(mask).toEqual(segmentMask(scores, columns, [rows], keep));
        }
      }
    });

    test('every number of kept weights of a small matrix', async () => {
      const scores = normal(9, 63).map((x) => Math.round(4 * x) / 4);
      for (let keep = 0; keep <= scores.length; keep++)
        expect(await project(device, scores, 7, { keep: [keep] })).toEqual(segmentMask(scores, 9, [7], [keep]));
    });

    test('segments have their own budgets', async () => {
      const scores = normal(10, 50 * 33);
      const rowEnds = [1, 20, 20, 50];
      const keep = [33, 100, 0, 700];
      const mask = await project(device, scores, 50, { rowEnds, keep });
      expect(mask).toEqual(segmentMask(scores, 33, rowEnds, keep));
    });

    test.each([
      [2, 4],
      [4, 8],
      [1, 4],
      [1, 2],
      [3, 5],
      [1, 1],
      [7, 16],
      [0, 4],
      [4, 4],
      [20, 32],
      [32, 64],
    ])('%i of %i', async (kept, group) => {
      for (const make of Object.values(distributions)) {
        const scores = make(3 * 7 * group);
        for (const skip of [0, 1])
          expect(await project(device, scores, 3, { kept, group, skip })).toEqual(groupMask(scores, kept, group));
      }
    });

    test('more segments than one launch takes, some of them empty, none or all of others kept', async () => {
      const scores = normal(11, 140 * 23);
      const rowEnds = Array.from({ length: 90 }, (_, s) => (s === 89 ? 140 : s - (s % 3)));
      const keep = rowEnds.map((end, s) => {
        const size = 23 * (end - (rowEnds[s - 1] ?? 0));
        return [size, 0, Math.floor(size / 2), Math.min(1, size)][s % 4]!;
      });
      for (const skip of [0, 1])
        expect(await project(device, scores, 140, { rowEnds, keep, skip })).toEqual(
          segmentMask(scores, 23, rowEnds, keep),
        );
    });

    test('any scores', async () => {
      const cases = fc.tuple(
        fc.array(fc.oneof(fc.constantFrom(0, -0, 1, -1), fc.float({ noNaN: true, noDefaultInfinity: true })), {
          minLength: 1,
          maxLength: 300,
        }),
        fc.double({ min: 0, max: 1, noNaN: true }),
      );
      await fc.assert(
        fc.asyncProperty(cases, async ([list, share]) => {
          const scores = Float32Array.from(list);
          const keep = [Math.floor(share * scores.length)];
          expect(await project(device, scores, 1, { keep })).toEqual(segmentMask(scores, scores.length, [1], keep));
        }),
        { numRuns: 50 },
      );
    });

    test('counts what differs, by segment, and takes the mask over', async () => {
      const [rows, columns] = [40, 67];
      const next = random(3);
      const make = () => Uint8Array.from({ length: rows * columns }, () => (next() < 0.5 ? 1 : 0));
      const [now, before] = [make(), make()];
      using stream = device.stream();
      using scope = new Scope();
      const mask = scope.hold(stream.upload('uint8', [rows, columns], now));
      const previous = scope.hold(stream.upload('uint8', [rows, columns], before));
      const counts = scope.hold(device.tensor('uint32', [2]));
      stream.maskChanges(mask, previous, { rowEnds: [3, 40], keep: [0, 0] }, counts);
      const differs = now.map((value, i) => (value === before[i] ? 0 : 1));
      const sum = (part: Uint8Array) => part.reduce((total, value) => total + value, 0);
      const cut = 3 * columns;
      expect([...(await stream.read(counts))]).toEqual([sum(differs.subarray(0, cut)), sum(differs.subarray(cut))]);
      expect(await stream.read(previous)).toEqual(now);
    });

    test('counts what differs in masks at any alignment, in more segments than one launch takes', async () => {
      const [rows, columns] = [499, 301];
      const size = rows * columns;
      const next = random(4);
      const now = Uint8Array.from({ length: size }, () => (next() < 0.5 ? 1 : 0));
      const before = now.map((value) => (next() < 0.01 ? 1 - value : value));
      const rowEnds = Array.from({ length: 70 }, (_, s) => (s === 69 ? rows : 2 * s));
      const expected = rowEnds.map((end, s) => {
        let total = 0;
        for (let i = (rowEnds[s - 1] ?? 0) * columns; i < end * columns; i++) total += now[i] === before[i] ? 0 : 1;
        return total;
      });
      using stream = device.stream();
      using scope = new Scope();
      const counts = scope.hold(device.tensor('uint32', [70]));
      for (const [skipped, skippedBefore] of [
        [0, 0],
        [1, 1],
        [1, 2],
      ] as const) {
        const held = (data: Uint8Array<ArrayBuffer>, skip: number) => {
          const whole = scope.hold(device.tensor('uint8', [rows + skip, columns]));
          const part = scope.hold(whole.rows(skip, rows + skip));
          stream.write(part, data);
          return part;
        };
        const [mask, previous] = [held(now, skipped), held(before, skippedBefore)];
        stream.maskChanges(mask, previous, { rowEnds, keep: rowEnds.map(() => 0) }, counts);
        expect([...(await stream.read(counts))]).toEqual(expected);
        expect(await stream.read(previous)).toEqual(now);
      }
    });

    test.each([1, 5, 509, 2046, 16_383, 17_001])('rows of %i have budgets of their own', async (columns) => {
      const rows = columns > 10_000 ? 2 : 5;
      for (const scores of [distributions.normal!(rows * columns), distributions['few values']!(rows * columns)]) {
        for (const keep of columns > 10_000 ? [5000] : [0, 1, Math.floor(columns / 3), columns]) {
          using stream = device.stream();
          using scope = new Scope();
          const from = scope.hold(stream.upload('float32', [rows, columns], scores));
          const mask = scope.hold(stream.upload('uint8', [rows, columns], new Uint8Array(scores.length).fill(7)));
          stream.projectRows(from, mask, keep);
          expect(Buffer.compare(await stream.read(mask), groupMask(scores, keep, columns))).toBe(0);
        }
      }
    });
  });
}

test('a large matrix has exactly as many kept weights as asked, the same for any number of threads', async () => {
  const [rows, columns] = [700, 1531];
  const scores = normal(20, rows * columns).map((x) => Math.fround(Math.round(x * 500) / 500)); // with many ties
  for (const keep of [1, 12_345, 535_850, rows * columns - 1]) {
    const masks = await Promise.all(
      threadCounts.map((threads) => project(Device.open('cpu', { threads }), scores, rows, { keep: [keep] })),
    );
    expect(masks[0]!.reduce((total, value) => total + value, 0)).toBe(keep);
    for (const mask of masks) expect(Buffer.compare(mask, masks[0]!)).toBe(0);
    const [kept, dropped] = [1, 0].map((bit) => scores.filter((_, i) => masks[0]![i] === bit).map(Math.abs));
    const least = kept!.reduce((a, b) => Math.min(a, b));
    expect(dropped!.every((value) => value <= least)).toBe(true);
    // Among those equal to the threshold, the first ones are kept.
    const ties = [...scores.keys()].filter((i) => Math.abs(scores[i]!) === least);
    const bits = ties.map((i) => masks[0]![i]!);
    expect(bits).toEqual([...bits].sort((a, b) => b - a));
  }
});

describe('large segments: a sample, a window around the threshold, and what follows when it was wrong', () => {
  const [rows, columns] = [233, 331]; // more than 2^16 weights
  const size = rows * columns;
  const half = size >> 1;
  /** Every sampled element has one value, the others another. */
  const misled = (sampled: (i: number) => number, other: (i: number) => number) => {
    const scores = Float32Array.from({ length: size }, (_, i) => other(i));
    for (const at of sampledQuads(size)) for (let i = at; i < at + 4; i++) scores[i] = sampled(i);
    return scores;
  };
  const gauss = normal(30, size);
  const cases: [string, Floats, number[]][] = [
    ['the window holds the threshold', gauss, [half, 1, size - 3, 0, size]],
    ['a few neighbours are equal', gauss.map((x) => Math.round(x * 5000)), [half, half + 1, half + 2]],
    ['many neighbours are equal', gauss.map((x) => Math.round(x * 3)), [1, half]],
    ['all are equal', gauss.map(() => -2), [1, half]],
    ['all are zero', gauss.map((_, i) => (i % 2 ? 0 : -0)), [1, half]],
    ['most are zero', gauss.map((x) => (Math.abs(x) > 2 ? x : 0)), [half]],
    [
      'the threshold lies above the window',
      misled(
        () => 0,
        (i) => gauss[i]!,
      ),
      [100, half],
    ],
    [
      'the threshold lies below the window',
      misled(
        (i) => 1e9 * (2 + gauss[i]!),
        (i) => gauss[i]!,
      ),
      [half, size - 9000],
    ],
    [
      'more lie in the window than are collected',
      misled(
        (i) => gauss[i]!,
        (i) => 0.6745 * (1 + ((i * 7919) % size) * 2 ** -22),
      ),
      [half],
    ],
    ['NaN ranks above infinity', gauss.map((x, i) => (i % 50 ? x : i % 100 ? Number.NaN : Infinity)), [half]],
  ];

  test.each(cases)('%s', async (name, scores, keeps) => {
    const order = name.startsWith('NaN')
      ? scores.map((x) => (Number.isNaN(x) ? Infinity : x === Infinity ? 3e38 : x))
      : scores;
    const devices = cudaOrders();
    for (const [i, keep] of keeps.entries()) {
      const expected = segmentMask(order, columns, [rows], [keep]);
      for (const skip of i === 0 ? [0, 1] : [0]) {
        const mask = await project(devices[i % 3]!, scores, rows, { keep: [keep], skip });
        expect(Buffer.compare(mask, expected)).toBe(0);
      }
    }
  });

  test('segments large and small side by side', async () => {
    const scores = normal(31, 500 * columns);
    const rowEnds = [3, 240, 241, 500];
    const keep = [500, 30_000, 0, 70_000];
    const expected = segmentMask(scores, columns, rowEnds, keep);
    for (const device of cudaOrders())
      expect(Buffer.compare(await project(device, scores, 500, { rowEnds, keep }), expected)).toBe(0);
  });

  test('more than 2^18 weights', async () => {
    const scores = normal(32, 640 * 512);
    const expected = segmentMask(scores, 512, [640], [100_000]);
    expect(Buffer.compare(await project(opDevice('cuda'), scores, 640, { keep: [100_000] }), expected)).toBe(0);
  });
});
