/** log softmax of a row, in double. */
export function logSoftmax(row: ArrayLike<number>): number[] {
  const values = Array.from(row);
  const top = values.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const logSum = top + Math.log(values.reduce((sum, x) => sum + Math.exp(x - top), 0));
  return values.map((x) => x - logSum);
}
