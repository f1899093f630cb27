// node scripts/gpu/parity.mjs [--device cuda] [--only NAME] [--windows 128] [--evaluation N] [--out FILE]: the bundled model pruned on the processor
// and on the device. What rounding alone does, near ties that fall to the other side and all that follows from them in the layers behind, is
// measured beside: the same on the processor by another of its instruction sets. The device may differ by `margin` times as much, or by as much as
// `mostDiffering` of the mask's entries and `mostPerplexity`, relative. Magnitude pruning looks at the weights alone: there the masks must be the same.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Checkpoint, Device, evaluatePerplexity, prune } from '../../lib/index.js';

const { values: options } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    only: { type: 'string', default: '' },
    windows: { type: 'string', default: '128' },
    evaluation: { type: 'string' },
    out: { type: 'string' },
  },
});
const device = options.device === 'cuda' ? 'cuda:0' : options.device;
const mostDiffering = 0.01;
const mostPerplexity = 1e-3;
const margin = 2;
const model = fileURLToPath(new URL('../../models/union-4m', import.meta.url));
const length = 256;
const calibration = { text: join(model, 'calibration.txt.gz'), windows: Number(options.windows), length };
// All of the held-out text unless asked otherwise.
const heldOut = {
  text: join(model, 'held-out.txt.gz'),
  ...(options.evaluation ? { windows: Number(options.evaluation) } : {}),
};

const runs = [
  ['ALPS, 50 %', { sparsity: 0.5 }],
  ['ALPS, 70 %', { sparsity: 0.7 }],
  ['ALPS, 70 %, published', { sparsity: 0.7, schedule: 'alps', metric: 'diagonal' }],
  ['ALPS, 2:4', { pattern: { keep: 2, of: 4 } }],
  ['SparseGPT, 70 %', { sparsity: 0.7, method: 'sparsegpt' }],
  ['Wanda, 50 %', { sparsity: 0.5, method: 'wanda' }],
  ['DSnoT, 50 %', { sparsity: 0.5, method: 'dsnot' }],
  ['magnitude, 50 %', { sparsity: 0.5, method: 'magnitude' }],
];

/** Entries of the pruned layers whose being zero differs, in all and in the worst layer. */
async function maskDifference(a, b, layers) {
  const [left, right] = [await Checkpoint.open(a), await Checkpoint.open(b)];
  let [differing, total, worst] = [0, 0, { share: 0, name: '' }];
  for (const { name } of layers) {
    const [x, y] = [await left.read(`${name}.weight`), await right.read(`${name}.weight`)];
    // bfloat16: zero is all bits but the sign's.
    const [u, v] = [x, y].map(
      (bytes) => new Uint16Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)),
    );
    let here = 0;
    for (let i = 0; i < u.length; i++) if (((u[i] & 0x7fff) === 0) !== ((v[i] & 0x7fff) === 0)) here++;
    differing += here;
    total += u.length;
    if (here / u.length >= worst.share) worst = { share: here / u.length, name };
  }
  await left.close();
  await right.close();
  return { share: differing / total, worst };
}

/** The processor with other kernels than it would choose. */
function otherProcessor() {
  const usual = Device.open('cpu').info().isa;
  return Device.open('cpu', { isa: usual === 'scalar' || usual === 'avx2' ? 'scalar' : 'avx2' });
}

const scratch = mkdtempSync(join(tmpdir(), 'alps-parity-'));
const results = [];
try {
  // The evaluation by the device too: the dense model, in float32.
  const evaluate = async (folder, on) =>
    (await evaluatePerplexity({ length, ...heldOut, model: folder, device: on })).perplexity;
  const dense = { cpu: await evaluate(model, 'cpu'), device: await evaluate(model, device) };
  const close = (a, b) => Math.abs(a / b - 1) <= mostPerplexity;
  const said = ({ cpu, device: other }) => `perplexity ${cpu.toFixed(4)} and ${other.toFixed(4)}`;
  results.push({ name: 'dense', perplexity: dense, passed: close(dense.device, dense.cpu) });
  process.stdout.write(`${results[0].passed ? 'ok' : 'FAILED'}  dense  ${said(dense)}\n`);
  const other = otherProcessor();
  for (const [name, settings] of runs) {
    if (!name.includes(options.only)) continue;
    try {
      const folders = { cpu: join(scratch, 'cpu'), other: join(scratch, 'other'), device: join(scratch, 'device') };
      const shared = { model, calibration, precision: 'float32', overwrite: true, ...settings };
      const began = performance.now();
      const report = await prune({ ...shared, out: folders.cpu, device: 'cpu' });
      const between = performance.now();
      await prune({ ...shared, out: folders.device, device });
      const seconds = { cpu: (between - began) / 1000, device: (performance.now() - between) / 1000 };
      await prune({ ...shared, out: folders.other, device: other });
      const { share, worst } = await maskDifference(folders.cpu, folders.device, report.layers);
      const rounding = await maskDifference(folders.cpu, folders.other, report.layers);
      // Each by the processor, so that the weights alone differ.
      const [cpu, rounded, onDevice] = await Promise.all(
        ['cpu', 'other', 'device'].map((which) => evaluate(folders[which], 'cpu')),
      );
      const perplexity = { cpu, other: rounded, device: onDevice };
      const change = Math.abs(onDevice / cpu - 1);
      const passed =
        share <= (settings.method === 'magnitude' ? 0 : Math.max(mostDiffering, margin * rounding.share)) &&
        change <= Math.max(mostPerplexity, margin * Math.abs(rounded / cpu - 1));
      results.push({ name, perplexity, seconds, differing: share, worst, rounding: rounding.share, passed });
    } catch (error) {
      results.push({ name, passed: false, failure: `${error.code ?? error.name}: ${error.message}` });
    }
    const { perplexity, differing, passed, failure } = results.at(-1);
    process.stdout.write(
      `${passed ? 'ok' : 'FAILED'}  ${name}  ${failure ?? `${(100 * differing).toFixed(3)} % of the mask differ, by rounding alone ${(100 * results.at(-1).rounding).toFixed(3)} %; ${said(perplexity)}`}\n`,
    );
    if (options.out)
      writeFileSync(options.out, `${JSON.stringify({ mostDiffering, mostPerplexity, margin, results }, null, 1)}\n`);
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
process.exitCode = results.every(({ passed }) => passed) ? 0 : 1;
