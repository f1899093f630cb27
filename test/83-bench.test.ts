import { spawnSync } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { profile } from '../src/device/profile.js';
import { Device } from '../src/index.js';
import { temporaryFolder } from './helpers/safetensors-files.js';

const script = fileURLToPath(new URL('../bench/main.mjs', import.meta.url));

function bench(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, ...args], { encoding: 'utf8' });
  return { status, stdout, stderr };
}

interface Result {
  id: string;
  part: string;
  best: number;
  median: number;
  flops: number;
  bytes: number;
  share: number;
  error?: unknown;
  phases?: Record<string, { milliseconds: number; flops: number; bytes: number; share: number }>;
}

describe('npm run bench', () => {
  let file: string;
  let results: Result[];

  beforeAll(async () => {
    file = join(await temporaryFolder(), 'a.json');
    const { status, stderr } = bench('--quick', '--device', 'cpu', '--out', file);
    if (status !== 0) throw new Error(stderr);
    ({ results } = JSON.parse(await readFile(file, 'utf8')));
  }, 300_000);

  test('measures every part against the ceilings of the same run', async () => {
    const { machine, ceilings } = JSON.parse(await readFile(file, 'utf8'));
    expect(Object.keys(machine)).toEqual(
      expect.arrayContaining(['date', 'version', 'node', 'cpu', 'cores', 'memory', 'loadBefore', 'device']),
    );
    for (const rate of ['float32', 'bfloat16', 'copy']) expect(ceilings[rate]).toBeGreaterThan(1e6);
    expect([...new Set(results.map(({ part }) => part))]).toEqual(['ops', 'layer', 'model', 'growth']);
    expect(new Set(results.map(({ id }) => id)).size).toBe(results.length);
    for (const { id, best, median, share, error } of results) {
      expect({ id, failure: typeof error === 'string' && error }).toEqual({ id, failure: false });
      expect(best).toBeGreaterThan(0);
      expect(median).toBeGreaterThanOrEqual(best);
      expect(share).toBeGreaterThan(0);
    }
  });

  test('counts the operations of each phase of a layer', () => {
    const { phases } = results.find(({ id }) => id === 'layer 256x256 alps 0.7')!;
    expect(Object.keys(phases!)).toEqual(expect.arrayContaining(['prepare', 'factorise', 'admm', 'refine', 'error']));
    // The ladder's 28 iterations; 10 steps of the refit on each row's support, and its residual; the error's two quadratic forms, by symmetry.
    const product = 2 * 256 ** 3;
    const kept = Math.round(0.3 * 256 ** 2);
    expect([phases!.admm!.flops, phases!.refine!.flops, phases!.error!.flops]).toEqual([
      28 * product,
      product + (10 * 2 * kept ** 2) / 256,
      2 * 256 ** 2 * 257,
    ]);
  });

  test('tells the phases of a model apart', () => {
    const { phases } = results.find(({ part }) => part === 'model')!;
    const names = ['read', 'forward', 'gram', 'target', 'prepare', 'factorise', 'admm', 'refine', 'error', 'write'];
    expect(Object.keys(phases!)).toEqual(expect.arrayContaining(names));
  });

  test('compare: ratios, and exit code 1 above a limit', async () => {
    const slower = join(await temporaryFolder(), 'b.json');
    const run = JSON.parse(await readFile(file, 'utf8'));
    run.results[0].best *= 2;
    await writeFile(slower, JSON.stringify(run));
    expect(bench('compare', file, file, '--fail-above', '1.1')).toMatchObject({ status: 0, stderr: '' });
    expect(bench('compare', file, slower).status).toBe(0);
    const { status, stdout } = bench('compare', file, slower, '--fail-above', '1.1');
    expect(status).toBe(1);
    const [first] = stdout.split('\n').slice(2);
    expect(first).toContain(`| ${results[0]!.id} |`);
    expect(first).toMatch(/ 2\.000 \|.* slower \|$/);
  });

  test('report: Markdown, alone and between the markers of a document', async () => {
    const { stdout } = bench('report', file);
    for (const title of ['Ops', 'Layers', 'A whole model', 'Growth']) expect(stdout).toContain(`## ${title}\n`);
    const document = join(await temporaryFolder(), 'page.md');
    const markers = ['ops', 'layer', 'model', 'growth'].map(
      (part) => `<!-- bench:${part} -->\nold\n<!-- /bench:${part} -->\n`,
    );
    await writeFile(document, `# Page\n\n${markers.join('\nkept\n\n')}`);
    expect(bench('report', file, '--write', document)).toEqual({ status: 0, stdout: '', stderr: '' });
    const once = await readFile(document, 'utf8');
    bench('report', file, '--write', document);
    expect(await readFile(document, 'utf8')).toBe(once);
    expect(once).not.toContain('old');
    expect(once.match(/^kept$/gm)).toHaveLength(3);
  });
});

test('a profile is of the calls made while it is on', async () => {
  const device = Device.open('cpu', { threads: 1 });
  const stream = device.stream();
  const a = device.tensor('float32', [3, 4]);
  stream.fill(a, 1);
  profile(device, true);
  stream.enterPhase('start');
  stream.fill(a, 2);
  stream.fill(a, 3);
  stream.enterPhase('end');
  await stream.read(a);
  const entries = profile(device, false);
  stream.fill(a, 4);
  await stream.sync();
  expect(entries.map(({ milliseconds, ...entry }) => ({ ...entry, timed: milliseconds >= 0 }))).toEqual([
    { phase: 'end', op: 'download', arguments: ['float32 [3, 4]'], calls: 1, timed: true },
    { phase: 'start', op: 'fill', arguments: ['float32 [3, 4]'], calls: 2, timed: true },
  ]);
  expect(profile(device, false)).toEqual([]);
  a.dispose();
  stream.dispose();
});
