/** Top-k projection by sorting, ties to the lowest index. Slow, for tests only. */

const better = (scores: ArrayLike<number>) => (i: number, j: number) =>
  Math.abs(scores[j]!) - Math.abs(scores[i]!) || i - j;

/** 1 for the `keep` largest magnitudes of [begin, end). */
export function topMask(scores: ArrayLike<number>, begin: number, end: number, keep: number, mask: Uint8Array): void {
  const order = Array.from({ length: end - begin }, (_, i) => begin + i).sort(better(scores));
  mask.fill(0, begin, end);
  for (const i of order.slice(0, keep)) mask[i] = 1;
}

/** The mask of segments of rows, each with its own number of kept weights. */
export function segmentMask(scores: ArrayLike<number>, columns: number, rowEnds: number[], keep: number[]): Uint8Array {
  const mask = new Uint8Array(scores.length);
  let begin = 0;
  for (const [s, end] of rowEnds.entries()) {
    topMask(scores, begin * columns, end * columns, keep[s]!, mask);
    begin = end;
  }
  return mask;
}

/** The mask that keeps `kept` of each `group` neighbours. */
export function groupMask(scores: ArrayLike<number>, kept: number, group: number): Uint8Array {
  const mask = new Uint8Array(scores.length);
  for (let begin = 0; begin < scores.length; begin += group) topMask(scores, begin, begin + group, kept, mask);
  return mask;
}
