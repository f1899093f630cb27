// Run by test 82 in a process of its own, with the shim of test/fixtures/fault-shim.c preloaded: the same job again and again, each time
// with another of its calls of the operating system failing, until none fails. Each failure is followed by the same job without one.
// Arguments: the library's folder, and JSON { kind, folder, errno, log, stride, options }. Prints one JSON line a fault.
import { accessSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { digests } from './digests.mjs';

const [lib, json] = process.argv.slice(2);
const { kind, folder, errno, log, stride, options } = JSON.parse(json);
const { prune, evaluatePerplexity, AlpsError, Device } = await import(join(lib, 'index.js'));
const { CellStore } = await import(join(lib, 'compare/cell-store.js'));
const device = Device.open('cpu', { threads: 1 });
const out = join(folder, 'out');

/** Cells that earlier runs stored. */
let finished = 0;
const countCells = () => {
  const names = existsSync(out) ? readdirSync(out) : [];
  finished = names.filter((name) => /^[0-9a-f]+\.json$/.test(name)).length;
};

/** Two cells; those that are stored are not computed again. */
async function cells() {
  const store = await CellStore.open(out);
  const all = [];
  for (const key of ['first', 'second']) all.push(await store.take({ key }, async () => `value of ${key}`));
  if (all.filter((cell) => cell.stored).length < finished) throw new Error('a stored cell was computed again');
  return all.map(({ result }) => result);
}

// What a job leaves or gives back must be the same after a fault as without.
const jobs = {
  prune: { run: () => prune({ out, device, ...options }), result: () => digests(out) },
  evaluate: { run: async () => (await evaluatePerplexity(options)).perplexity, result: (perplexity) => perplexity },
  cells: { run: cells, result: (all) => all },
};
const { run, result } = jobs[kind];
const resultOf = (given) => JSON.stringify(result(given));
const arm = (at) => accessSync(`/alps-fault/arm/${at}/${errno}`);
const openFiles = () => readdirSync('/proc/self/fd').length;
const clear = () => {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder);
};

clear();
const expected = resultOf(await run());
process.stdout.write('\n'); // which opens it
const files = openFiles();
for (let at = 1; ; at += stride) {
  clear();
  rmSync(log, { force: true });
  countCells();
  const report = { code: 'none', message: '' };
  arm(at);
  let given;
  try {
    given = await run();
  } catch (error) {
    report.code = error instanceof AlpsError ? error.code : String(error?.stack);
    report.message = error?.message;
  }
  arm(0);
  if (report.code === 'none') report.same = resultOf(given) === expected;
  if (!existsSync(log)) break;
  const [number, call, ...path] = readFileSync(log, 'utf8').split('\n')[0].split(' ');
  Object.assign(report, { number: Number(number), call, path: path.join(' ') });
  report.published = existsSync(out);
  // An op that runs holds its memory until it is done.
  for (let i = 0; i < 500 && device.info().memoryUsed > 0; i++) await setTimeout(10);
  report.leakedFiles = openFiles() - files;
  report.leakedBytes = device.info().memoryUsed;
  if (report.code !== 'none') {
    countCells();
    try {
      report.same = resultOf(await run()) === expected;
    } catch (error) {
      report.again = error.message;
    }
    report.left = readdirSync(folder).filter((name) => name !== 'out');
  }
  process.stdout.write(`${JSON.stringify(report)}\n`);
}
