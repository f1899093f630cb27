import { spawn, spawnSync } from 'node:child_process';
import { mkdtemp, open, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { reporter } from '../src/cli/compare-command.js';
import { Progress } from '../src/cli/progress.js';
import { summary } from '../src/cli/prune-command.js';
import { prune } from '../src/prune.js';

// The compiled command, as users run it; `npm test` compiles it first.
const main = fileURLToPath(new URL('../lib/cli/main.js', import.meta.url));
const model = fileURLToPath(new URL('../models/union-4m', import.meta.url));
const text = join(model, 'calibration.txt.gz');

let scratch: string;
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'alps-cli-'));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

function start(...args: string[]) {
  const child = spawn(process.execPath, [main, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  const output = { stdout: '', stderr: '' };
  child.stdout.setEncoding('utf8').on('data', (data) => (output.stdout += data));
  child.stderr.setEncoding('utf8').on('data', (data) => (output.stderr += data));
  const ended = new Promise<{ code: number | null; stdout: string; stderr: string }>((resolve) =>
    child.on('close', (code) => resolve({ code, ...output })),
  );
  return { child, ended, output };
}
const alps = (...args: string[]) => start(...args).ended;

describe('alps', () => {
  test.each([
    [['--help']],
    [['prune', '--help']],
    [['allocate', '--help']],
    [['generate', '--help']],
    [['eval', '-h']],
    [['inspect', '--help']],
    [['devices', '--help']],
    [['compare', '--help']],
    [['paper', '--help']],
  ])('%j teaches by examples', async (args) => {
    const { code, stdout } = await alps(...args);
    expect(code).toBe(0);
    expect(stdout).toMatch(/Examples?:\n {2}alps /);
  });

  test.each([
    [['frobnicate'], 'Expected a command'],
    [['prune'], 'Expected MODEL but received none'],
    [['prune', model, '--sparsity', '0.5', '--calibration', text], 'Expected --out DIR'],
    [['prune', model, '--out', 'x', '--sparsity', 'half', '--calibration', text], 'Expected a number for --sparsity'],
    [['prune', model, '--out', 'x', '--pattern', '2of4', '--calibration', text], 'Expected N:M'],
    [['prune', model, '--out', 'x', '--nonsense'], 'nonsense'],
    [
      ['prune', model, '--out', 'x', '--sparsity', '50', '--calibration', text],
      'Expected a number from 0 to 1 for sparsity',
    ],
    [
      ['prune', model, '--out', 'x', '--dense-target', '0.5,0.5,1,1'],
      'Expected --dense-target none or up to three numbers',
    ],
    ...['', '0.5,', ',0.5', '0.5,,1', '0.5,half'].map((given): [string[], string] => [
      ['prune', model, '--out', 'x', `--dense-target=${given}`],
      'Expected a number for --dense-target',
    ]),
    [['prune', model, '--out', 'x', '--memory-limit', '0'], 'Expected a size above 0 for --memory-limit'],
    [['prune', model, '--out', '', '--sparsity', '0.5', '--method', 'mp'], 'Expected --out DIR'],
    [
      ['allocate', model, '--out', '', '--work', 'x', '--sparsity', '0.5', '--calibration', text],
      'Expected --out FILE',
    ],
    [['allocate', model, '--out', 'x.json', '--work', '', '--sparsity', '0.5', '--calibration', text], '--work DIR'],
    [['eval', model, '--text', text, '--tasks', 'foo=x.jsonl'], 'for a task but received "foo"'],
    [['allocate', model, '--out', 'x.json', '--sparsity', '0.5', '--calibration', text], 'Expected --work DIR'],
    [['eval', model], 'Expected --text FILE'],
  ])('%j is wrong usage: exit code 2, one line', async (args, message) => {
    const { code, stdout, stderr } = await alps(...args);
    expect(code).toBe(2);
    expect(stdout).toBe('');
    expect(stderr).toContain(message);
    expect(stderr.trim().split('\n')).toHaveLength(1);
  });

  test('a task’s file that is not there is told before the perplexity is measured', async () => {
    const args = ['eval', model, '--text', text, '--tasks', `piqa=${join(scratch, 'none.jsonl')}`];
    expect(await alps(...args)).toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining('none.jsonl') });
  });

  test.each([
    ['allocate', '--work', 'work', '--sparsity', '0.5', '--calibration', text],
    ['generate', '--windows', '1', '--length', '16', '--json'],
  ])('%s: a file that cannot be written is told before the work', async (command, ...args) => {
    const { code, stdout, stderr } = await alps(command, 'no such model', '--out', '/proc/none.json', ...args);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(/^alps: Could not write \/proc\/none\.json: /);
  });

  test('a missing model is a failure: exit code 1', async () => {
    const { code, stderr } = await alps('inspect', '/no/such/model');
    expect(code).toBe(1);
    expect(stderr).toContain('/no/such/model');
  });

  test('prune, inspect and eval work together; prune prints one JSON line an event', async () => {
    const out = join(scratch, 'pruned');
    const pruned = await alps(
      'prune',
      model,
      '--out',
      out,
      '--pattern',
      '2:4',
      '--calibration',
      text,
      '--windows',
      '8',
      '--length',
      '64',
    );
    expect(pruned).toMatchObject({ code: 0, stderr: '' });
    const events = pruned.stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(events[0].type).toBe('start');
    expect(events.at(-1)).toMatchObject({ type: 'done', out });

    const inspected = await alps('inspect', out, '--pattern', '2:4');
    expect(inspected.code).toBe(0);
    expect(inspected.stdout).toContain('Every matrix of the blocks follows the pattern');
    expect((await alps('inspect', model, '--pattern', '2:4')).code).toBe(1);

    const evaluated = await alps(
      'eval',
      out,
      '--text',
      join(model, 'held-out.txt.gz'),
      '--length',
      '64',
      '--windows',
      '5',
      '--json',
    );
    expect(JSON.parse(evaluated.stdout)).toMatchObject({ windows: 5, length: 64, scoredTokens: 315 });
  });

  test('inspect: a group that does not divide the widths', async () => {
    const { code, stdout } = await alps('inspect', model, '--pattern', '2:5');
    expect(code).toBe(1);
    expect(stdout).toContain('matrices keep more, or their width is not divisible by 5');
  });

  test('generate writes token ids that prune takes beside a text; other files are not replaced', async () => {
    const own = join(scratch, 'own.json');
    const sizes = ['--windows', '3', '--length', '64'];
    const generated = await alps('generate', model, '--out', own, ...sizes);
    expect(generated).toMatchObject({ code: 0, stderr: '' });
    expect(generated.stdout).toMatch(
      /^3 windows of 64 tokens in .*, written to .*own\.json: alps prune takes them with --calibration/,
    );
    const { calibration } = JSON.parse(await readFile(own, 'utf8'));
    expect(calibration.map(({ length }: number[]) => length)).toEqual([64, 64, 64]);
    expect((await alps('generate', model, '--out', own, ...sizes, '--seed', '1', '--json')).code).toBe(0);
    expect(JSON.parse(await readFile(own, 'utf8')).calibration).not.toEqual(calibration);

    const mix = ['--calibration', text, '--calibration', own, '--shares', '1,1', '--windows', '6', '--length', '64'];
    const pruned = await alps('prune', model, '--out', join(scratch, 'mixed'), '--sparsity', '0.5', ...mix);
    expect(pruned.code).toBe(0);
    expect(JSON.parse(pruned.stdout.split('\n')[1]!)).toMatchObject({ type: 'calibration', windows: 6, length: 64 });

    const inOneStep = ['--calibration', text, '--windows', '2', '--own-windows', '3', '--length', '64'];
    const own3 = await alps('prune', model, '--out', join(scratch, 'own3'), '--sparsity', '0.5', ...inOneStep);
    expect(own3.code).toBe(0);
    const events = own3.stdout.trim().split('\n');
    expect(events.filter((line) => line.includes('"generate"')).length).toBeGreaterThan(10);
    expect(own3.stdout).toContain('"type":"calibration","windows":5,"length":64');
    const bare = await alps(
      'prune',
      model,
      '--out',
      join(scratch, 'bare'),
      '--method',
      'mp',
      '--sparsity',
      '0.5',
      '--own-windows',
      '3',
    );
    expect(bare).toMatchObject({ code: 2, stderr: expect.stringContaining('a --calibration') });

    const config = join(model, 'config.json');
    const before = await readFile(config, 'utf8');
    const refused = await alps('generate', model, '--out', config, ...sizes);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain('has no list of token windows');
    expect(await readFile(config, 'utf8')).toBe(before);
    for (const other of ['[{"name": "a record"}]', '[null]', '{"calibration": [[1, 2]], "evaluation": [[3, 4]]}']) {
      const path = join(scratch, 'other.json');
      await writeFile(path, other);
      expect((await alps('generate', model, '--out', path, ...sizes)).code).not.toBe(0);
      expect(await readFile(path, 'utf8')).toBe(other);
    }
    const dash = spawnSync(process.execPath, [main, 'generate', model, '--out=-own.json', ...sizes], { cwd: scratch });
    expect(String(dash.stdout)).toContain('takes them with --calibration=-own.json.');
    expect((await alps('generate', model, '--out', own, '--field', 'text')).stderr).toContain(
      '--field only with --prompts',
    );
    expect((await alps('generate', model, '--out', 'own.txt')).stderr).toContain('ends with .json for --out');
  });

  test('devices shows the processor', async () => {
    const { code, stdout } = await alps('devices');
    expect(code).toBe(0);
    expect(stdout).toMatch(/cpu\s+usable\s+(avx512bf16|avx512|avx2|scalar)/);
  });

  test('Ctrl-C ends it with 130 and leaves no output', async () => {
    const out = join(scratch, 'interrupted');
    const { child, ended, output } = start(
      'prune',
      model,
      '--out',
      out,
      '--sparsity',
      '0.5',
      '--calibration',
      text,
      '--windows',
      '64',
      '--length',
      '256',
    );
    await new Promise<void>((resolve) => {
      child.stdout.on('data', () => output.stdout.includes('"layer"') && resolve());
    });
    child.kill('SIGINT');
    const { code, stderr } = await ended;
    expect(code).toBe(130);
    expect(stderr).toContain("alps: interrupted; nothing was written under the output's name\n");
    expect((await readdir(scratch)).filter((name) => name === 'interrupted' || name.includes('partial'))).toEqual([]);
  });
});

test('a reader of its lines that goes away ends it, but not as if it were done', async () => {
  const out = join(scratch, 'piped');
  const child = spawn(process.execPath, [main, 'prune', model, '--out', out, '--sparsity', '0.5', '--method', 'mp'], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  child.stdout.destroy();
  expect(await new Promise((resolve) => child.on('exit', resolve))).toBe(141);
});

test('lines that cannot be written are told without a stack', async () => {
  const full = await open('/dev/full', 'w');
  const args = [main, 'prune', model, '--out', join(scratch, 'full'), '--sparsity', '0.5', '--method', 'mp'];
  const { status, stderr } = spawnSync(process.execPath, args, {
    stdio: ['ignore', full.fd, 'pipe'],
    encoding: 'utf8',
  });
  await full.close();
  expect(status).toBe(1);
  expect(stderr).toMatch(/^alps: Could not write to standard output: ENOSPC[^\n]*\n$/);
});

test('wrong usage has its exit code where nothing can be written of it', async () => {
  const full = await open('/dev/full', 'w');
  const { status } = spawnSync(process.execPath, [main, 'prune'], { stdio: ['ignore', 'ignore', full.fd] });
  await full.close();
  expect(status).toBe(2);
});

test('the summary has the mean error of the layers that have one', async () => {
  const report = await prune({ model, out: join(scratch, 'summary'), sparsity: 0.5, method: 'mp' });
  expect(summary(report, 'out')).toMatch(/^q_proj +5 +-$/m);
  const layers = report.layers.map((layer, i) => ({ ...layer, error: i === 0 ? null : 0.25 }));
  expect(summary({ ...report, layers }, 'out')).toMatch(/^q_proj +5 +0\.2500$/m);
});

describe('the progress line', () => {
  const draw = (env: NodeJS.ProcessEnv, isTTY = true) => {
    let drawn = '';
    const progress = new Progress({ isTTY, columns: 80, write: (piece) => (drawn += piece) }, { env });
    progress.update(1, 'block 3');
    progress.clear();
    return drawn;
  };

  test('is coloured, or plain with NO_COLOR, or absent without a terminal', () => {
    expect(draw({})).toContain('\x1b[36m');
    expect(draw({ NO_COLOR: '1' })).not.toContain('\x1b[36m');
    expect(draw({ NO_COLOR: '1' })).toContain('100 %  block 3');
    expect(draw({}, false)).toBe('');
  });

  test('of a comparison with figures behind its cells goes from the dense model’s part to the last', () => {
    let drawn = '';
    const terminal = { isTTY: true, columns: 80, write: (piece: string) => (drawn += piece) };
    const context = { stdout: terminal, stderr: terminal, signal: new AbortController().signal } as never;
    const shareOf = (done: (onEvent: ReturnType<typeof reporter>['onEvent']) => void) => {
      const { onEvent } = reporter({}, context, 1);
      onEvent({ type: 'start', cells: 1, methods: ['mp'], patterns: ['50 %'] });
      done(onEvent);
      drawn = '';
      onEvent({ type: 'progress', share: 0.5, doing: 'this' });
      return /(\d+) % {2}this/.exec(drawn)?.[1];
    };
    const failed = { method: 'mp', pattern: '50 %', code: 'NOT_FINITE', message: 'NaN' } as const;
    expect(shareOf(() => undefined)).toBe('17');
    expect(shareOf((onEvent) => onEvent({ type: 'dense', perplexity: {}, stored: false }))).toBe('50');
    expect(shareOf((onEvent) => onEvent({ type: 'failure', done: 1, cells: 1, ...failed }))).toBe('83');
  });
});
