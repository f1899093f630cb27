// The main job on the bundled model: prune it at 50 % and 70 % with ALPS and with magnitude pruning (MP), evaluate all on held-out
// speeches, print a table. Sets up what it needs first.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { root, setup } from './setup.mjs';

const model = join(root, 'models', 'union-4m');
const calibration = join(model, 'calibration.txt.gz');
const heldOut = join(model, 'held-out.txt.gz');
const length = 256;

try {
  setup();
} catch (error) {
  process.stderr.write(`setup: ${error.message}\n`);
  process.exit(1);
}
const { evaluatePerplexity, prune } = await import(pathToFileURL(join(root, 'lib', 'index.js')).href);
const scratch = mkdtempSync(join(tmpdir(), 'alps-demo-'));
try {
  const began = performance.now();
  const rows = [];
  const evaluate = (folder) => evaluatePerplexity({ model: folder, text: heldOut, length });
  const dense = await evaluate(model);
  rows.push(['dense', '-', '-', dense.perplexity.toFixed(2), '-']);
  for (const sparsity of [0.5, 0.7]) {
    for (const method of ['magnitude', 'alps']) {
      const out = join(scratch, `${method}-${sparsity}`);
      process.stderr.write(`demo: ${method}, ${sparsity * 100} %\n`);
      const report = await prune({
        model,
        out,
        sparsity,
        method,
        calibration: { text: calibration, windows: 128, length },
      });
      const { perplexity } = await evaluate(out);
      const seconds = (report.milliseconds.total / 1000).toFixed(1);
      rows.push([
        method,
        `${(report.sparsity * 100).toFixed(1)} %`,
        report.meanError.toFixed(4),
        perplexity.toFixed(2),
        `${seconds} s`,
      ]);
    }
  }
  const header = ['method', 'sparsity', 'mean layer error', 'perplexity', 'time'];
  const widths = header.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i].length)));
  const line = (cells) =>
    cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  ');
  process.stdout.write(
    `${[line(header), widths.map((w) => '-'.repeat(w)).join('  '), ...rows.map(line)].join('\n')}\n\n`,
  );
  process.stdout.write(
    `Held-out speeches: ${dense.windows} windows of ${dense.length} tokens, ${dense.scoredTokens} tokens scored. ` +
      `All of it took ${((performance.now() - began) / 1000).toFixed(0)} s.\n`,
  );
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
