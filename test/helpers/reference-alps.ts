/** ALPS in float64 as the paper writes it: B, D and V as three matrices, the inverse per ρ. Slow, for tests only. */

type Matrix = Float64Array;

/** The inverse of a symmetric positive definite matrix, by Gauss-Jordan elimination. */
export function inverse(a: ArrayLike<number>, n: number): Matrix {
  const left = Float64Array.from(a);
  const right = new Float64Array(n * n);
  for (let i = 0; i < n; i++) right[i * n + i] = 1;
  for (let column = 0; column < n; column++) {
    let pivot = column;
    for (let i = column + 1; i < n; i++)
      if (Math.abs(left[i * n + column]!) > Math.abs(left[pivot * n + column]!)) pivot = i;
    for (const m of [left, right]) {
      for (let j = 0; j < n; j++) {
        const swap = m[column * n + j]!;
        m[column * n + j] = m[pivot * n + j]!;
        m[pivot * n + j] = swap;
      }
    }
    const scale = 1 / left[column * n + column]!;
    for (let j = 0; j < n; j++) {
      left[column * n + j]! *= scale;
      right[column * n + j]! *= scale;
    }
    for (let i = 0; i < n; i++) {
      const factor = left[i * n + column]!;
      if (i === column || factor === 0) continue;
      for (let j = 0; j < n; j++) {
        left[i * n + j]! -= factor * left[column * n + j]!;
        right[i * n + j]! -= factor * right[column * n + j]!;
      }
    }
  }
  return right;
}

/** a [m, n] times symmetric s [n, n]. */
export function times(a: ArrayLike<number>, s: ArrayLike<number>, m: number, n: number): Matrix {
  const out = new Float64Array(m * n);
  for (let i = 0; i < m; i++) {
    for (let k = 0; k < n; k++) {
      const value = a[i * n + k]!;
      if (value !== 0) for (let j = 0; j < n; j++) out[i * n + j]! += value * s[k * n + j]!;
    }
  }
  return out;
}

export type TestPattern = { sparsity: number } | { keep: number; of: number };

/** The mask of the largest magnitudes, ties to the lowest index. */
export function topMask(scores: ArrayLike<number>, pattern: TestPattern): Uint8Array {
  const mask = new Uint8Array(scores.length);
  const choose = (start: number, end: number, k: number) => {
    const order = Array.from({ length: end - start }, (_, i) => start + i);
    order.sort((i, j) => Math.abs(scores[j]!) - Math.abs(scores[i]!) || i - j);
    for (const i of order.slice(0, k)) mask[i] = 1;
  };
  if ('of' in pattern) for (let i = 0; i < scores.length; i += pattern.of) choose(i, i + pattern.of, pattern.keep);
  else choose(0, scores.length, Math.round((1 - pattern.sparsity) * scores.length));
  return mask;
}

/** tr((W−Ŵ)G(W−Ŵ)ᵀ) / tr(ŴGŴᵀ) */
export function relativeError(
  w: ArrayLike<number>,
  pruned: ArrayLike<number>,
  gram: ArrayLike<number>,
  m: number,
  n: number,
): number {
  const difference = Float64Array.from(w, (value, i) => value - pruned[i]!);
  const dot = (a: Matrix, b: Matrix) => a.reduce((sum, value, i) => sum + value * b[i]!, 0);
  const whole = Float64Array.from(w);
  return dot(difference, times(difference, gram, m, n)) / dot(whole, times(whole, gram, m, n));
}

/** The published algorithm with its published constants; returns weights and mask. */
export function referenceAlps(
  weight: ArrayLike<number>,
  gram: ArrayLike<number>,
  m: number,
  n: number,
  pattern: TestPattern,
  relaxation = 1,
) {
  const mean = Array.from({ length: n }, (_, i) => gram[i * n + i]!).reduce((a, b) => a + b, 0) / n;
  const h = Float64Array.from(gram);
  for (let i = 0; i < n; i++) h[i * n + i]! += 0.01 * mean;
  const norm = Float64Array.from({ length: n }, (_, i) => Math.sqrt(h[i * n + i]!));
  for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) h[i * n + j]! /= norm[i]! * norm[j]!;
  const base = Float64Array.from(weight, (value, i) => value * norm[i % n]!);
  const g = times(base, h, m, n);
  const shifted = (rho: number) =>
    inverse(
      h.map((value, i) => value + (i % (n + 1) === 0 ? rho : 0)),
      n,
    );
  const firstMask = topMask(base, pattern);
  const kept = firstMask.reduce((sum, bit) => sum + bit, 0);
  let [rho, grew, previous] = [0.1, false, firstMask];
  let d: Matrix = base.map((value, i) => (firstMask[i] ? value : 0));
  let v: Matrix = new Float64Array(m * n);
  let b: Matrix = base;
  let solve = shifted(rho);
  let iterations = 0;
  for (let i = 0; i < 300; i++) {
    iterations = i + 1;
    b = times(
      g.map((value, j) => value - v[j]! + rho * d[j]!),
      solve,
      m,
      n,
    );
    const relaxed = b.map((value, j) => relaxation * value + (1 - relaxation) * d[j]!);
    const s = relaxed.map((value, j) => value + v[j]! / rho);
    const mask = topMask(s, pattern);
    d = s.map((value, j) => (mask[j] ? value : 0));
    v = v.map((value, j) => value + rho * (relaxed[j]! - d[j]!));
    if ((i + 1) % 3 !== 0) continue;
    const changed = mask.reduce((sum, bit, j) => sum + (bit === previous[j] ? 0 : 1), 0);
    previous = mask;
    const share = changed / kept;
    if (share > 0.005) {
      rho *= share > 0.1 ? 1.3 : 1.2;
      grew = true;
    } else if (grew) {
      if (changed === 0) break;
      rho *= 1.1;
    } else {
      rho /= 5;
      if (changed > 0) {
        d = base.map((value, j) => (firstMask[j] ? value : 0));
        v = new Float64Array(m * n);
      }
    }
    if (i >= 30 && share < 3e-4) break;
    solve = shifted(rho);
  }
  const mask = topMask(b, pattern);
  const x = b.map((value, j) => (mask[j] ? value : 0));
  refitByConjugateGradient(x, base, h, mask, m, n, 10);
  return { weight: x.map((value, i) => value / norm[i % n]!), mask, iterations, kept };
}

function refitByConjugateGradient(
  x: Matrix,
  base: Matrix,
  h: Matrix,
  mask: Uint8Array,
  m: number,
  n: number,
  iterations: number,
) {
  const r = times(
    base.map((value, i) => value - x[i]!),
    h,
    m,
    n,
  ).map((value, i) => (mask[i] ? value : 0));
  const p = Float64Array.from(r);
  for (let step = 0; step < iterations; step++) {
    const q = times(p, h, m, n);
    for (let i = 0; i < m; i++) {
      const row = (a: Matrix, c: Matrix) => {
        let sum = 0;
        for (let j = i * n; j < (i + 1) * n; j++) sum += a[j]! * c[j]!;
        return sum;
      };
      const rr = row(r, r);
      const pq = row(p, q);
      if (rr === 0 || pq === 0) continue;
      const alpha = rr / pq;
      for (let j = i * n; j < (i + 1) * n; j++) {
        x[j]! += alpha * p[j]!;
        r[j] = mask[j] ? r[j]! - alpha * q[j]! : 0;
      }
      const beta = row(r, r) / rr;
      for (let j = i * n; j < (i + 1) * n; j++) p[j] = r[j]! + beta * p[j]!;
    }
  }
}

/** The exact minimum over a support: one dense solve a row. */
export function exactRefit(
  weight: ArrayLike<number>,
  gram: ArrayLike<number>,
  mask: ArrayLike<number>,
  m: number,
  n: number,
): Matrix {
  const out = new Float64Array(m * n);
  const whole = times(Float64Array.from(weight), gram, m, n);
  for (let i = 0; i < m; i++) {
    const support = Array.from({ length: n }, (_, j) => j).filter((j) => mask[i * n + j]);
    const size = support.length;
    const inverted = inverse(
      support.flatMap((a) => support.map((b) => gram[a * n + b]!)),
      size,
    );
    support.forEach((j, a) => {
      out[i * n + j] = support.reduce((sum, l, b) => sum + inverted[a * size + b]! * whole[i * n + l]!, 0);
    });
  }
  return out;
}
