import { spawn, spawnSync } from 'node:child_process';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { constants } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { digests } from './helpers/digests.mjs';
import { temporaryFolder } from './helpers/safetensors-files.js';

// Calls of the operating system that fail (a preloaded library makes them), disks that are full, file systems that differ. By default each
// sweep tries some of its calls; with ALPS_FUZZ_RUNS of 10 or more all of them.

const path = (name: string) => fileURLToPath(new URL(`../${name}`, import.meta.url));
const lib = pathToFileURL(path('lib/')).href;
const main = path('lib/cli/main.js');
const model = path('test/fixtures/models/llama-plain');
const union = path('models/union-4m');
const tokenIds = Array.from({ length: 4 }, (_, w) => Array.from({ length: 16 }, (_, i) => (w * 37 + i * i * 11) % 90));
const every = Number(process.env.ALPS_FUZZ_RUNS ?? 1) >= 10;

let scratch: string;
let shim: string | undefined;
beforeAll(async () => {
  scratch = await temporaryFolder();
  await writeFile(join(scratch, 'ids.json'), JSON.stringify(tokenIds));
  const library = join(scratch, 'shim.so');
  const compiled = spawnSync('cc', [
    '-shared',
    '-fPIC',
    '-O1',
    '-o',
    library,
    path('test/fixtures/fault-shim.c'),
    '-ldl',
  ]);
  shim = compiled.status === 0 ? library : undefined;
});

/** Says why a test is not run; it then passes. */
function without(what: string): void {
  console.warn(`not run: ${what}`);
}

interface Fault {
  number: number;
  call: string;
  path: string;
  /** Of the job's error, or `none`. */
  code: string;
  message: string;
  published: boolean;
  /** Whether the job gave what it gives undisturbed: with the fault where it does not matter, else in the next run. */
  same: boolean;
  again?: string;
  left?: string[];
  leakedFiles: number;
  leakedBytes: number;
}

interface Sweep {
  kind: 'prune' | 'evaluate' | 'cells';
  errno: number;
  /** Which calls are counted; default all that the shim knows. */
  calls?: string;
  /** Whether all calls behind the failing one fail as well. */
  after?: boolean;
  paths: readonly string[];
  stride: number;
  options?: object;
}

async function sweep({ kind, errno, calls, after, paths, stride, options }: Sweep): Promise<Fault[]> {
  const folder = join(scratch, 'sweep');
  const log = join(scratch, 'fault.log');
  const settings = { kind, folder, errno, log, stride: every ? 1 : stride, options };
  const env: NodeJS.ProcessEnv = {
    ...process.env,
    LD_PRELOAD: shim,
    UV_USE_IO_URING: '0',
    ALPS_FAULT_FOLDER: [...paths, folder].join(':'),
    ALPS_FAULT_LOG: log,
    ...(calls ? { ALPS_FAULT_CALLS: calls } : {}),
    ...(after ? { ALPS_FAULT_AFTER: '1' } : {}),
  };
  const child = spawn(process.execPath, [path('test/helpers/fault-sweep.mjs'), path('lib'), JSON.stringify(settings)], {
    env,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let text = '';
  child.stdout.on('data', (data) => (text += data));
  expect(await new Promise((resolve) => child.on('close', resolve))).toBe(0);
  const faults = text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Fault);
  const harmless = faults.filter(({ code }) => code === 'none').length;
  if (every) console.log(`${kind}, errno ${errno}: ${faults.length} faults, ${harmless} of them harmless`);
  return faults;
}

/** What is wrong with how a fault was taken. */
function problems(fault: Fault, kind: Sweep['kind']): string[] {
  const { code, message, path, published, same, again, leakedFiles, leakedBytes } = fault;
  const failed = code !== 'none';
  const found: string[] = [];
  if (failed && code !== 'FILE_SYSTEM') found.push(`not an AlpsError of the file system: ${code}`);
  if (failed && ![path, '/sweep/', model].some((name) => message.includes(name))) found.push('no file is named');
  if (failed && kind === 'prune' && published) found.push('there is an output');
  if (again !== undefined) found.push(`the next run fails: ${again}`);
  else if (!same) found.push('the result is another');
  if (leakedFiles > 0) found.push(`${leakedFiles} files stay open`);
  if (leakedBytes > 0) found.push(`${leakedBytes} bytes stay on the device`);
  return found.map((what) => `${fault.number}, ${fault.call} ${path}: ${what} (${message})`);
}

const reading = 'opendir,open,read,stat';
const all = `${reading},create,write,fsync,ftruncate,mkdir,link,rename`;
const pruning = {
  kind: 'prune',
  paths: [model],
  options: { model, sparsity: 0.5, calibration: { tokenIds } },
} as const;
const resumed = { ...pruning, options: { ...pruning.options, resume: true } };
const { EIO, ENOSPC, EMFILE, EROFS } = constants.errno;

const sweeps: [string, Sweep][] = [
  ['an input/output error, then the same call goes on', { ...resumed, errno: EIO, calls: all, stride: 11 }],
  ['an input/output error, nothing to go on with', { ...pruning, errno: EIO, calls: all, stride: 23 }],
  [
    'a disk that is full from some moment on',
    { ...resumed, errno: ENOSPC, calls: 'create,write,ftruncate,mkdir,link', after: true, stride: 5 },
  ],
  [
    'a file system that turns read-only',
    { ...resumed, errno: EROFS, calls: 'create,write,mkdir,link,rename', after: true, stride: 9 },
  ],
  [
    'no file can be opened from some moment on',
    { ...resumed, errno: EMFILE, calls: 'open,create,opendir', after: true, stride: 4 },
  ],
  [
    'calibration text and tokenizer: an input/output error',
    {
      kind: 'evaluate',
      errno: EIO,
      calls: reading,
      paths: ['tokenizer.json', 'tokenizer_config.json', 'held-out.txt.gz'].map((name) => join(union, name)),
      stride: 1,
      options: { model: union, text: join(union, 'held-out.txt.gz'), windows: 1, length: 16 },
    },
  ],
  ['the store of a comparison: an input/output error', { kind: 'cells', errno: EIO, calls: all, paths: [], stride: 1 }],
  [
    'the store of a comparison: a full disk',
    { kind: 'cells', errno: ENOSPC, calls: 'create,write', after: true, paths: [], stride: 1 },
  ],
];

test.each(sweeps)(
  '%s: an error that names the file, no output, and the next run gives what an undisturbed one gives',
  async (_title, settings) => {
    if (!shim) return without('there is no C compiler, or the system has no LD_PRELOAD');
    const faults = await sweep(settings);
    expect(faults.length).toBeGreaterThan(2);
    expect(faults.flatMap((fault) => problems(fault, settings.kind))).toEqual([]);
  },
  1_200_000,
);

test('the command: exit code 1 and one sentence, however often it fails before it comes through', async () => {
  if (!shim) return without('there is no C compiler, or the system has no LD_PRELOAD');
  const folder = join(scratch, 'command');
  await mkdir(folder);
  const ids = join(scratch, 'ids.json');
  const command = (out: string) => [
    main,
    'prune',
    model,
    '--out',
    join(folder, out),
    '--sparsity',
    '0.5',
    '--calibration',
    ids,
  ];
  const run = (out: string, env: NodeJS.ProcessEnv = {}) =>
    spawnSync(process.execPath, command(out), {
      encoding: 'utf8',
      env: { ...process.env, UV_USE_IO_URING: '0', ...env },
    });
  expect(run('whole').status).toBe(0);
  // Where a run goes on, its calls are others: these numbers lie all over the first runs, and in the end behind the last call. What fails in a block
  // that is read ahead is read again: such a run comes through.
  let failed = 0;
  for (const at of [1, 4, 9, 20, 45, 60, 90, 150, 200, 240, 150, 170, 60]) {
    const { status, stdout, stderr } = run('out', {
      LD_PRELOAD: shim,
      ALPS_FAULT_FOLDER: `${model}:${folder}:${ids}`,
      ALPS_FAULT_AT: String(at),
      ALPS_FAULT_ERRNO: String(EIO),
    });
    if (status === 0) break;
    failed++;
    expect(status).toBe(1);
    expect(stderr).toMatch(
      /^(alps: finished blocks are kept .*; the same command resumes after block \d, --restart starts over\n)?alps: .* \(EIO\) \(FILE_SYSTEM\)\n$/,
    );
    expect(stdout).not.toContain('"done"');
    expect(await readdir(folder)).not.toContain('out');
  }
  expect(failed).toBeGreaterThan(5);
  if (!(await readdir(folder)).includes('out')) expect(run('out').status).toBe(0);
  expect(digests(join(folder, 'out'))).toEqual(digests(join(folder, 'whole')));
  expect((await readdir(folder)).sort()).toEqual(['out', 'whole']);
});

describe('file systems of their own', () => {
  const run = (out: string, env: NodeJS.ProcessEnv = {}, limits = 'true') => {
    const args = [main, 'prune', model, '--out', out, '--sparsity', '0.5', '--calibration', join(scratch, 'ids.json')];
    return spawnSync('bash', ['-c', `${limits}; exec "$@"`, 'bash', process.execPath, ...args], {
      encoding: 'utf8',
      env: { ...process.env, ...env },
    });
  };
  const mount = async (name: string, size: string) => {
    const folder = join(scratch, name);
    await mkdir(folder);
    if (spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', folder]).status === 0) mounted.push(folder);
    return mounted.includes(folder) ? folder : undefined;
  };
  const remount = (folder: string, option: string) =>
    expect(spawnSync('mount', ['-o', `remount,${option}`, folder]).status).toBe(0);
  const mounted: string[] = [];
  afterEach(() => {
    for (const folder of mounted.splice(0)) spawnSync('umount', [folder]);
  });

  test('a disk that is full in the middle of a run, then enlarged; one that turns read-only: the run goes on', async () => {
    const whole = join(scratch, 'whole');
    expect(run(whole).status).toBe(0);
    const disk = await mount('disk', '148k');
    if (!disk) return without('mounting is not permitted');
    const out = join(disk, 'out');
    const full = run(out);
    expect(full).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/no space left on device \(ENOSPC\) \(FILE_SYSTEM\)/),
    });
    expect(full.stderr).toContain('resumes after block 1');
    expect(await readdir(disk)).not.toContain('out');
    remount(disk, 'ro');
    expect(run(out)).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/read-only file system \(EROFS\) \(FILE_SYSTEM\)/),
    });
    remount(disk, 'rw,size=4m');
    const again = run(out);
    expect(again.status).toBe(0);
    expect(again.stdout).toContain('{"type":"resume","finished":1');
    expect(digests(out)).toEqual(digests(whole));
    expect(await readdir(disk)).toEqual(['out']);
  });

  test('model, output and temporary folder on three file systems', async () => {
    const [output, temporary] = [await mount('output', '4m'), await mount('temporary', '1m')];
    if (!output || !temporary) return without('mounting is not permitted');
    const whole = join(scratch, 'whole2');
    expect(run(whole).status).toBe(0);
    expect(run(join(output, 'out'), { TMPDIR: temporary })).toMatchObject({ status: 0, stderr: '' });
    expect(digests(join(output, 'out'))).toEqual(digests(whole));
    expect(await readdir(temporary)).toEqual([]);
    expect(run(temporary)).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('root of a file system'),
    });
  });
});

test('too many open files, from the system itself: told in words, and the same process goes on when some are closed', async () => {
  const script = `
    const { openSync, closeSync } = await import('node:fs');
    const { prune } = await import('${lib}index.js');
    const [model, out, ids] = process.argv.slice(1);
    const options = { model, out, sparsity: 0.5, resume: true, calibration: { text: ids } };
    const free = Number(process.env.FREE_FILES);
    const files = [];
    try { while (true) files.push(openSync('/dev/null')); } catch {}
    for (const file of files.splice(0, free)) closeSync(file);
    const first = await prune(options).then(() => 'works', (error) => error.code + ' ' + error.message);
    for (const file of files) closeSync(file);
    if (first !== 'works') await prune(options);
    console.log(first);`;
  const seen = new Set<string>();
  for (let free = 0; free <= 8; free++) {
    const out = join(scratch, `files${free}`);
    const node = [process.execPath, '--input-type=module', '-e', script, model, out, join(scratch, 'ids.json')];
    const { status, stdout, stderr } = spawnSync('bash', ['-c', 'ulimit -n 120; exec "$@"', 'bash', ...node], {
      encoding: 'utf8',
      env: { ...process.env, FREE_FILES: String(free) },
    });
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout).toMatch(/^(works|FILE_SYSTEM .*too many open files.*)\n$/);
    seen.add(stdout.slice(0, 11).trim());
    expect(await readdir(out)).toContain('pruning.json');
  }
  expect([...seen].sort()).toEqual(['FILE_SYSTEM', 'works']);
});
