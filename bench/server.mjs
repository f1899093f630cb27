// node bench/server.mjs [--seconds 10] [--json]
// The example server under autocannon: answers while nothing else happens, answers while layers are pruned, uploads, bad requests.
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { cpus, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { writeSafetensors } from '../lib/index.js';

const autocannon = createRequire(import.meta.url)('autocannon'); // by require, which also looks in NODE_PATH
const { values } = parseArgs({
  options: { seconds: { type: 'string', default: '10' }, json: { type: 'boolean', default: false } },
});
const duration = Number(values.seconds);
const load = loadavg()[0];

const scratch = await mkdtemp(join(tmpdir(), 'alps-bench-server-'));
const script = fileURLToPath(new URL('../examples/server/server.mjs', import.meta.url));
const server = spawn(process.execPath, [script, '--port', '0', '--max-queued', '64', '--keep', '20'], {
  stdio: ['ignore', 'ignore', 'pipe'],
});
server.stderr.setEncoding('utf8');
const url = await new Promise((resolve) => {
  const find = (data) => {
    const found = /listening on (http:[^"]+)/.exec(data);
    if (found) resolve(found[1]);
  };
  server.stderr.on('data', find);
});

async function upload(n) {
  const gram = new Float32Array(n * n);
  for (let i = 0; i < n; i++) gram[i * n + i] = 1 + (i % 5);
  const weight = Float32Array.from({ length: n * n }, (_, i) => Math.sin(i * 1.7));
  const path = join(scratch, `${n}.safetensors`);
  const tensor = (name, { buffer }) => ({ name, dtype: 'F32', shape: [n, n], bytes: new Uint8Array(buffer) });
  await writeSafetensors(path, [tensor('weight', weight), tensor('gram', gram)]);
  return readFile(path);
}

const [small, wide] = [await upload(64), await upload(1024)];
const post = (body, path = '/layers?sparsity=0.7') => ({ method: 'POST', path, body });
const get = (path) => ({ method: 'GET', path });

const health = async () => (await fetch(`${url}/healthz`)).json();
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Keeps the queue from running dry with layers of 1024 inputs and outputs; what is left of them is cancelled. */
async function pruning(work) {
  const ids = [];
  let going = true;
  const keep = (async () => {
    while (going) {
      if ((await health()).queued > 3) await sleep(50);
      else ids.push((await (await fetch(`${url}/layers?sparsity=0.7`, { method: 'POST', body: wide })).json()).id);
    }
  })();
  try {
    return await work();
  } finally {
    going = false;
    await keep;
    for (const id of ids) await fetch(`${url}/jobs/${id}`, { method: 'DELETE' });
    await idle();
  }
}

async function idle() {
  for (let now = await health(); now.running + now.queued > 0; now = await health()) await sleep(20);
}

const rows = [];
async function measure(title, options) {
  const result = await autocannon({ url, duration, connections: 20, ...options });
  const { requests, latency, statusCodeStats = {}, errors, timeouts } = result;
  const codes = Object.entries(statusCodeStats).map(([code, { count }]) => `${code}: ${count}`);
  rows.push({
    title,
    perSecond: requests.average,
    p50: latency.p50,
    p99: latency.p99,
    max: latency.max,
    codes: codes.join(', '),
    errors: errors + timeouts,
  });
}

await measure('GET /healthz', { requests: [get('/healthz')] });
await pruning(() => measure('GET /healthz while layers are pruned', { requests: [get('/healthz')] }));
await pruning(() => measure('GET /metrics while layers are pruned', { requests: [get('/metrics')] }));
await measure('POST /layers, 64 wide', { requests: [post(small)] });
await idle();
const bad = [post('nonsense'), post(small, '/layers?sparsity=7'), get('/nothing'), get('/jobs/none'), get('/layers')];
await measure('bad requests', { requests: bad });

const metrics = await (await fetch(`${url}/metrics`)).text();
const value = (name) => Number(new RegExp(`^${name} (.*)$`, 'm').exec(metrics)?.[1]);
const rss = value('process_resident_memory_bytes') / 2 ** 20;
const delay = value('nodejs_eventloop_delay_seconds\\{quantile="0.99"\\}') * 1000;
server.kill('SIGTERM');
const [code] = await new Promise((resolve) => server.on('exit', (...end) => resolve(end)));
await rm(scratch, { recursive: true });

if (values.json) console.log(JSON.stringify({ load, rows, rss, delay, code }, null, 2));
else {
  console.log(
    `autocannon, 20 connections, ${duration} s each; load of the machine before: ${load.toFixed(1)} on ${cpus().length} cores\n`,
  );
  console.log(
    '| requests | a second | p50, ms | p99, ms | max, ms | answers | errors |\n|---|---:|---:|---:|---:|---|---:|',
  );
  for (const row of rows) {
    const { title, perSecond, p50, p99, max, codes, errors } = row;
    console.log(`| ${title} | ${Math.round(perSecond)} | ${p50} | ${p99} | ${max} | ${codes} | ${errors} |`);
  }
  console.log(
    `\nServer at the end: ${rss.toFixed(0)} MiB resident, event loop p99 ${delay.toFixed(1)} ms over the run, exit code ${code}`,
  );
}
