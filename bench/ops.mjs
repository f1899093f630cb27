// node bench/ops.mjs [--device cpu|cuda|cuda:N] [--sizes N,N] [--tokens N] [--only NAME] [--ceilings FILE] [--json] [--out FILE] [--once]
// Every op (bench/op-cases.mjs) on weights [n, n] and activations [tokens, n]: milliseconds, GFLOP/s, GB/s, and its share of what the machine
// reaches: the time that its operations and bytes need at the measured rates, over the time it took. The rates are a large product of this
// package in float32 and in bfloat16 and a large copy, measured in the same run, or those of --ceilings (JSON with float32, bfloat16 in
// FLOP/s and copy in B/s), whichever are higher. A share above 100 % means that the tensors stayed in the caches.
// --once queues each op once and times nothing: for checkers of memory and races.
import { readFileSync, writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { profile } from '../lib/device/profile.js';
import { Device } from '../lib/index.js';
import { cases, largest, Maker } from './op-cases.mjs';
import { atRates } from './phases.mjs';
import { disturbed, watchWaiting } from './waiting.mjs';

/** Milliseconds of `count` calls, to the end of the work. */
async function time(stream, queue, count) {
  await stream.sync();
  const began = performance.now();
  for (let i = 0; i < count; i++) queue();
  await stream.sync();
  return performance.now() - began;
}

/** Milliseconds of one call: three timings, in ascending order, of as many calls as take `least` milliseconds. */
async function measure(stream, { run, restore }, least) {
  const both = restore
    ? () => {
        restore();
        run();
      }
    : run;
  await time(stream, both, 2);
  const one = Math.max(await time(stream, both, 1), 1e-3);
  const count = Math.min(2000, Math.max(1, Math.ceil(least / one)));
  const timings = [];
  for (let i = 0; i < 3; i++) timings.push((await timeOfRun()) / count);
  return timings.sort((a, b) => a - b);

  /** Without `restore`: on the processor by its profile, on a GPU, which a profile would wait for, as a difference. */
  async function timeOfRun() {
    if (!restore) return time(stream, run, count);
    if (stream.device.name !== 'cpu') {
      const extra = await time(stream, restore, count);
      return Math.max((await time(stream, both, count)) - extra, 0);
    }
    profile(stream.device, true);
    const phased = () => {
      stream.enterPhase('restore');
      restore();
      stream.enterPhase('run');
      run();
    };
    await time(stream, phased, count);
    return profile(stream.device, false).reduce(
      (sum, { phase, milliseconds }) => sum + (phase === 'run' ? milliseconds : 0),
      0,
    );
  }
}

/** FLOP/s of products of n × n in all formats that the device has, of the best n, and B/s (read and written) of a copy of `bytes`. */
export async function measureCeilings(
  device,
  {
    sizes = device.name === 'cpu' ? [768, 1536, 2048] : [8192],
    bytes = device.name === 'cpu' ? 2 ** 27 : 2 ** 31,
  } = {},
) {
  const stream = device.stream();
  const t = new Maker(stream, Math.max(...sizes.map((n) => n * n), bytes / 4));
  const rate = {};
  const best = async (queue) => {
    await time(stream, queue, 2);
    let fastest = Number.POSITIVE_INFINITY;
    for (let i = 0; i < 3; i++) fastest = Math.min(fastest, (await time(stream, queue, 3)) / 3);
    return fastest / 1000;
  };
  for (const format of ['float32', 'bfloat16', ...(device.info().int8Products ? ['int8'] : [])]) {
    rate[format] = 0;
    const dtype = format === 'int8' ? 'bfloat16' : format;
    for (const n of sizes) {
      const [a, b, c] = [t.floats(dtype, n, n), t.floats(dtype, n, n), t.zeros('float32', n, n)];
      const multiply = () => (format === 'int8' ? stream.int8Gemm(a, b, c) : stream.gemm(a, b, c));
      rate[format] = Math.max(rate[format], (2 * n ** 3) / (await best(multiply)));
      t.clear();
    }
  }
  const out = t.zeros('float32', t.pool.size);
  rate.copy = (8 * t.pool.size) / (await best(() => stream.copy(t.pool, out)));
  t.dispose();
  await stream.sync();
  stream.dispose();
  return rate;
}

/** The same, again where it was disturbed; the highest rates count. `waiting` is that of the least disturbed time. */
export async function quietCeilings(device, options, tries = 4) {
  let rates = {};
  let least = 1;
  for (let i = 0; i < tries && least > disturbed; i++) {
    if (i > 0) await new Promise((resolve) => setTimeout(resolve, 2000));
    const waiting = watchWaiting();
    const own = await measureCeilings(device, options);
    least = Math.min(least, waiting());
    rates = Object.fromEntries(Object.entries(own).map(([name, rate]) => [name, Math.max(rate, rates[name] ?? 0)]));
  }
  return { rates, waiting: least };
}

/**
 * All ops whose name contains `only`, for each n of `sizes`.
 * @param rates ceilings in FLOP/s and B/s; undefined: each op is queued once and nothing is timed
 * @param least milliseconds of one timing, about
 */
export async function measureOps(device, { sizes, tokens: given, only = '', rates, least }) {
  const stream = device.stream();
  const results = [];
  for (const n of sizes) {
    const tokens = given ?? (n >= 1024 ? 8192 : 2 * n);
    const t = new Maker(stream, largest(n, tokens));
    for (const { name, dtype, flops, bytes, make } of cases(n, tokens)) {
      if (!name.includes(only)) continue;
      const result = { n, tokens, op: name, dtype, flops, bytes };
      try {
        const op = make(t, stream);
        if (rates) {
          const waiting = watchWaiting();
          const [best, median] = await measure(stream, op, least);
          const seconds = median / 1000;
          const atLeast = atRates({ flops, bytes, dtype }, rates);
          Object.assign(result, {
            milliseconds: median,
            best,
            waiting: waiting(),
            flopsPerSecond: flops / seconds,
            bytesPerSecond: bytes / seconds,
            boundBy: atLeast.products > atLeast.memory ? 'products' : 'memory',
            share: Math.max(atLeast.products, atLeast.memory) / seconds,
          });
        } else {
          op.restore?.();
          op.run();
          await stream.sync();
        }
      } catch (error) {
        Object.assign(result, { error: `${error.code ?? error.name}: ${error.message}` });
      }
      results.push(result);
      t.clear();
      if (result.error) process.stderr.write(`ops: ${name}, n = ${n}: ${result.error}\n`);
    }
    t.dispose();
    await stream.sync();
  }
  stream.dispose();
  return results;
}

async function main() {
  const { values: options } = parseArgs({
    options: {
      device: { type: 'string', default: 'cpu' },
      sizes: { type: 'string' },
      tokens: { type: 'string' },
      only: { type: 'string', default: '' },
      ceilings: { type: 'string' },
      json: { type: 'boolean', default: false },
      out: { type: 'string' },
      once: { type: 'boolean', default: false },
    },
  });
  const device = Device.open(options.device === 'cuda' ? 'cuda:0' : options.device);
  const isCpu = device.name === 'cpu';
  const own = options.once ? { float32: 1, bfloat16: 1, copy: 1 } : await measureCeilings(device);
  const given = options.ceilings ? JSON.parse(readFileSync(options.ceilings, 'utf8')).ceilings : {};
  const rates = Object.fromEntries(Object.keys(own).map((key) => [key, Math.max(own[key], given[key] ?? 0)]));
  const results = await measureOps(device, {
    sizes: (options.sizes ?? (isCpu ? '512' : '1024,4096')).split(',').map(Number),
    tokens: options.tokens && Number(options.tokens),
    only: options.only,
    rates: options.once ? undefined : rates,
    least: isCpu ? 40 : 60,
  });

  const report = { date: new Date().toISOString(), device: device.info().details, own, rates, results };
  if (options.out) writeFileSync(options.out, `${JSON.stringify(report, null, 1)}\n`);
  if (options.json) {
    process.stdout.write(`${JSON.stringify(report, null, 1)}\n`);
  } else if (options.once) {
    process.stdout.write(
      `${results.filter(({ error }) => !error).length} of ${results.length} ops ran on ${report.device}\n`,
    );
  } else {
    const giga = (value) => (value / 1e9).toFixed(value < 1e10 ? 1 : 0);
    process.stdout.write(
      `${report.device}; products ${giga(rates.float32)} GFLOP/s float32, ${giga(rates.bfloat16)} bfloat16; copy ${giga(rates.copy)} GB/s\n\n` +
        '| n | op | ms | GFLOP/s | GB/s | bound by | share |\n|---|---|---|---|---|---|---|\n',
    );
    for (const r of results) {
      const cells = r.error
        ? [r.n, r.op, r.error, '', '', '', '']
        : [
            r.n,
            r.op,
            r.milliseconds.toPrecision(3),
            r.flops > 0 ? giga(r.flopsPerSecond) : '',
            giga(r.bytesPerSecond),
            r.boundBy,
            `${(100 * r.share).toFixed(0)} %`,
          ];
      process.stdout.write(`| ${cells.join(' | ')} |\n`);
    }
  }
  if (results.some(({ error }) => error)) process.exitCode = 1;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await main();
