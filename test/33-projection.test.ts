import fc from 'fast-check';
import { Device } from '../src/device/device.js';
import { Scope } from '../src/device/tensor.js';
import { normal, opDevice, opDevices, random, threadCounts } from './helpers/numbers.js';
import { groupMask, segmentMask } from './helpers/reference-projection.js';

type Floats = Float32Array<ArrayBuffer>;

async function project(
  device: Device,
  scores: Floats,
  rows: number,
  options: { rowEnds?: number[]; keep?: number[]; kept?: number; group?: number },
): Promise<Uint8Array> {
  const { rowEnds = [rows], kept = 0, group = 0 } = options;
  const keep = options.keep ?? rowEnds.map(() => 0);
  using stream = device.stream();
  using scope = new Scope();
  const shape = [rows, scores.length / rows];
  const from = scope.hold(stream.upload('float32', shape, scores));
  const mask = scope.hold(stream.upload('uint8', shape, new Uint8Array(scores.length).fill(7)));
  stream.project(from, mask, { keep: kept, of: group }, { rowEnds, keep });
  return stream.read(mask);
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
      [32, 64],
    ])('%i of %i', async (kept, group) => {
      for (const make of Object.values(distributions)) {
        const scores = make(3 * 7 * group);
        expect(await project(device, scores, 3, { kept, group })).toEqual(groupMask(scores, kept, group));
      }
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
