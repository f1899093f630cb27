// node --expose-gc bench/host.mjs [loop] [abort] [soak] [--seconds 20] [--jobs 2000] [--warm-up 500]
//   [--widths 512,1024,2048,4096] [--rounds 10] [--json]
// What a host sees while layers are pruned: the delay of its event loop, how long an abort takes, and whether memory stays flat.
import { cpus, loadavg } from 'node:os';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { Device, JobQueue } from '../lib/index.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: 'string', default: '20' },
    jobs: { type: 'string', default: '2000' },
    'warm-up': { type: 'string', default: '500' },
    widths: { type: 'string', default: '512,1024,2048,4096' },
    rounds: { type: 'string', default: '10' },
    device: { type: 'string', default: 'auto' },
    json: { type: 'boolean', default: false },
  },
});
const parts = positionals.length > 0 ? positionals : ['loop', 'abort', 'soak'];
const device = Device.open(values.device);
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const mib = (bytes) => bytes / 2 ** 20;

/** A square layer with a well-conditioned Gram matrix that costs nothing to make: what is measured does not depend on the numbers. */
function layer(n) {
  const gram = new Float32Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = Math.max(0, i - 3); j <= Math.min(n - 1, i + 3); j++) gram[i * n + j] = 0.4 ** Math.abs(i - j);
  }
  const weight = new Float32Array(n * n);
  for (let i = 0; i < weight.length; i++) weight[i] = Math.sin(i * 1.7);
  return { weight, shape: [n, n], gram, sparsity: 0.7, device };
}

/** Delay of the event loop while two layers at a time are pruned without pause, for each width. */
async function loop() {
  const rows = [];
  for (const n of [256, 1024, 2048]) {
    const one = layer(n);
    const queue = new JobQueue({ device, concurrency: 2, maxQueued: 4 });
    await queue.pruneLayer(one); // warm-up
    const histogram = monitorEventLoopDelay({ resolution: 1 });
    const until = performance.now() + 1000 * Number(values.seconds);
    let done = 0;
    const worker = async () => {
      while (performance.now() < until) {
        await queue.pruneLayer(one);
        done++;
      }
    };
    histogram.enable();
    await Promise.all([worker(), worker(), worker()]);
    histogram.disable();
    const at = (p) => histogram.percentile(p) / 1e6;
    rows.push({ width: n, layers: done, p50: at(50), p99: at(99), max: histogram.max / 1e6 });
  }
  return rows;
}

/** The same timer in a process that does nothing: what the machine itself adds. */
async function idle() {
  const histogram = monitorEventLoopDelay({ resolution: 1 });
  histogram.enable();
  await sleep(3000);
  histogram.disable();
  const at = (p) => histogram.percentile(p) / 1e6;
  return { p50: at(50), p99: at(99), max: histogram.max / 1e6 };
}

/** From abort() to the rejection, at random moments of the solve, alone and beside another layer of the same width. */
async function abort() {
  const rows = [];
  let state = 1;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  for (const n of values.widths.split(',').map(Number)) {
    const one = layer(n);
    for (const beside of [false, true]) {
      const queue = new JobQueue({ device, concurrency: 2 });
      const other = new AbortController();
      const background = beside
        ? queue.pruneLayer(
            { ...one, schedule: 'fixed', alpsSchedule: { maxIterations: 1e6 } },
            { signal: other.signal },
          )
        : undefined;
      background?.catch(() => {});
      const times = [];
      for (let i = 0; i < Number(values.rounds); i++) {
        const controller = new AbortController();
        const endless = { ...one, schedule: 'fixed', alpsSchedule: { maxIterations: 1e6 } };
        const job = queue.pruneLayer(i % 2 ? one : endless, { signal: controller.signal }).then(
          () => 0,
          () => performance.now(),
        );
        await sleep((0.2 + random()) * 200 * (n / 1024) ** 1.5);
        const began = performance.now();
        controller.abort();
        const end = await job;
        if (end > 0) times.push(end - began); // else it was done before
      }
      other.abort();
      await background?.catch(() => {});
      times.sort((a, b) => a - b);
      rows.push({ width: n, beside, aborts: times.length, median: times[times.length >> 1], max: times.at(-1) });
    }
  }
  return rows;
}

/** Jobs of several widths, one in five stopped; behind those of the warm-up the resident memory after every tenth part. */
async function soak() {
  const jobs = Number(values.jobs);
  const widths = [64, 96, 160, 256];
  const layers = widths.map(layer);
  const queue = new JobQueue({ device, concurrency: 3, maxQueued: 16 });
  const samples = [];
  const warmUp = Number(values['warm-up']);
  let outcomes = { done: 0, cancelled: 0, failed: 0 };
  const sample = async (count) => {
    await queue.idle();
    for (let i = 0; i < 3; i++) {
      globalThis.gc?.();
      await sleep(20);
    }
    const { rss, heapTotal, heapUsed, external } = process.memoryUsage();
    samples.push({
      jobs: count,
      rss: mib(rss),
      heapTotal: mib(heapTotal),
      heap: mib(heapUsed),
      external: mib(external),
      device: mib(device.info().memoryUsed),
    });
  };
  for (let i = 0; i < warmUp + jobs; i++) {
    const counted = i - warmUp;
    if (counted >= 0 && counted % Math.ceil(jobs / 10) === 0) await sample(counted);
    if (counted === 0) outcomes = { done: 0, cancelled: 0, failed: 0 };
    await queue.ready();
    const controller = new AbortController();
    queue
      .pruneLayer(layers[i % layers.length], {
        signal: controller.signal,
        priority: i % 3,
        key: `${i % 7}`,
      })
      .then(
        () => outcomes.done++,
        ({ code }) => (code === 'ABORTED' ? outcomes.cancelled++ : outcomes.failed++),
      );
    if (i % 5 === 0) setTimeout(() => controller.abort(), i % 25);
  }
  await sample(jobs);
  // The two halves against each other, and the last sample against the first.
  const warm = samples.map(({ rss }) => rss);
  const median = (list) => [...list].sort((x, y) => x - y)[list.length >> 1];
  const half = Math.ceil(warm.length / 2);
  const halves = median(warm.slice(half)) / median(warm.slice(0, half)) - 1;
  return {
    ...outcomes,
    samples,
    halves,
    growth: warm.at(-1) / warm[0] - 1,
    spread: Math.max(...warm) / Math.min(...warm) - 1,
  };
}

const results = { device: device.info().details, cpus: cpus().length };
if (parts.includes('loop')) results.idle = await idle();
const load = loadavg()[0];
if (parts.includes('loop')) results.loop = await loop();
if (parts.includes('abort')) results.abort = await abort();
if (parts.includes('soak')) results.soak = await soak();
results.load = load;

if (values.json) console.log(JSON.stringify(results, null, 2));
else {
  const ms = (value) => (value === undefined ? '-' : value.toFixed(1)).padStart(8);
  console.log(`${results.device}; load of the machine before: ${load.toFixed(1)} on ${results.cpus} cores\n`);
  if (results.loop) {
    console.log(
      'Delay of the event loop, ms (timer of 1 ms)\n\n| while pruning | layers | p50 | p99 | max |\n|---|---:|---:|---:|---:|',
    );
    const { p50, p99, max } = results.idle;
    console.log(`| nothing | 0 |${ms(p50)} |${ms(p99)} |${ms(max)} |`);
    for (const row of results.loop)
      console.log(`| ${row.width} wide | ${row.layers} |${ms(row.p50)} |${ms(row.p99)} |${ms(row.max)} |`);
  }
  if (results.abort) {
    console.log(
      '\nFrom abort() to the rejection, ms\n\n| width | beside another | aborts | median | max |\n|---:|---|---:|---:|---:|',
    );
    for (const row of results.abort)
      console.log(`| ${row.width} | ${row.beside ? 'yes' : 'no'} | ${row.aborts} |${ms(row.median)} |${ms(row.max)} |`);
  }
  if (results.soak) {
    const { done, cancelled, failed, samples, halves, growth, spread } = results.soak;
    const percent = (share) => `${(100 * share).toFixed(1)} %`;
    console.log(
      `\nSoak: ${done} done, ${cancelled} cancelled, ${failed} failed; MiB\n\n| jobs | rss | heap, total | heap, used | external | device |\n|---:|---:|---:|---:|---:|---:|`,
    );
    for (const row of samples)
      console.log(
        `| ${row.jobs} |${ms(row.rss)} |${ms(row.heapTotal)} |${ms(row.heap)} |${ms(row.external)} |${ms(row.device)} |`,
      );
    console.log(
      `\nResident memory behind the warm-up: last over first ${percent(growth)}, median of the second half over that of the first ` +
        `${percent(halves)}, largest over smallest ${percent(spread)}`,
    );
  }
}
