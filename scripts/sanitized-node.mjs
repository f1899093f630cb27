// A run of everything that takes and gives back native memory, for a sanitizer or valgrind to watch (scripts/sanitize.mjs --node): layers by
// every method, on data and on a Gram matrix, some aborted, some in workers that are terminated. Prints what it did.
import { setTimeout } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { pruneLayer } from '../lib/index.js';

const [m, n, tokens] = [24, 40, 96];

function random(length) {
  let state = 1;
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

const layer = () => ({ weight: random(m * n), shape: [m, n], activations: random(tokens * n) });
const methods = ['alps', 'sparsegpt', 'wanda', 'dsnot', 'magnitude'];
let solved = 0;
let aborted = 0;
let refused = 0;

for (const method of methods) {
  for (const options of [{ sparsity: 0.5 }, { pattern: { keep: 2, of: 4 } }, { sparsity: 0.7, refit: 'pcg' }]) {
    await pruneLayer({ ...layer(), ...options, method });
    solved++;
  }
}
for (let i = 0; i < 40; i++) {
  const controller = new AbortController();
  const run = pruneLayer({ ...layer(), sparsity: 0.5, method: methods[i % 5], signal: controller.signal });
  const done = run.then(
    () => solved++,
    () => aborted++,
  );
  if (i % 2) await setTimeout(i % 7);
  controller.abort();
  await done;
}
for (const weight of [random(3), random(m * n).fill(Number.NaN)]) {
  await pruneLayer({ ...layer(), weight, sparsity: 0.5 }).catch(() => refused++);
}

const source = `
  const { workerData } = require('node:worker_threads');
  import(workerData).then(async ({ pruneLayer }) => {
    const weight = new Float32Array(128 * 128).map((_, i) => (i * 7919) % 101 - 50);
    const activations = new Float32Array(256 * 128).map((_, i) => (i * 104729) % 103 - 51);
    for (;;) await pruneLayer({ weight, shape: [128, 128], activations, sparsity: 0.5 });
  });
`;
const index = new URL('../lib/index.js', import.meta.url).href;
const workers = [0, 1, 2].map(() => new Worker(source, { eval: true, workerData: index }));
await setTimeout(3000);
await Promise.all(workers.map((worker) => worker.terminate()));
process.stdout.write(
  `solved ${solved}, aborted ${aborted}, refused ${refused}, terminated ${workers.length} workers\n`,
);
