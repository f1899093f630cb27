// What npm run bench measured as Markdown, and two runs against each other.

import { disturbed } from './waiting.mjs';

const table = (titles, rows) =>
  `${[titles, titles.map((_, i) => (i === 0 ? '---' : '---:')), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n')}\n`;
const percent = (share) => `${(100 * share).toFixed(0)} %`;
const unique = (values) => [...new Set(values)];
const digits = (value) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));
const giga = (value) => (value > 0 ? digits(value / 1e9) : '');
const mib = (bytes) => (bytes / 2 ** 20).toFixed(0);
const milliseconds = (value) => (value >= 10000 ? `${digits(value / 1000)} s` : `${digits(value)} ms`);
const times = (value) => `${value.toPrecision(value >= 100 ? 4 : 3)} ×`;
const titleOf = (pattern) => (pattern.includes(':') ? pattern : `${Math.round(100 * Number(pattern))} %`);

/** Behind a time that others' work on the machine has disturbed. */
const mark = ({ waiting }) => (waiting > disturbed ? ' †' : '');

/** The machine, its load and what it reaches. */
function machineText({ machine, ceilings, quick }, results) {
  const { date, cpu, architecture, cores, memory, device, node, version, loadBefore } = machine;
  const day = new Date(date).toLocaleDateString('en-GB', {
    day: 'numeric',
    month: 'long',
    year: 'numeric',
    timeZone: 'UTC',
  });
  const reached = ceilings
    ? ` Products of the device reach ${giga(ceilings.float32)} GFLOP/s in float32 and ${giga(ceilings.bfloat16)} in bfloat16` +
      `${device.bf16Products ? '' : ' (which it does not have in hardware)'}${ceilings.int8 ? `, of 8-bit integers ${giga(ceilings.int8)}` : ''}, a large copy ${giga(ceilings.copy)} GB/s${mark(ceilings)}.`
    : '';
  return (
    `Measured on ${day}: ${cpu}${architecture ? ` (${architecture})` : ''}, ${device.details}, ${cores} cores, ${(memory / 2 ** 30).toFixed(0)} GiB, ` +
    `Node ${node.slice(1)}, alps-prune ${version}, load ${loadBefore.toFixed(2)} before${quick ? '; a quick run' : ''}.${reached}` +
    `${[...results, ceilings ?? {}].some(mark) ? ` † Disturbed: the threads waited for more than ${percent(disturbed)} of their time for cores that others had.` : ''}\n`
  );
}

function opsText(results) {
  const sizes = unique(results.map(({ n }) => n));
  const cell = (r) =>
    !r || typeof r.error === 'string'
      ? [r?.error ?? '', '', '']
      : [
          digits(1000 * r.median) + mark(r),
          r.boundBy === 'products' ? `${giga(r.flopsPerSecond)} GFLOP/s` : `${giga(r.bytesPerSecond)} GB/s`,
          percent(r.share),
        ];
  return (
    `Weights [n, n], ${unique(results.map(({ tokens }) => tokens)).join(', ')} tokens. The share is of what bounds the op, its products or its ` +
    `bytes; above 100 % the tensors stayed in the caches.\n\n` +
    table(
      ['op', ...sizes.flatMap((n) => [`n = ${n}, µs`, 'rate', 'share'])],
      unique(results.map(({ op }) => op)).map((op) => [
        op,
        ...sizes.flatMap((n) => cell(results.find((r) => r.op === op && r.n === n))),
      ]),
    )
  );
}

function layerText(results) {
  const patterns = unique(results.map(({ pattern }) => pattern));
  const find = (shape, method, pattern) =>
    results.find((r) => r.shape === shape && r.method === method && r.pattern === pattern);
  const shapes = unique(results.map(({ shape }) => shape));
  const pairs = shapes.flatMap((shape) => unique(results.map(({ method }) => method)).map((method) => [shape, method]));
  const phase = ({ milliseconds: time, flops, share }) =>
    `${digits(time)} ms${flops > 0 ? `, ${giga((flops / time) * 1000)}` : ''} (${percent(share)})`;
  const alps = results.filter(({ method }) => method === 'alps');
  const names = ['prepare', 'factorise', 'admm', 'refine', 'error'];
  return (
    'Whole calls of `pruneLayer` on synthetic layers (outputs × inputs), the best of some, and their share of the ceiling.\n\n' +
    table(
      ['layer', 'method', ...patterns.map(titleOf)],
      pairs.map(([shape, method]) => [
        shape.replace('x', ' × '),
        method,
        ...patterns.map((pattern) => {
          const r = find(shape, method, pattern);
          return r ? `${milliseconds(r.best)} (${percent(r.share)})${mark(r)}` : '';
        }),
      ]),
    ) +
    '\nALPS by phase: time on the device, GFLOP/s, share of the ceiling.\n\n' +
    table(
      ['layer', 'pattern', ...names],
      alps.map((r) => [
        r.shape.replace('x', ' × '),
        titleOf(r.pattern),
        ...names.map((name) => (r.phases[name] ? phase(r.phases[name]) : '')),
      ]),
    )
  );
}

function modelText(results) {
  return results
    .map((r) => {
      const { read, forward, solve, write, calibration, finish } = r.wall;
      const waiting = r.median - r.onDevice;
      const row = (name, { milliseconds: time, flops, bytes, share }) => [
        name,
        milliseconds(time),
        percent(time / r.median),
        digits(flops / 1e9),
        digits(bytes / 1e9),
        flops > 0 ? giga((flops / time) * 1000) : '',
        giga((bytes / time) * 1000),
        percent(share),
      ];
      return (
        `\`prune()\` of ${r.model} to 70 % with its defaults, ${r.windows} windows of ${r.length} tokens, ${r.precision}: ${milliseconds(r.median)}${mark(r)}, ` +
        `${percent(r.share)} of the ceiling; at most ${mib(r.memoryPeak)} MiB of tensors. Wall-clock: text ${milliseconds(calibration)}, reading ` +
        `${milliseconds(read)} (${giga((r.files.read / read) * 1000)} GB/s), forward with Gram matrices ${milliseconds(forward)}, solving ${milliseconds(solve)}, ` +
        `writing ${milliseconds(write + finish)} (${giga((r.files.written / (write + finish)) * 1000)} GB/s). Time on the device:\n\n` +
        table(
          ['phase', 'time', 'of all', 'GFLOP', 'GB', 'GFLOP/s', 'GB/s', 'of the ceiling'],
          [
            ...Object.entries(r.phases).map(([name, phase]) => row(name, phase)),
            ['not on the device', milliseconds(waiting), percent(waiting / r.median), '', '', '', '', ''],
          ],
        ) +
        '\nOps with the most time above their ceiling:\n\n' +
        table(
          ['op', 'phase', 'tensors', 'calls', 'time', 'at the ceiling', 'share'],
          r.gaps
            .slice(0, 8)
            .map((gap) => [
              gap.op,
              gap.phase,
              gap.arguments.join(', '),
              gap.calls,
              milliseconds(gap.milliseconds),
              milliseconds(gap.atCeiling),
              percent(gap.atCeiling / gap.milliseconds),
            ]),
        )
      );
    })
    .join('\n');
}

function growthText(results) {
  const one = (axis) => results.find((r) => r.axis === axis && r.factor === 1);
  const { hidden, blocks, windows, length } = results[0].shape;
  return (
    `\`prune()\` of random models; at × 1 ${blocks} layers, width ${hidden}, ${windows} windows of ${length} tokens. The order is that of the largest term: time ` +
    'may grow by × to that power. Operations are counted; time that grows faster than they do is lost. Each in a process of its own.\n\n' +
    table(
      ['', '×', 'time', 'growth', 'operations', 'order', 'of the ceiling', 'tensors, MiB', 'growth', 'process, MiB'],
      results.map((r) => [
        r.axis,
        r.factor,
        milliseconds(r.best) + mark(r),
        times(r.best / one(r.axis).best),
        times(r.flops / one(r.axis).flops),
        times(r.factor ** r.order),
        percent(r.share),
        mib(r.memoryPeak),
        times(r.memoryPeak / one(r.axis).memoryPeak),
        mib(r.residentPeak),
      ]),
    )
  );
}

const oursTitles = {
  'alps-ladder': 'ALPS',
  'alps-ladder-float32': 'ALPS in float32',
  'alps-balanced': 'ALPS, balanced in float32',
  'alps-balanced-mixed': 'ALPS, balanced',
  'alps-published': 'ALPS, published schedule',
  alps: 'ALPS',
  'alps-paper': 'ALPS as published',
  'alps-own-targets': 'ALPS without dense targets',
  'alps-balanced-own-targets': 'ALPS, balanced, without dense targets',
};
const peerTitles = { sparsegpt: 'SparseGPT', wanda: 'Wanda', dsnot: 'DSnoT', magnitude: 'magnitude' };
const named = (name) => oursTitles[name] ?? peerTitles[name] ?? name;

function peersText(results) {
  const seconds = (value) => milliseconds(1000 * value);
  const layers = results.filter(({ shape }) => shape);
  const models = results.filter(({ model }) => model);
  // The published code may prune more than it was asked to.
  const otherSparsity = ({ sparsity, peerSparsity }) =>
    Math.abs(sparsity - peerSparsity) > 0.005 ? ` (at ${(100 * peerSparsity).toFixed(1)} %)` : '';
  const layerRow = (r) => [
    r.shape.replace('x', ' × '),
    titleOf(r.pattern),
    named(r.ours),
    seconds(r.seconds),
    seconds(r.solveSeconds),
    ...(r.failure
      ? [r.failure, '', '', '', '', '']
      : [
          seconds(r.peerSeconds),
          times(r.peerSeconds / r.seconds) + mark(r),
          times(r.peerSeconds / r.solveSeconds),
          digits(r.error),
          digits(r.peerError) + otherSparsity(r),
          (r.error / r.peerError).toFixed(4),
        ]),
  ];
  const modelRow = (r) => [
    r.model,
    titleOf(r.pattern),
    named(r.ours) + (r.peer === r.ours ? '' : ` against ${named(r.peer)}`),
    seconds(r.seconds),
    seconds(r.peerSeconds),
    times(r.peerSeconds / r.seconds),
    ...(r.peakBytes
      ? [`${mib(r.peakBytes)} MiB`, `${mib(r.peerPeakBytes)} MiB`, times(r.peerPeakBytes / r.peakBytes)]
      : ['', '', '']),
    r.perplexity?.toFixed(2) ?? '',
    r.peerPerplexity?.toFixed(2) ?? '',
  ];
  const layerTitles = [
    'layer',
    'pattern',
    'method',
    'ours',
    'solve',
    'published',
    'ratio',
    'of the solve',
    'error',
    'published',
    'ratio',
  ];
  const modelTitles = [
    ...['model', 'pattern', 'method', 'ours', 'published', 'ratio'],
    ...['peak memory', 'published', 'ratio', 'perplexity', 'published'],
  ];
  const parts = [];
  if (layers.length > 0)
    parts.push(
      'Synthetic layers (outputs × inputs) of float32, the same for both (`ALPS, bfloat16`, which is `precision: "bfloat16"`, as `prune()` takes a bfloat16 checkpoint, has the products of ADMM in 8-bit integers or bfloat16 where the processor multiplies them, `balanced` those of the refit’s steps too), as many threads for both; the best of three. Ours is the whole call, with copies, ' +
        'checks and, for ALPS and SparseGPT, the error (the others run with `errors: false`); the published code starts with the Gram matrix (Wanda, DSnoT: the sums) and ends with the pruned weight, as the solve ' +
        'does. Ratios of times above 1 are in our favour, of errors below 1.\n\n' +
        table(layerTitles, layers.map(layerRow)),
    );
  if (models.length > 0) parts.push(table(modelTitles, models.map(modelRow)));
  return parts.join('\n');
}

const sections = { ops: opsText, layer: layerText, model: modelText, growth: growthText, peers: peersText };
const titles = {
  ops: 'Ops',
  layer: 'Layers',
  model: 'A whole model',
  growth: 'Growth',
  peers: 'Against the published code',
};

/** Each part's Markdown, without a title. */
function parts(bench) {
  return unique(bench.results.map(({ part }) => part)).map((name) => {
    const results = bench.results.filter(({ part }) => part === name);
    return [name, `${machineText(bench, results)}\n${sections[name](results)}`];
  });
}

export function reportOf(bench) {
  return parts(bench)
    .map(([name, text]) => `## ${titles[name]}\n\n${text}`)
    .join('\n');
}

/** `document` with what stands between the marker comments of each measured part replaced. */
export function written(document, bench) {
  let out = document;
  for (const [name, text] of parts(bench)) {
    const [begin, end] = [`<!-- bench:${name} -->\n`, `<!-- /bench:${name} -->`];
    const [from, to] = [out.indexOf(begin), out.indexOf(end)];
    if (from < 0 || to < from) throw new Error(`Expected ${begin.trim()} and ${end} in the document`);
    out = `${out.slice(0, from + begin.length)}\n${text}\n${out.slice(to)}`;
  }
  return out;
}

/** Times of the results that both runs have, B over A, the slowest first. `slower`: those whose best time is more than `limit` times A's. */
export function compared(a, b, limit) {
  const earlier = new Map(a.results.map((result) => [result.id, result]));
  const rows = b.results
    .filter(({ id, best }) => best > 0 && earlier.get(id)?.best > 0)
    .map(({ id, best, median }) => {
      const before = earlier.get(id);
      return { id, before: before.best, after: best, ratio: best / before.best, medians: median / before.median };
    })
    .sort((x, y) => y.ratio - x.ratio);
  const slower = rows.filter(({ ratio }) => ratio > limit);
  const mean = Math.exp(rows.reduce((sum, { ratio }) => sum + Math.log(ratio), 0) / rows.length);
  const rates = ['float32', 'bfloat16', 'int8', 'copy']
    .filter((name) => a.ceilings[name] && b.ceilings[name])
    .map((name) => `${name} ${(b.ceilings[name] / a.ceilings[name]).toFixed(3)}`);
  const text =
    table(
      ['', 'A', 'B', 'B / A', 'of medians', ''],
      rows.map((r) => [
        r.id,
        milliseconds(r.before),
        milliseconds(r.after),
        r.ratio.toFixed(3),
        r.medians.toFixed(3),
        r.ratio > limit ? 'slower' : '',
      ]),
    ) +
    `\n${rows.length} in both; geometric mean of B / A ${mean.toFixed(3)}; ceilings, B / A: ${rates.join(', ')}.` +
    `${Number.isFinite(limit) ? ` Slower than ${limit} ×: ${slower.length}.` : ''}\n`;
  return { text, slower };
}
