// node scripts/gpu/summary.mjs RESULTS OUT: what the stages of run.sh left in RESULTS as one results.json and a summary.md for docs/benchmarks.md.
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const [from, out] = process.argv.slice(2);
const read = (name) => {
  try {
    return JSON.parse(readFileSync(join(from, `${name}.json`), 'utf8'));
  } catch {
    return undefined; // The stage has not run, or was ended while it wrote.
  }
};
const lines = (name) =>
  existsSync(join(from, `${name}.jsonl`))
    ? readFileSync(join(from, `${name}.jsonl`), 'utf8')
        .split('\n')
        .filter(Boolean)
        .map((line) => JSON.parse(line))
    : [];
const table = (titles, rows) =>
  [titles, titles.map(() => '---'), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n');
/** Of all test files that began: a file without a report did not end. */
function testResults() {
  const names = readdirSync(from).flatMap((file) => /^(jest-.*)\.txt$/.exec(file)?.[1] ?? []);
  if (names.length === 0) return undefined;
  const all = { passed: 0, failed: 0, skipped: 0, failures: [] };
  for (const name of names) {
    const report = read(name);
    const file = name.replace('jest-', '');
    if (!report) {
      all.failed++;
      all.failures.push({ file, test: 'the file did not end', message: '' });
      continue;
    }
    all.passed += report.numPassedTests;
    all.failed += report.numFailedTests + report.numRuntimeErrorTestSuites;
    all.skipped += report.numPendingTests;
    for (const { message, assertionResults } of report.testResults) {
      const failed = assertionResults.filter(({ status }) => status === 'failed');
      if (failed.length === 0 && message)
        all.failures.push({ file, test: 'the file', message: message.slice(0, 2000) });
      for (const { fullName, failureMessages } of failed) {
        all.failures.push({ file, test: fullName, message: failureMessages.join('\n').slice(0, 600) });
      }
    }
  }
  return all;
}
const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
const tera = (value, digits = 1) => (value / 1e12).toFixed(digits);

const stages = [...new Map(lines('stages').map((stage) => [stage.name, stage])).values()];
const sanitizer = lines('sanitizer');
const [device, determinism, parity, ops, layers, model, small] = [
  'device',
  'determinism',
  'parity',
  'ops',
  'layers',
  'model',
  'small',
].map(read);
const tests = testResults();
const results = { stages, device, tests, determinism, sanitizer, parity, ops, layers, model, small };
writeFileSync(join(out, 'results.json'), `${JSON.stringify(results, null, 1)}\n`);

const parts = [];
const section = (title, ...texts) => parts.push(`## ${title}`, ...texts.filter(Boolean));
const gpu = device?.gpu || ops?.device || 'no GPU';
parts.push(`# On a GPU: ${gpu.split(',')[0]}`);
parts.push(
  `Measured on ${device?.date ?? new Date().toISOString().slice(0, 10)}: ${gpu}; ${device?.processor ?? ''}, ${device?.cores ?? '?'} cores; ` +
    `PyTorch ${device?.torch ?? '-'}; ${device?.nvcc || 'no nvcc'}.`,
);
parts.push(
  table(
    ['stage', 'result', 'seconds'],
    stages.map(({ name, status, seconds, limit }) => {
      const words = { 0: 'passed', 124: `stopped after its ${limit} s`, 137: `stopped after its ${limit} s` };
      return [name, typeof status === 'string' ? status : (words[status] ?? `failed (${status})`), seconds ?? ''];
    }),
  ),
);

if (device?.ceilings?.copy || ops) {
  const rates = ops?.rates ?? device.ceilings;
  section(
    'Ceilings',
    `Products ${tera(rates.float32)} TFLOP/s in float32 (no TF32), ${tera(rates.bfloat16)} in bfloat16; a large copy moves ` +
      `${tera(rates.copy, 2)} TB/s (read and written).` +
      (ops && device?.ceilings?.copy
        ? ` By PyTorch: ${tera(device.ceilings.float32)}, ${tera(device.ceilings.bfloat16)}, ${tera(device.ceilings.copy, 2)}; by this package: ` +
          `${tera(ops.own.float32)}, ${tera(ops.own.bfloat16)}, ${tera(ops.own.copy, 2)}; the higher ones count.`
        : ''),
  );
}
if (tests) {
  section(
    'Tests of the ops on the device',
    `${tests.passed} passed, ${tests.failed} failed, ${tests.skipped} skipped.`,
    tests.failures
      .slice(0, 40)
      .map(({ file, test }) => `- ${file}: ${test}`)
      .join('\n'),
  );
}
if (determinism) {
  const different = determinism.results.filter(({ equal }) => !equal);
  section(
    'Determinism',
    `${determinism.results.length - different.length} of ${determinism.results.length} runs gave equal bits when repeated beside other work.`,
    different.map(({ name, failure }) => `- ${name}: ${failure ?? 'different bits'}`).join('\n'),
  );
}
if (sanitizer.length > 0)
  section(
    'compute-sanitizer',
    sanitizer
      .map(({ tool, status, summary }) => `- ${tool}: ${status === 0 ? 'clean' : `exit code ${status}`}; ${summary}`)
      .join('\n'),
  );
if (parity) {
  section(
    'The bundled model, processor against GPU',
    table(
      [
        'run',
        'mask entries that differ',
        'by rounding alone',
        'worst layer',
        'perplexity, processor',
        'perplexity, GPU',
        'difference',
        'by rounding alone',
        'passed',
      ],
      parity.results.map((r) =>
        r.failure
          ? [r.name, r.failure, '', '', '', '', '', '', 'no']
          : [
              r.name,
              r.differing === undefined ? '' : percent(r.differing, 3),
              r.rounding === undefined ? '' : percent(r.rounding, 3),
              r.worst ? percent(r.worst.share, 3) : '',
              r.perplexity.cpu.toFixed(4),
              r.perplexity.device.toFixed(4),
              (r.perplexity.device / r.perplexity.cpu - 1).toExponential(1),
              r.perplexity.other === undefined ? '' : (r.perplexity.other / r.perplexity.cpu - 1).toExponential(1),
              r.passed ? 'yes' : 'no',
            ],
      ),
    ),
  );
}
if (layers) {
  const rows = layers.results.flatMap(({ shape, ours, peers }) =>
    Object.entries(ours).flatMap(([name, run]) =>
      Object.entries(peers)
        .filter(([peer]) => peer.startsWith(name.split('-')[0]))
        .map(([peer, result]) => [
          shape.join(' × '),
          name,
          `${(1000 * run.seconds).toFixed(0)} ms`,
          `${(1000 * run.solveSeconds).toFixed(0)} ms`,
          peer,
          ...(result.failure || run.error === undefined
            ? [result.failure ?? '', '', '', '']
            : [
                `${(1000 * result.seconds).toFixed(0)} ms`,
                `${(result.seconds / run.seconds).toFixed(1)} × / ${(result.seconds / run.solveSeconds).toFixed(1)} ×`,
                run.error.toFixed(5),
                (run.error / result.error).toFixed(4),
              ]),
        ]),
    ),
  );
  section(
    `One layer against the published code, ${percent(layers.sparsity)} sparsity`,
    table(
      [
        'layer',
        'ours',
        'whole call',
        'solve',
        'published code',
        'its time',
        'speed (whole call / solve)',
        'error',
        'error / published',
      ],
      rows,
    ),
    'The whole call copies weight and Gram matrix to the device and the result back, and checks and measures; the solve, like the time of the ' +
      'published code, does not. `alps` is the published code as it is, with the eigendecomposition on the processor; `alps-device` the same ' +
      'with all its tensors on the GPU.',
  );
}
for (const [title, model] of [
  [`A model of LLaMA2-7B's shapes`, results.model],
  [`A model of SmolLM2-135M's shapes`, results.small],
]) {
  if (!model?.millisecondsPerBlock) continue;
  const { shape } = model;
  const phases = ['read', 'forward', 'solve', 'write'];
  section(
    title,
    `Random weights, hidden size ${shape.hidden}, intermediate size ${shape.intermediate}, ${shape.windows} × ${shape.length} tokens, ` +
      `${percent(model.sparsity)} sparsity, ${model.precision}; ${model.blocks.length} of its blocks were pruned: ` +
      `${(model.millisecondsPerBlock / 1000).toFixed(model.millisecondsPerBlock < 1000 ? 3 : 2)} s a block` +
      (model.allBlocksSeconds
        ? `; times ${model.of}, with what comes before and after the blocks: ${model.allBlocksSeconds.toFixed(model.allBlocksSeconds < 10 ? 1 : 0)} s.`
        : `; times ${model.of}: ${((model.millisecondsPerBlock * model.of) / 1000).toFixed(0)} s.`) +
      ` Peak of the GPU's memory: ${(model.memoryPeak / 2 ** 30).toFixed(1)} GiB.`,
    table(
      ['block', 'seconds', ...phases],
      model.blocks
        .slice(0, 8)
        .map((b) => [
          b.block,
          (b.milliseconds / 1000).toFixed(3),
          ...phases.map((p) => (b.phases[p] / 1000).toFixed(3)),
        ]),
    ),
  );
}
if (ops) {
  for (const n of [...new Set(ops.results.map((result) => result.n))]) {
    const rows = ops.results.filter((result) => result.n === n);
    section(
      `Ops, n = ${n}, ${rows[0].tokens} tokens`,
      table(
        ['op', 'µs', 'TFLOP/s', 'TB/s', 'bound by', 'share of the ceiling'],
        rows.map((r) =>
          r.error
            ? [r.op, r.error, '', '', '', '']
            : [
                r.op,
                (1000 * r.milliseconds).toPrecision(3),
                r.flops > 0 ? tera(r.flopsPerSecond, 2) : '',
                tera(r.bytesPerSecond, 3),
                r.boundBy,
                percent(r.share),
              ],
        ),
      ),
    );
  }
  parts.push('Times are of many queued calls, divided by their number; shares above 100 % come from the caches.');
}
writeFileSync(join(out, 'summary.md'), `${parts.join('\n\n')}\n`);
