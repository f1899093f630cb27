// A profile of the device (src/device/profile.ts) as phases: time, operations, bytes, and the share of the ceiling.

const sizes = { float64: 8, float32: 4, uint32: 4, bfloat16: 2, float16: 2, uint8: 1 };

function parse(text) {
  const [, dtype, list] = /^(\w+) \[(.*)\]$/.exec(text) ?? [];
  if (!dtype) return undefined;
  const shape = list === '' ? [] : list.split(', ').map(Number);
  const size = shape.reduce((product, d) => product * d, 1);
  return { dtype, shape, size, bytes: size * sizes[dtype] };
}

/** xᵀd, one triangle of dᵀd, or both. */
function sumsOfDifferences([x, , cross, gram]) {
  return x.size * ((cross ? 2 * cross.shape[0] : 0) + (gram ? gram.shape[0] + 1 : 0));
}

/** Operations of ops whose cost is in products, from their tensors and integers. The others are bound by memory. */
const products = {
  gemm: ([a, , out]) => (2 * out.size * a.size) / out.shape[0],
  int8Gemm: ([a, b]) => 2 * a.size * b.shape[1],
  quadraticForms: ([a, s]) => a.size * (s.shape[0] + 1),
  gramAccumulate: ([x, gram]) => x.size * (gram.shape[0] + 1),
  differenceSums: sumsOfDifferences,
  differenceSumsInt8: sumsOfDifferences,
  cholesky: ([a]) => (a.size * a.shape.at(-1)) / 3,
  choleskyInverse: ([l]) => (2 * l.size * l.shape.at(-1)) / 3,
  inverseFactor: ([a]) => (2 * a.shape[0] ** 3) / 3,
  inverseDiagonal: ([a]) => (2 * a.shape[0] ** 3) / 3,
  admmIterate: ([operator, base], [count]) => count * 2 * base.size * operator.shape[0],
  admmIterateInt8: ([operator, base], [count]) => count * 2 * base.size * operator.shape[0],
  // Gathering is none; all rows take all steps.
  cgOnSupport: ([, mask, , , active], [kept]) => (2 * active.size * kept ** 2) / mask.shape[0],
  sparseGpt: ([weight, factor]) => weight.size * factor.shape[0],
  // Causal: half of the scores, two products each.
  attention: ([q], [, sequence]) => 2 * q.size * (sequence + 1),
  attentionStep: ([q], [, position]) => 4 * q.size * (position + 1),
};
/** Tensors that are read and written, by their place; all others are read or written once. */
const inPlace = {
  axpby: [1],
  addBias: [0],
  applyMask: [0],
  rope: [0],
  addTo: [1],
  softCap: [0],
  admmRescale: [1],
  cgStep: [2, 3, 4],
  cgOnSupport: [2],
  sparseGpt: [0],
  dsnot: [4],
  cholesky: [0],
  choleskyInverse: [0],
  inverseFactor: [0],
};

/** Operations and bytes, at least, of all calls of a profile's entry, and the format of its products. */
export function costOf({ op, arguments: list, calls }) {
  const tensors = list.filter((text) => !/^\d+$/.test(text)).map(parse);
  const integers = list.filter((text) => /^\d+$/.test(text)).map(Number);
  const flops = products[op]?.(tensors, integers) ?? 0;
  let bytes = tensors.reduce((sum, tensor) => sum + (tensor?.bytes ?? 0), 0);
  for (const place of inPlace[op] ?? []) bytes += tensors[place].bytes;
  if (op === 'embedding') bytes -= tensors[0].bytes - tensors[2].size * sizes[tensors[0].dtype]; // the rows that are read
  // The rows of the sequences so far, of the keys and of the values.
  if (op === 'attentionStep') bytes += 2 * ((integers[1] + 1) * tensors[1].bytes - tensors[3].bytes);
  // b, B0 and S are read, b, S and Y written, each time; the mask both.
  if (op.startsWith('admmIterate'))
    bytes = integers[0] * (tensors[0].bytes + (22 + sizes[tensors[0].dtype]) * tensors[1].size);
  // Of a square matrix the diagonal alone.
  if (/diagonal$/i.test(op)) bytes += (op === 'diagonal' ? 4 : 8) * tensors[0].shape[0] - tensors[0].bytes;
  const dtype = /int8/i.test(op) ? 'int8' : tensors[0]?.dtype === 'bfloat16' ? 'bfloat16' : 'float32';
  return { flops: calls * flops, bytes: calls * bytes, dtype };
}

/** Seconds at the measured rates. A device that does not multiply integers takes bfloat16. */
export function atRates({ flops, bytes, dtype }, rates) {
  return { products: flops / (rates[dtype] ?? rates.bfloat16), memory: bytes / rates.copy };
}

/**
 * Sums a profile by phase: { milliseconds, flops, bytes, atCeiling, share }, where atCeiling is what the operations or the bytes of each op,
 * whichever take longer, would take at the measured rates.
 */
export function phasesOf(entries, rates) {
  const phases = {};
  for (const entry of entries) {
    const cost = costOf(entry);
    const { products, memory } = atRates(cost, rates);
    const name = entry.phase || 'start'; // before the first phase
    phases[name] ??= { milliseconds: 0, flops: 0, bytes: 0, atCeiling: 0 };
    const phase = phases[name];
    phase.milliseconds += entry.milliseconds;
    phase.flops += cost.flops;
    phase.bytes += cost.bytes;
    phase.atCeiling += 1000 * Math.max(products, memory);
  }
  for (const phase of Object.values(phases)) phase.share = phase.atCeiling / phase.milliseconds;
  return phases;
}

/** The ops of a profile by the time they took above what they take at the ceiling, the largest first. */
export function gapsOf(entries, rates, count) {
  return entries
    .map((entry) => {
      const { flops, bytes, dtype } = costOf(entry);
      const { products, memory } = atRates({ flops, bytes, dtype }, rates);
      const atCeiling = 1000 * Math.max(products, memory);
      return { ...entry, flops, bytes, atCeiling, lost: entry.milliseconds - atCeiling };
    })
    .sort((a, b) => b.lost - a.lost)
    .slice(0, count);
}
