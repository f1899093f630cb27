// npm run bench: pruneLayer on synthetic layers, time per phase, rates, and the share of what the machine's matrix products reach in the same
// run. Prints a Markdown table; --json prints the numbers.
import { Device, pruneLayer } from '../lib/index.js';
import { layer } from './layer.mjs';

const shapes = [
  [1024, 1024],
  [4096, 1024],
];
const sparsity = 0.7;

/** GFLOP/s of the device's products at n = 2048, best of five. */
async function productRate(device, dtype) {
  const n = 2048;
  const stream = device.stream();
  const [a, b] = [device.tensor(dtype, [n, n]), device.tensor(dtype, [n, n])];
  const c = device.tensor('float32', [n, n]);
  stream.fill(a, 0.5);
  stream.fill(b, 0.25);
  let best = 0;
  for (let i = 0; i < 6; i++) {
    await stream.sync();
    const began = performance.now();
    stream.gemm(a, b, c);
    await stream.sync();
    if (i > 0) best = Math.max(best, (2 * n ** 3) / (performance.now() - began) / 1e6);
  }
  for (const tensor of [a, b, c]) tensor.dispose();
  stream.dispose();
  return best;
}

const device = Device.open('auto');
const rates = { float32: await productRate(device, 'float32'), bfloat16: await productRate(device, 'bfloat16') };
const results = [];
for (const [m, n] of shapes) {
  const problem = layer(m, n);
  for (const [title, options] of [
    ['ladder, float32', {}],
    ['ladder, bfloat16', { precision: 'bfloat16' }],
    ['published, float32', { schedule: 'alps', metric: 'diagonal' }],
  ]) {
    await pruneLayer({ ...problem, sparsity, device, ...options }); // warm-up: kernels are generated, memory is mapped
    const runs = [];
    for (let i = 0; i < 3; i++) runs.push(await pruneLayer({ ...problem, sparsity, device, ...options }));
    const total = (run) => run.time.factorise + run.time.admm + run.time.refine;
    const best = runs.reduce((a, b) => (total(b) < total(a) ? b : a));
    const rhos = new Set(best.trace.map(({ rho }) => rho)).size;
    const flops = {
      factorise: rhos * n ** 3,
      admm: best.iterations * 2 * m * n * n,
      refine: (best.refineIterations + 1) * 2 * m * n * n,
    };
    const rate = (phase) => flops[phase] / best.time[phase] / 1e6;
    const ceiling = (phase) => (phase === 'admm' ? rates[options.precision ?? 'float32'] : rates.float32);
    results.push({
      shape: [m, n],
      title,
      error: best.error,
      iterations: best.iterations,
      time: best.time,
      flops,
      rates: Object.fromEntries(Object.keys(flops).map((p) => [p, rate(p)])),
      share: Object.fromEntries(Object.keys(flops).map((p) => [p, rate(p) / ceiling(p)])),
    });
  }
}
if (process.argv.includes('--json')) {
  process.stdout.write(`${JSON.stringify({ device: device.info().details, rates, sparsity, results }, null, 2)}\n`);
} else {
  const cell = (r, phase) =>
    `${r.time[phase].toFixed(0)} ms, ${r.rates[phase].toFixed(0)} (${(100 * r.share[phase]).toFixed(0)} %)`;
  process.stdout.write(
    `${device.info().details}; products: ${rates.float32.toFixed(0)} GFLOP/s float32, ${rates.bfloat16.toFixed(0)} bfloat16\n\n`,
  );
  process.stdout.write('| layer | run | factorise | ADMM | refine | error |\n|---|---|---|---|---|---|\n');
  for (const r of results) {
    process.stdout.write(
      `| ${r.shape.join(' × ')} | ${r.title}, ${r.iterations} iterations | ${['factorise', 'admm', 'refine'].map((p) => cell(r, p)).join(' | ')} | ${r.error.toFixed(4)} |\n`,
    );
  }
}
