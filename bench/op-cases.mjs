// Every op of native/core/backend.h with what it must do at least: the operations, and the bytes when each input is read once and each output
// written once. bench/ops.mjs times them.

/** Makes the tensors of the cases. Values are normal numbers, copied from one pool so that large tensors are made quickly. */
export class Maker {
  #held = [];
  #next = 0;

  constructor(stream, elements) {
    this.stream = stream;
    this.device = stream.device;
    const piece = Math.min(elements, 1 << 21);
    const values = normal(piece);
    this.pool = this.#hold(this.device.tensor('float32', [elements]));
    for (let at = 0; at < elements; at += piece) {
      const length = Math.min(piece, elements - at);
      stream.write(this.pool.rows(at, at + length), values.subarray(0, length));
    }
  }

  #hold(tensor) {
    this.#held.push(tensor);
    return tensor;
  }

  zeros(dtype, ...shape) {
    return this.#hold(this.device.tensor(dtype, shape));
  }

  floats(dtype, ...shape) {
    const out = this.zeros(dtype, ...shape);
    if (out.size === 0) return out;
    // Every tensor begins elsewhere in the pool.
    this.#next = (this.#next + 7919 * 64) % Math.max(1, this.pool.size - out.size + 1);
    this.stream.copy(this.pool.rows(this.#next, this.#next + out.size), out);
    return out;
  }

  uint32(values) {
    return this.#hold(this.stream.upload('uint32', [values.length], Uint32Array.from(values)));
  }

  /** The largest magnitudes of random numbers: `share` of all entries. */
  mask(share, ...shape) {
    const out = this.zeros('uint8', ...shape);
    const scores = this.floats('float32', ...shape);
    this.stream.project(scores, out, null, { rowEnds: [shape[0]], keep: [Math.round(share * out.size)] });
    return out;
  }

  /** A Gram matrix of twice as many inputs as it has rows. */
  gram(n) {
    const out = this.zeros('float32', n, n);
    this.stream.gramAccumulate(this.floats('float32', 2 * n, n), out);
    this.stream.symmetrize(out);
    this.stream.addDiagonal(out, 0.01 * n);
    return out;
  }

  /** The tensors that were made, but for the pool, go. */
  clear() {
    for (const tensor of this.#held.splice(1).reverse()) tensor.dispose();
  }

  dispose() {
    this.clear();
    this.pool.dispose();
  }
}

function normal(length) {
  let state = 1;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return Float32Array.from({ length }, () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next()));
}

const f = 'float32';
const h = 'bfloat16';
const range = (length, value = (i) => i) => Array.from({ length }, (_, i) => value(i));

/** The largest tensor of the cases, in elements; the pool holds it. */
export function largest(n, tokens) {
  const { vocabulary, headRows } = sizes(n, tokens);
  return Math.max(2 * n * n, tokens * n, vocabulary * n, headRows * vocabulary) + (1 << 16);
}

function sizes(n, tokens) {
  const headDim = n >= 1024 ? 128 : n >= 128 ? 64 : 16;
  return {
    headDim,
    heads: Math.max(1, Math.floor(n / headDim)),
    sequence: Math.min(2048, tokens),
    vocabulary: n >= 1024 ? 32000 : 4 * n,
    headRows: Math.max(1, Math.floor(tokens / 8)),
    experts: n >= 1024 ? 64 : 8,
  };
}

/**
 * The cases for weights [n, n] and activations [tokens, n]. Each has
 *  - name; dtype of the products, whose measured rate bounds `flops`
 *  - make(t): makes the tensors and gives `run`, which queues the op once, and `restore` where the op must not be applied to its own result
 *  - flops and bytes of one run
 */
export function cases(n, tokens) {
  const { headDim, heads, sequence, vocabulary, headRows, experts } = sizes(n, tokens);
  const square = n * n;
  const rows = tokens * n;
  const wide = n - (n % 4);
  const all = { rowEnds: [n], keep: [Math.round(0.3 * square)] };
  const nm = { keep: 2, of: 4 };
  const none = { rowEnds: [n], keep: [0] };
  const kept = Math.round(0.3 * n);
  const few = Math.min(n, 256);
  const list = [];
  const add = (name, dtype, flops, bytes, make) => list.push({ name, dtype, flops, bytes, make });

  // ---- elementwise ---------------------------------------------------------------------------------------------------
  add('fill', f, 0, 4 * square, (t, s) => {
    const x = t.zeros(f, n, n);
    return { run: () => s.fill(x, 1) };
  });
  for (const [from, out] of [
    [f, f],
    [f, h],
    [h, f],
    [f, 'float16'],
  ]) {
    const size = { float32: 4, bfloat16: 2, float16: 2 };
    add(`copy ${from} to ${out}`, f, 0, (size[from] + size[out]) * square, (t, s) => {
      const [x, y] = [t.floats(from, n, n), t.zeros(out, n, n)];
      return { run: () => s.copy(x, y) };
    });
  }
  add('axpby', f, 3 * square, 12 * square, (t, s) => {
    const [x, y] = [t.floats(f, n, n), t.floats(f, n, n)];
    return { run: () => s.axpby(x, y, 0.5, 0.5) };
  });
  add('addBias', f, rows, 8 * rows, (t, s) => {
    const [x, bias] = [t.floats(f, tokens, n), t.floats(f, n)];
    return { run: () => s.addBias(x, bias) };
  });
  add('scaleRowsColumns', f, 2 * square, 8 * square, (t, s) => {
    const [a, row, column, out] = [t.floats(f, n, n), t.floats(f, n), t.floats(f, n), t.zeros(f, n, n)];
    return { run: () => s.scaleRowsColumns(a, { row, column }, out) };
  });
  add('applyMask', f, 0, 9 * square, (t, s) => {
    const [x, mask] = [t.floats(f, n, n), t.mask(0.3, n, n)];
    return { run: () => s.applyMask(x, mask) };
  });
  add('nonZeroMask', f, 0, 5 * square, (t, s) => {
    const [x, mask] = [t.floats(f, n, n), t.zeros('uint8', n, n)];
    return { run: () => s.nonZeroMask(x, mask) };
  });
  add('countNonFinite', f, 0, 4 * square, (t, s) => {
    const [x, out] = [t.floats(f, n, n), t.zeros('uint32', 1)];
    return { run: () => s.countNonFinite(x, out) };
  });
  add('rowDots', f, 2 * square, 8 * square, (t, s) => {
    const [a, b, out] = [t.floats(f, n, n), t.floats(f, n, n), t.zeros('float64', n)];
    return { run: () => s.rowDots(a, b, out) };
  });
  add('quadraticForms', f, square * n, 8 * square, (t, s) => {
    const [a, gram, out] = [t.floats(f, n, n), t.gram(n), t.zeros('float64', n)];
    return { run: () => s.quadraticForms(a, gram, out) };
  });
  add('columnSums', f, rows, 4 * rows, (t, s) => {
    const [x, out] = [t.floats(f, tokens, n), t.zeros('float64', n)];
    return { run: () => s.columnSums(x, out) };
  });
  add('differenceSquares bfloat16', h, 3 * rows, 4 * rows, (t, s) => {
    const [x, y, out] = [t.floats(h, tokens, n), t.floats(h, tokens, n), t.zeros('float64', n)];
    return { run: () => s.differenceSquares(x, y, out) };
  });
  add('transpose', f, 0, 8 * square, (t, s) => {
    const [a, out] = [t.floats(f, n, n), t.zeros(f, n, n)];
    return { run: () => s.transpose(a, out) };
  });

  // ---- Gram-matrix solves ----------------------------------------------------------------------------------------------
  for (const [from, out] of [
    [f, f],
    [h, f],
    [h, h],
  ]) {
    const [a, b] = [from === f ? 4 : 2, out === f ? 4 : 2];
    add(`gemm ${from} to ${out}`, from, 2 * n * square, (2 * a + b) * square, (t, s) => {
      const [x, y, z] = [t.floats(from, n, n), t.floats(from, n, n), t.zeros(out, n, n)];
      return { run: () => s.gemm(x, y, z, { transposeB: true }) };
    });
  }
  add('int8Gemm', 'int8', 2 * n * square, 8 * square, (t, s) => {
    const [x, y, z] = [t.floats(h, n, n), t.floats(h, n, n), t.zeros(f, n, n)];
    return { run: () => s.int8Gemm(x, y, z) };
  });
  for (const dtype of [f, h]) {
    // One triangle.
    const bytes = (dtype === f ? 4 : 2) * rows + 4 * square;
    add(`gramAccumulate ${dtype}`, dtype, tokens * n * (n + 1), bytes, (t, s) => {
      const [x, gram] = [t.floats(dtype, tokens, n), t.zeros(f, n, n)];
      return { run: () => s.gramAccumulate(x, gram) };
    });
  }
  for (const format of [h, 'int8']) {
    add(`differenceSums ${format}`, format, tokens * n * (3 * n + 1), 4 * rows + 8 * square, (t, s) => {
      const [x, y] = [t.floats(h, tokens, n), t.floats(h, tokens, n)];
      const sums = { cross: t.zeros(f, n, n), gram: t.zeros(f, n, n) };
      return { run: () => s.differenceSums(x, y, sums, format === 'int8') };
    });
  }
  add('symmetrize', f, 0, 4 * square, (t, s) => {
    const a = t.floats(f, n, n);
    return { run: () => s.symmetrize(a) };
  });
  add('addDiagonal', f, n, 8 * n, (t, s) => {
    const a = t.floats(f, n, n);
    return { run: () => s.addDiagonal(a, 1) };
  });
  add('addToDiagonal', f, 2 * n, 12 * n, (t, s) => {
    const [a, values] = [t.floats(f, n, n), t.floats(f, n)];
    return { run: () => s.addToDiagonal(a, values, 1) };
  });
  add('diagonal', f, 0, 8 * n, (t, s) => {
    const [a, out] = [t.floats(f, n, n), t.zeros(f, n)];
    return { run: () => s.diagonal(a, out) };
  });
  add('cholesky', f, n ** 3 / 3, 8 * square, (t, s) => {
    const [gram, a] = [t.gram(n), t.zeros(f, n, n)];
    return { run: () => s.cholesky(a), restore: () => s.copy(gram, a) };
  });
  add('choleskyInverse', f, (2 * n ** 3) / 3, 8 * square, (t, s) => {
    const [factor, a] = [t.gram(n), t.zeros(f, n, n)];
    s.cholesky(factor);
    return { run: () => s.choleskyInverse(a, { split: true }), restore: () => s.copy(factor, a) };
  });
  add('inverseFactor', f, (2 * n ** 3) / 3, 8 * square, (t, s) => {
    const [gram, a] = [t.gram(n), t.zeros(f, n, n)];
    return { run: () => s.inverseFactor(a), restore: () => s.copy(gram, a) };
  });
  add('inverseDiagonal', f, (2 * n ** 3) / 3, 4 * square, (t, s) => {
    const [gram, a, out] = [t.gram(n), t.zeros(f, n, n), t.zeros(f, n)];
    return { run: () => s.inverseDiagonal(a, out), restore: () => s.copy(gram, a) };
  });

  // ---- top-k projection --------------------------------------------------------------------------------------------------
  add('project 70 %', f, 0, 5 * square, (t, s) => {
    const [scores, mask] = [t.floats(f, n, n), t.zeros('uint8', n, n)];
    return { run: () => s.project(scores, mask, null, all) };
  });
  add('project 2:4', f, 0, 5 * n * wide, (t, s) => {
    const [scores, mask] = [t.floats(f, n, wide), t.zeros('uint8', n, wide)];
    return { run: () => s.project(scores, mask, nm, none) };
  });
  add('projectRows', f, 0, 5 * square, (t, s) => {
    const [scores, mask] = [t.floats(f, n, n), t.zeros('uint8', n, n)];
    return { run: () => s.projectRows(scores, mask, kept) };
  });
  add('maskChanges', f, 0, 3 * square, (t, s) => {
    const [mask, previous, counts] = [t.mask(0.3, n, n), t.mask(0.3, n, n), t.zeros('uint32', 1)];
    return { run: () => s.maskChanges(mask, previous, all, counts) };
  });

  // ---- ADMM --------------------------------------------------------------------------------------------------------------
  add('admmStart', f, 0, 13 * square, (t, s) => {
    const [base, mask, state, y] = [t.floats(f, n, n), t.mask(0.3, n, n), t.zeros(f, n, n), t.zeros(f, n, n)];
    return { run: () => s.admmStart(base, mask, state, y) };
  });
  // b, B0 and S are read, b, S and Y written; the mask both.
  for (const [title, pattern, width, dtype] of [
    ['70 %', null, n, f],
    ['70 %, bfloat16 y', null, n, h],
    ['2:4', nm, wide, f],
  ]) {
    add(`admmUpdate ${title}`, f, 5 * n * width, (22 + (dtype === f ? 4 : 2)) * n * width, (t, s) => {
      const [b, base, state] = [t.floats(f, n, width), t.floats(f, n, width), t.floats(f, n, width)];
      const [mask, y] = [t.mask(0.3, n, width), t.zeros(dtype, n, width)];
      return { run: () => s.admmUpdate({ base, b, state, mask, y }, 1.2, pattern, all) };
    });
  }
  add('admmRescale', f, square, 17 * square, (t, s) => {
    const [base, state, mask, y] = [t.floats(f, n, n), t.floats(f, n, n), t.mask(0.3, n, n), t.zeros(f, n, n)];
    return { run: () => s.admmRescale(base, state, mask, y, 0.999) };
  });

  // ---- conjugate gradient, backsolve -------------------------------------------------------------------------------------
  add('cgStart', f, 2 * square, 13 * square, (t, s) => {
    const [residual, mask, direction] = [t.floats(f, n, n), t.mask(0.3, n, n), t.zeros(f, n, n)];
    const [rr, rr0] = [t.zeros('float64', n), t.zeros('float64', n)];
    return { run: () => s.cgStart(residual, mask, direction, rr, rr0) };
  });
  // q, mask, x, residual and direction are read, the last three written.
  add('cgStep', f, 10 * square, 29 * square, (t, s) => {
    const [q, mask, x] = [t.floats(f, n, n), t.mask(0.3, n, n), t.floats(f, n, n)];
    const [first, residual, direction] = [t.floats(f, n, n), t.zeros(f, n, n), t.zeros(f, n, n)];
    const [rr, rr0, active] = [t.zeros('float64', n), t.zeros('float64', n), t.zeros('uint32', 1)];
    const restore = () => {
      s.copy(first, residual);
      s.cgStart(residual, mask, direction, rr, rr0);
    };
    return { run: () => s.cgStep(q, mask, x, residual, direction, rr, rr0, 0, active), restore };
  });
  add('cgOnSupport, 10 steps', f, 20 * (0.3 * n) ** 2 * n, 4 * square + 13 * square, (t, s) => {
    const [gram, mask, active] = [t.gram(n), t.mask(0.3, n, n), t.zeros('uint32', 10)];
    const [first, residual, x] = [t.floats(f, n, n), t.zeros(f, n, n), t.zeros(f, n, n)];
    const restore = () => {
      s.copy(first, residual);
      s.fill(x, 0);
    };
    const kept = Math.round(0.3 * square);
    return { run: () => s.cgOnSupport(gram, mask, x, residual, { tolerance: 0, kept }, active), restore };
  });
  add(`backsolve, ${few} rows`, f, few * (kept ** 3 / 3 + 2 * kept ** 2), 4 * square + 9 * few * n, (t, s) => {
    const [gram, right, x, mask] = [t.gram(n), t.floats(f, few, n), t.zeros(f, few, n), t.zeros('uint8', few, n)];
    s.projectRows(right, mask, kept);
    return { run: () => s.backsolve(gram, right, mask, x) };
  });

  // ---- the other methods -------------------------------------------------------------------------------------------------
  for (const [title, pattern, width] of [
    ['70 %', null, n],
    ['2:4', nm, wide],
  ]) {
    // Each column's error goes to all columns after it.
    const bytes = 9 * n * width + 4 * width * width;
    add(`sparseGpt ${title}`, f, n * width * width, bytes, (t, s) => {
      const [dense, weight, factor] = [t.floats(f, n, width), t.zeros(f, n, width), t.gram(width)];
      const mask = t.zeros('uint8', n, width);
      s.inverseFactor(factor);
      return { run: () => s.sparseGpt(weight, factor, mask, pattern, all, 128), restore: () => s.copy(dense, weight) };
    });
  }
  add('dsnot, 50 cycles', f, 0, 10 * square, (t, s) => {
    const [weight, metric, start, mask] = [
      t.floats(f, n, n),
      t.floats(f, n, n),
      t.mask(0.5, n, n),
      t.zeros('uint8', n, n),
    ];
    const inputs = { expected: t.floats(f, n), variance: t.zeros(f, n) };
    s.fill(inputs.variance, 1);
    const options = { cycles: 50, threshold: 0.1, sameSign: false };
    return { run: () => s.dsnot(weight, metric, inputs, mask, null, options), restore: () => s.copy(start, mask) };
  });

  // ---- transformer forward -----------------------------------------------------------------------------------------------
  add('embedding bfloat16', f, 0, 6 * rows + 4 * tokens, (t, s) => {
    const [table, out] = [t.floats(h, vocabulary, n), t.zeros(f, tokens, n)];
    const ids = t.uint32(range(tokens, (i) => (i * 7919) % vocabulary));
    return { run: () => s.embedding(table, ids, out) };
  });
  add('rmsNorm to bfloat16', f, 4 * rows, 6 * rows, (t, s) => {
    const [x, weight, out] = [t.floats(f, tokens, n), t.floats(f, n), t.zeros(h, tokens, n)];
    return { run: () => s.rmsNorm(x, weight, 1e-5, out) };
  });
  add('layerNorm', f, 8 * rows, 8 * rows, (t, s) => {
    const [x, weight, bias, out] = [t.floats(f, tokens, n), t.floats(f, n), t.floats(f, n), t.zeros(f, tokens, n)];
    return { run: () => s.layerNorm(x, weight, bias, 1e-5, out) };
  });
  add('rope bfloat16', f, 3 * tokens * heads * headDim, 4 * tokens * heads * headDim, (t, s) => {
    const windows = Math.max(1, Math.floor(tokens / sequence));
    const x = t.floats(h, windows * sequence, heads * headDim);
    const [cosine, sine] = [t.zeros(f, sequence, headDim / 2), t.zeros(f, sequence, headDim / 2)];
    s.fill(cosine, 0.8);
    s.fill(sine, 0.6);
    return { run: () => s.rope(x, cosine, sine, headDim, sequence) };
  });
  for (const dtype of [f, h]) {
    const windows = Math.max(1, Math.floor(tokens / sequence));
    const width = heads * headDim;
    const size = windows * sequence * width;
    // Causal: half of the scores, two products each.
    const flops = 2 * sequence * (sequence + 1) * width * windows;
    add(`attention ${dtype}`, dtype, flops, (dtype === f ? 16 : 8) * size, (t, s) => {
      const [q, k, v, out] = range(4, () => t.floats(dtype, windows * sequence, width));
      const options = { headDim, sequence, scale: 1 / Math.sqrt(headDim) };
      return { run: () => s.attention(q, k, v, out, options) };
    });
  }
  for (const dtype of [f, h]) {
    const windows = Math.max(1, Math.floor(tokens / sequence));
    const width = heads * headDim;
    // The last token of each window: q, k and v are read, out and the new rows written, the earlier rows read.
    const elements = windows * width * (6 + 2 * (sequence - 1));
    add(`attentionStep ${dtype}`, dtype, 4 * sequence * width * windows, (dtype === f ? 4 : 2) * elements, (t, s) => {
      const [q, k, v, out] = range(4, () => t.floats(dtype, windows, width));
      const [keys, values] = range(2, () => t.floats(dtype, windows * sequence, width));
      const options = { headDim, position: sequence - 1, scale: 1 / Math.sqrt(headDim) };
      return { run: () => s.attentionStep({ q, k, v, keys, values }, out, options) };
    });
  }
  add('gatedActivation silu bfloat16', f, 5 * rows, 6 * rows, (t, s) => {
    const [gate, up, out] = [t.floats(h, tokens, n), t.floats(h, tokens, n), t.zeros(h, tokens, n)];
    return { run: () => s.gatedActivation(gate, up, out, 'silu') };
  });
  add('activate gelu', f, 8 * rows, 8 * rows, (t, s) => {
    const [x, out] = [t.floats(f, tokens, n), t.zeros(f, tokens, n)];
    return { run: () => s.activate(x, out, 'gelu') };
  });
  add('softCap', f, 4 * rows, 8 * rows, (t, s) => {
    const x = t.floats(f, tokens, n);
    return { run: () => s.softCap(x, 30) };
  });
  add(`topExperts, ${Math.min(8, experts)} of ${experts}`, f, 0, tokens * (4 * experts + 64), (t, s) => {
    const k = Math.min(8, experts);
    const [logits, ids, weights] = [t.floats(f, tokens, experts), t.zeros('uint32', tokens, k), t.zeros(f, tokens, k)];
    return { run: () => s.topExperts(logits, ids, weights, true) };
  });
  const half = Math.floor(tokens / 2);
  add('gatherRows', f, 0, 8 * half * n, (t, s) => {
    const [x, out] = [t.floats(f, tokens, n), t.zeros(f, half, n)];
    const ids = t.uint32(range(half, (i) => 2 * i));
    return { run: () => s.gatherRows(x, ids, out) };
  });
  add('scatterAddRows', f, 2 * half * n, 12 * half * n, (t, s) => {
    const [y, weights, x] = [t.floats(f, half, n), t.floats(f, half), t.floats(f, tokens, n)];
    const ids = t.uint32(range(half, (i) => 2 * i));
    return { run: () => s.scatterAddRows(y, ids, weights, x) };
  });
  add('addTo bfloat16', f, rows, 10 * rows, (t, s) => {
    const [y, x] = [t.floats(h, tokens, n), t.floats(f, tokens, n)];
    return { run: () => s.addTo(y, x) };
  });
  add('crossEntropy', f, 4 * headRows * vocabulary, 4 * headRows * vocabulary, (t, s) => {
    const [logits, out] = [t.floats(f, headRows, vocabulary), t.zeros('float64', headRows)];
    const targets = t.uint32(range(headRows, (i) => (i * 7919) % vocabulary));
    return { run: () => s.crossEntropy(logits, targets, out) };
  });
  add('divergence', f, 8 * headRows * vocabulary, 8 * headRows * vocabulary, (t, s) => {
    const [p, q] = [t.floats(f, headRows, vocabulary), t.floats(f, headRows, vocabulary)];
    const out = t.zeros('float64', headRows);
    return { run: () => s.divergence(p, q, out) };
  });
  add('sample', f, 4 * headRows * vocabulary, 4 * headRows * vocabulary, (t, s) => {
    const [logits, ids] = [t.floats(f, headRows, vocabulary), t.zeros('uint32', headRows)];
    const draws = t.zeros('float64', headRows);
    s.fill(draws, 0.5);
    return { run: () => s.sample(logits, draws, ids, 0.7) };
  });
  return list;
}
