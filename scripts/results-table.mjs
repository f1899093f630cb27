// Prints the tables of docs/results/README.md from a report.json of alps compare or alps paper.
//
//   node scripts/results-table.mjs REPORT.json
import { readFileSync } from 'node:fs';

const [path, ...rest] = process.argv.slice(2);
if (!path || rest.length > 0) {
  process.stderr.write('usage: node scripts/results-table.mjs REPORT.json\n');
  process.exit(2);
}
const report = JSON.parse(readFileSync(path, 'utf8'));
const { cells, dense, texts } = report.comparison ?? report;
const unique = (values) => [...new Set(values)];
const patterns = unique(cells.map(({ pattern }) => pattern));
const titles = unique(cells.map(({ title }) => title));
const cellOf = (title, pattern) => cells.find((cell) => cell.title === title && cell.pattern === pattern);
const row = (values) => `| ${values.join(' | ')} |\n`;

function table(head, pick, { best = false, denseValue } = {}) {
  const lowest = patterns.map((pattern) =>
    Math.min(...cells.filter((cell) => cell.pattern === pattern).map((cell) => pick(cell))),
  );
  const show = (value) => (value >= 1000 ? value.toFixed(0) : value >= 100 ? value.toFixed(1) : value.toPrecision(3));
  let out = row([head, ...patterns]) + row(['---', ...patterns.map(() => '---:')]);
  if (denseValue !== undefined) out += row(['dense', ...patterns.map(() => show(denseValue))]);
  for (const title of titles) {
    const values = patterns.map((pattern, i) => {
      const cell = cellOf(title, pattern);
      if (!cell) return '–'; // it gave no numbers
      const value = pick(cell);
      return best && value === lowest[i] ? `**${show(value)}**` : show(value);
    });
    out += row([title, ...values]);
  }
  return out;
}

for (const { name, windows, length } of texts) {
  process.stdout.write(`Perplexity on \`${name}\` (${windows} windows of ${length} tokens)\n\n`);
  process.stdout.write(
    `${table('', (cell) => cell.perplexity[name], { best: true, denseValue: dense.perplexity[name] })}\n`,
  );
}
process.stdout.write(
  `Mean relative error of a layer's outputs\n\n${table('', (cell) => cell.meanError, { best: true })}\n`,
);
process.stdout.write(`Seconds to prune\n\n${table('', (cell) => cell.milliseconds.prune / 1000)}\n`);
