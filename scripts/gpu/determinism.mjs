// node scripts/gpu/determinism.mjs [--device cuda] [--size 2048] [--out FILE]: pruneLayer twice, the second time while another layer is pruned
// on the same device. Weights, masks and errors must have equal bits.
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { layer } from '../../bench/layer.mjs';
import { Device, pruneLayer } from '../../lib/index.js';

const { values: options } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    size: { type: 'string', default: '2048' },
    out: { type: 'string' },
  },
});
const device = Device.open(options.device === 'cuda' ? 'cuda:0' : options.device);
const size = Number(options.size);
// Rows and columns of no round number beside a round one.
const [problem, odd, other] = [layer(size, size), layer(size - 37, size - 51), layer(size / 2, size / 2)];
const digest = ({ weight, mask, error, errorWithRidge }) =>
  createHash('sha256')
    .update(weight)
    .update(mask)
    .update(Float64Array.of(error, errorWithRidge))
    .digest('hex')
    .slice(0, 16);

const runs = [
  ['ALPS, ladder, float32', problem, { sparsity: 0.7 }],
  ['ALPS, ladder, bfloat16', problem, { sparsity: 0.7, precision: 'bfloat16' }],
  ['ALPS, published', problem, { sparsity: 0.7, schedule: 'alps', metric: 'diagonal' }],
  ['ALPS, 2:4', problem, { pattern: { keep: 2, of: 4 } }],
  ['ALPS, odd shape', odd, { sparsity: 0.6 }],
  ['SparseGPT', problem, { sparsity: 0.7, method: 'sparsegpt' }],
  ['Wanda', problem, { sparsity: 0.7, method: 'wanda' }],
  ['DSnoT', problem, { sparsity: 0.7, method: 'dsnot' }],
  ['magnitude, backsolve', other, { sparsity: 0.9, method: 'magnitude', refit: 'backsolve' }],
];
const results = [];
for (const [name, given, settings] of runs) {
  try {
    const first = await pruneLayer({ ...given, device, ...settings });
    const [second] = await Promise.all([
      pruneLayer({ ...given, device, ...settings }),
      pruneLayer({ ...other, device, sparsity: 0.5 }),
    ]);
    const equal =
      digest(first) === digest(second) && Buffer.compare(Buffer.from(first.mask), Buffer.from(second.mask)) === 0;
    results.push({
      name,
      shape: given.shape,
      digest: digest(first),
      second: digest(second),
      equal,
      error: first.error,
    });
  } catch (error) {
    results.push({ name, shape: given.shape, equal: false, failure: `${error.code ?? error.name}: ${error.message}` });
  }
  const { digest: bits, equal, failure } = results.at(-1);
  process.stdout.write(`${equal ? 'equal' : 'DIFFERENT'}  ${name}  ${failure ?? bits}\n`);
}
if (options.out) writeFileSync(options.out, `${JSON.stringify({ device: device.info().details, results }, null, 1)}\n`);
process.exitCode = results.every(({ equal }) => equal) ? 0 : 1;
