import { spawn } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parse } from '../src/cli/arguments.js';
import { pruningOptions, pruningOptionsOf } from '../src/cli/pruning-options.js';
import { cancellingModel } from './helpers/cancelling-model.js';

// The compiled command, as users run it; `npm test` compiles it first.
const main = fileURLToPath(new URL('../lib/cli/main.js', import.meta.url));
const model = fileURLToPath(new URL('../models/union-4m', import.meta.url));
const tasks = fileURLToPath(new URL('fixtures/tasks/', import.meta.url));

let scratch: string;
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'alps-cli-compare-'));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

/** Runs a command; with `until` it gets a signal (SIGKILL) once its output has that many such lines. */
function alps(args: string[], until?: { text: string; count: number; signal?: NodeJS.Signals }) {
  const child = spawn(process.execPath, [main, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  let [stdout, stderr] = ['', ''];
  child.stderr.setEncoding('utf8').on('data', (data) => (stderr += data));
  child.stdout.setEncoding('utf8').on('data', (data) => {
    stdout += data;
    if (until && stdout.split(until.text).length > until.count) child.kill(until.signal ?? 'SIGKILL');
  });
  return new Promise<{ code: number | null; events: Record<string, unknown>[]; stderr: string }>((resolve) =>
    child.on('close', (code) => {
      const lines = stdout.split('\n').slice(0, -1);
      resolve({ code, events: code === 0 || code === 1 ? lines.map((line) => JSON.parse(line)) : [], stderr });
    }),
  );
}

test('alps compare: killed, it goes on where it was and leaves the same reports', async () => {
  const args = (out: string) => [
    ...['compare', model, '--out', join(scratch, out), '--methods', 'mp,wanda,alps', '--sparsity', '0.5,0.7'],
    ...['--calibration', join(model, 'calibration.txt.gz'), '--windows', '4', '--length', '64'],
    ...['--text', `speeches=${join(model, 'held-out.txt.gz')}`, '--text-length', '64', '--text-windows', '4'],
  ];
  await alps(args('killed'), { text: '"type":"cell"', count: 2 });
  const interrupted = await alps(args('interrupted'), { text: '"type":"dense"', count: 1, signal: 'SIGINT' });
  expect(interrupted).toMatchObject({
    code: 130,
    stderr:
      'alps: finished parts are kept in cells/; the same command computes only what is missing\n' +
      'alps: interrupted; no report was written\n',
  });
  const { code, events, stderr } = await alps(args('killed'));
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const cells = events.filter(({ type }) => type === 'cell');
  expect(cells).toHaveLength(6);
  expect(cells.filter(({ stored }) => stored).length).toBeGreaterThanOrEqual(2);
  await alps(args('whole'));
  const numbers = async (out: string) => {
    const lines = (await readFile(join(scratch, out, 'report.csv'), 'utf8')).split('\n');
    return lines.map((line) => line.split(',').slice(0, 5).join(','));
  };
  expect(await numbers('killed')).toEqual(await numbers('whole'));
  expect((await readdir(join(scratch, 'killed', 'cells'))).filter((name) => !name.endsWith('.json'))).toEqual([]);
  // Drawn by the thread of its own.
  const html = await readFile(join(scratch, 'killed', 'report.html'), 'utf8');
  expect(html.match(/<svg/g)!.length).toBe(2 * 5);
});

test('alps compare: a cell without numbers is told, the report is written, the exit code is 1', async () => {
  const fragile = join(scratch, 'fragile');
  await cancellingModel(fragile);
  const out = join(scratch, 'failing');
  const { code, events, stderr } = await alps([
    ...[
      'compare',
      fragile,
      '--out',
      out,
      '--methods',
      'mp',
      '--sparsity',
      '0',
      '--pattern',
      '1:2',
      '--precision',
      'float32',
    ],
    ...['--calibration', join(model, 'calibration.txt.gz'), '--windows', '2', '--length', '64', '--own-windows', '1'],
    ...['--text', `speeches=${join(model, 'held-out.txt.gz')}`, '--text-length', '64', '--text-windows', '2'],
  ]);
  expect({ code, stderr }).toEqual({ code: 1, stderr: '' });
  expect(events.filter(({ type }) => type === 'cell')).toMatchObject([{ pattern: '0 %', done: 1 }]);
  expect(events.filter(({ type }) => type === 'failure')).toMatchObject([
    { pattern: '1:2', code: 'NOT_FINITE', done: 2 },
  ]);
  expect(events.at(-1)).toEqual({ type: 'done', out });
  const html = await readFile(join(out, 'report.html'), 'utf8');
  expect(html).toContain('without numbers: ');
  expect(html).toContain('3 windows of 64 tokens, 1 of them the model’s own, seed 0');
}, 60_000);

test('alps compare: commands of files with blanks in their names, protocols by text', async () => {
  const lines = ['The Union.', 'The states of the Union sent their senators to the Congress.', 'They met there.'];
  await writeFile(join(scratch, 'a text.jsonl'), lines.map((words) => JSON.stringify({ words })).join('\n'));
  const text = join(scratch, 'a text.jsonl');
  const out = join(scratch, 'blanks');
  const args = [
    ...['compare', model, '--out', out, '--methods', 'mp', '--sparsity', '0.5', '--field', 'words'],
    ...['--calibration', text, '--windows', '1', '--length', '16', '--text', `one=${text}`, '--text', `two=${text}`],
    ...['--text-length', '8', '--protocol', 'wikitext2', '--protocol', 'one=ptb'],
  ];
  expect(await alps(args)).toMatchObject({ code: 0, stderr: '' });
  const report = JSON.parse(await readFile(join(out, 'report.json'), 'utf8'));
  expect(report.texts.map(({ protocol }: { protocol: string }) => protocol.slice(0, 6))).toEqual(['PTB as', 'WikiTe']);
  const [prune, one] = report.cells[0].commands;
  expect(prune).toContain(` --calibration '${text}' --field words --windows 1 --length 16`);
  expect(one).toContain(`--text '${text}' --field words --protocol ptb --length 8`);
  const { code, stderr } = await alps([...args, '--protocol', 'three=c4']);
  expect({ code, stderr }).toEqual({ code: 2, stderr: expect.stringContaining('the name of a --text before the =') });
});

test('alps paper: every file of the report', async () => {
  const out = join(scratch, 'paper');
  const { code, stderr } = await alps([
    ...['paper', model, '--out', out, '--methods', 'mp,alps', '--sparsity', '0.5'],
    ...['--calibration', join(model, 'calibration.txt.gz'), '--windows', '4', '--length', '64'],
    ...['--tasks', `piqa=${join(tasks, 'piqa.jsonl')}`, '--limit', '2'],
  ]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect((await readdir(out)).sort()).toEqual(
    ['cells', 'layers.csv', 'refit.csv', 'report.csv', 'report.html', 'report.json', 'support.csv'].sort(),
  );
});

test('alps eval --tasks: a line a task, with samples where asked for', async () => {
  const list = ['arc_easy', 'lambada_openai'].map((name) => `${name}=${join(tasks, `${name}.jsonl`)}`).join(',');
  const { events } = await alps(['eval', model, '--tasks', list, '--json', '--samples', '--limit', '3']);
  expect(events).toHaveLength(2);
  expect(events[0]).toMatchObject({
    task: 'arc_easy',
    items: 3,
    protocol: expect.stringContaining('lm-evaluation-harness'),
  });
  expect(events[1]!.samples).toHaveLength(3);
});

test('options that would do nothing are told', async () => {
  const base = [model, '--out', join(scratch, 'none'), '--calibration', join(model, 'calibration.txt.gz')];
  const complaint = async (args: string[]) => (await alps(args)).stderr;
  expect(await complaint(['compare', ...base])).toContain('Expected --text [NAME=]FILE or --tasks NAME=FILE');
  expect(await complaint(['compare', ...base, '--text', 'a.txt', '--limit', '0'])).toContain(
    'Expected --limit only with --tasks',
  );
  expect(await complaint(['compare', ...base, '--tasks', 'piqa=a.jsonl', '--text-windows', '2'])).toContain(
    'Expected --text-windows only with --text',
  );
  expect(await complaint(['eval', model, '--text', 'a.txt', '--samples'])).toContain('--samples only with --tasks');
  expect(await complaint(['eval', model, '--tasks', 'piqa=a.jsonl', '--length', '8'])).toContain(
    '--length only with --text',
  );
  expect(await complaint(['generate', model, '--out', 'a.json', '--prompt-length', '8'])).toContain(
    '--prompt-length only with --prompts',
  );
  expect(await complaint(['prune', ...base, '--sparsity', '0.5', '--comparison-group', 'row'])).toContain(
    'alps chooses among all weights of a layer: comparisonGroup "row" is for magnitude and wanda',
  );
  const idle =
    (...args: string[]) =>
    () =>
      pruningOptionsOf(parse([...args, '--sparsity', '0.5'], pruningOptions, []).values);
  for (const name of ['shares', 'field', 'windows', 'own-windows', 'length', 'seed'])
    expect(idle('--method', 'mp', `--${name}`, '1')).toThrow(`Expected --${name} only with a --calibration`);
  const given = ['--calibration', 'a.txt'];
  expect(idle(...given, '--rho', '1')).toThrow('Expected --rho only with --schedule alps or fixed');
  expect(idle(...given, '--rho', '1', '--preset', 'balanced')).toThrow('--rho only with --schedule alps or fixed');
  expect(idle(...given, '--rho', '1', '--preset', 'paper')).not.toThrow();
  for (const name of ['rho', 'max-iterations', 'relaxation'])
    expect(idle(...given, '--method', 'wanda', '--schedule', 'fixed', `--${name}`, '1')).toThrow(
      `only with --method alps`,
    );
  for (const name of ['cycles', 'threshold', 'initial', 'skip'])
    expect(idle(...given, `--dsnot-${name}`, name === 'initial' ? 'wanda' : name === 'skip' ? 'mlp' : '1')).toThrow(
      `Expected --dsnot-${name} only with --method dsnot`,
    );
  for (const how of [
    ['--method', 'wanda'],
    ['--refit', 'none'],
    ['--refit', 'backsolve'],
  ])
    expect(idle(...given, ...how, '--refine-iterations', '3')).toThrow('--refine-iterations only with --refit pcg');
  expect(idle(...given, '--method', 'wanda', '--refit', 'pcg', '--refine-iterations', '3')).not.toThrow();
  const fixed = ['--schedule', 'fixed', '--rho', '1', '--max-iterations', '2', '--windows', '2', '--length', '64'];
  expect(await complaint(['prune', ...base, '--sparsity', '0.5', ...fixed])).toBe('');
  const { options } = JSON.parse(await readFile(join(scratch, 'none', 'pruning.json'), 'utf8'));
  expect(options).toMatchObject({ schedule: 'fixed', alpsSchedule: { initialRho: 1, maxIterations: 2 } });
  const diagonal = ['--metric', 'diagonal', ...fixed.slice(2), '--overwrite'];
  expect(await complaint(['prune', ...base, '--sparsity', '0.5', ...diagonal])).toBe('');
});

test('a folder that the system never makes is an error, not a wait', async () => {
  const args = ['prune', model, '--out', '/proc/none/out', '--sparsity', '0.5', '--method', 'mp'];
  expect((await alps(args)).stderr).toMatch(/^alps: .*\/proc\/none/);
});
