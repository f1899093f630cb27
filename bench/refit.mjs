// node bench/refit.mjs [SIZE]: ten iterations of the conjugate gradient against the exact refit (one dense solve an output), on the support
// of magnitude pruning of a synthetic SIZE × SIZE layer (default 2048). Prints a Markdown table.
import { Device, pruneLayer } from '../lib/index.js';
import { layer } from './layer.mjs';

const size = Number(process.argv[2] ?? 2048);
const device = Device.open('auto');
const problem = layer(size, size);
const run = (sparsity, refit) => pruneLayer({ ...problem, sparsity, device, method: 'magnitude', refit });
await run(0.5, 'pcg'); // warm-up
process.stdout.write(`${device.info().details}, ${size} × ${size}\n\n`);
process.stdout.write(
  '| sparsity | PCG | backsolve | ratio | error MP | error PCG | error backsolve | PCG / backsolve |\n|---|---|---|---|---|---|---|---|\n',
);
for (const sparsity of [0.5, 0.6, 0.7, 0.8, 0.9]) {
  const plain = await run(sparsity, 'none');
  const runs = [await run(sparsity, 'pcg'), await run(sparsity, 'pcg'), await run(sparsity, 'pcg')];
  const pcg = runs.reduce((a, b) => (b.time.refine < a.time.refine ? b : a));
  const exact = await run(sparsity, 'backsolve');
  const cells = [
    `${sparsity * 100} %`,
    `${pcg.time.refine.toFixed(0)} ms`,
    `${exact.time.refine.toFixed(0)} ms`,
    `${(exact.time.refine / pcg.time.refine).toFixed(0)} ×`,
    ...[plain, pcg, exact].map(({ errorWithRidge }) => errorWithRidge.toPrecision(4)),
    (pcg.errorWithRidge / exact.errorWithRidge).toFixed(4),
  ];
  process.stdout.write(`| ${cells.join(' | ')} |\n`);
}
