// npm run bench -- [ops|layer|model|growth]... [--quick] [--out results.json] [--device cpu|cuda] [--threads N] [--shapes 576x576,...]
//                 [--model FOLDER --text FILE] [--windows 32] [--length 1024]
// npm run bench -- compare A.json B.json [--fail-above 1.1]
// npm run bench -- report results.json [--write docs/benchmarks.md]
//
// Measures ops, layers, a whole model and growth (all of them without an argument) against the ceilings that the machine reaches in the
// same run: large products in float32 and bfloat16, a large copy. One JSON file; progress goes to stderr, the report to stdout.
import { readFileSync, writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { Device } from '../lib/index.js';
import { measureGrowth } from './growth.mjs';
import { measureLayers } from './layers.mjs';
import { machineOf } from './machine.mjs';
import { measureModel } from './model.mjs';
import { measureOps, quietCeilings } from './ops.mjs';
import { compared, reportOf, written } from './report.mjs';

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    quick: { type: 'boolean', default: false },
    out: { type: 'string' },
    device: { type: 'string', default: 'auto' },
    threads: { type: 'string', default: '0' },
    shapes: { type: 'string' },
    model: { type: 'string' },
    text: { type: 'string' },
    windows: { type: 'string' },
    length: { type: 'string' },
    'fail-above': { type: 'string' },
    write: { type: 'string' },
  },
});
const parts = { ops: opsPart, layer: measureLayers, model: measureModel, growth: measureGrowth };
const read = (path) => JSON.parse(readFileSync(path, 'utf8'));
const say = (line) => process.stderr.write(`bench: ${line}\n`);

async function opsPart(device, rates, { isQuick, add }) {
  const sizes = isQuick ? [128] : device.name === 'cpu' ? [576, 2048] : [1024, 4096];
  const tokens = isQuick ? 256 : 4096;
  const results = await measureOps(device, { sizes, tokens, rates, least: isQuick ? 2 : 40 });
  for (const { op, milliseconds, ...result } of results)
    add({ id: `ops n=${result.n} ${op}`, part: 'ops', op, ...result, median: milliseconds, repeats: 3 });
}

async function measure(names) {
  const device = Device.open(options.device, { threads: Number(options.threads) });
  const machine = machineOf(device);
  const isQuick = options.quick;
  const { rates, waiting } = isQuick
    ? await quietCeilings(device, { sizes: [512], bytes: 2 ** 24 }, 1)
    : await quietCeilings(device);
  const { float32, bfloat16, copy } = rates;
  say(`${device.info().details}; ${gig(float32)} GFLOP/s float32, ${gig(bfloat16)} bfloat16, copy ${gig(copy)} GB/s`);
  const bench = { machine, quick: isQuick, ceilings: { ...rates, waiting }, results: [] };
  const add = (result) => {
    bench.results.push(result);
    if (options.out) writeFileSync(options.out, `${JSON.stringify(bench, null, 1)}\n`);
  };
  for (const name of names) await parts[name](device, rates, { ...options, isQuick, say, add });
  process.stdout.write(reportOf(bench));
  if (bench.results.some(({ error }) => typeof error === 'string')) process.exitCode = 1;
}

const gig = (value) => (value / 1e9).toFixed(0);

const [command, ...files] = positionals;
if (command === 'compare') {
  if (files.length !== 2) throw new Error('compare A.json B.json');
  const { text, slower } = compared(...files.map(read), Number(options['fail-above'] ?? Number.POSITIVE_INFINITY));
  process.stdout.write(text);
  if (slower.length > 0) process.exitCode = 1;
} else if (command === 'report') {
  if (files.length !== 1) throw new Error('report results.json');
  const bench = read(files[0]);
  if (options.write) writeFileSync(options.write, written(readFileSync(options.write, 'utf8'), bench));
  else process.stdout.write(reportOf(bench));
} else {
  const unknown = positionals.find((name) => !parts[name]);
  if (unknown) throw new Error(`Expected ${Object.keys(parts).join(', ')}, compare or report but received ${unknown}`);
  await measure(positionals.length > 0 ? positionals : Object.keys(parts));
}
