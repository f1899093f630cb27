import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { link, mkdir, mkdtemp, open, readdir, readFile, rm, utimes, writeFile } from 'node:fs/promises';
import { hostname, tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { RunLock } from '../src/checkpoint/run-lock.js';
import { addon } from '../src/device/addon.js';
import { type PruneEvent, type PruneOptions, prune } from '../src/prune.js';
import { digests } from './helpers/digests.mjs';
import { random } from './helpers/numbers.js';

const folder = (path: string) => fileURLToPath(new URL(`../${path}`, import.meta.url));
const union = folder('models/union-4m');
const calibration = { text: join(union, 'calibration.txt.gz'), windows: 8, length: 128 };

let scratch: string;
beforeEach(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'alps-resume-'));
});
afterEach(() => rm(scratch, { recursive: true, force: true }));

/** Aborts in the block behind the first `blocks`. */
async function stopped(options: PruneOptions, blocks: number): Promise<void> {
  const stop = new AbortController();
  const onEvent = (event: PruneEvent) => {
    if (event.type === 'layer' && event.block === blocks) stop.abort();
  };
  await expect(prune({ ...options, signal: stop.signal, onEvent })).rejects.toMatchObject({ code: 'ABORTED' });
}

describe('a run that was stopped', () => {
  const models: [string, Partial<PruneOptions>][] = [
    ['models/union-4m', { sparsity: 0.6 }],
    ['models/union-4m', { sparsity: 0.6, propagation: 'block', schedule: 'alps' }],
    ['models/union-4m', { pattern: { keep: 2, of: 4 }, method: 'dsnot' }],
    ['test/fixtures/models/gpt2', { sparsity: 0.5 }],
    // The dense model beside: experts, norms of their own, norms behind the sum.
    ['test/fixtures/models/mixtral', { sparsity: 0.5 }],
    ['test/fixtures/models/gemma2', { sparsity: 0.5 }],
    ['test/fixtures/models/opt-post', { sparsity: 0.5 }],
    ['test/fixtures/models/qwen3-moe-fused', { sparsity: 0.5, method: 'sparsegpt' }],
    ['test/fixtures/models/phi3-fused', { sparsity: 0.5, method: 'magnitude', calibration: undefined }],
  ];
  test.each(models)('%s %j goes on and gives the same bytes', async (path, extra) => {
    const model = folder(path);
    const ids = Array.from({ length: 8 }, (_, w) =>
      Uint32Array.from({ length: 32 }, (_, i) => (w * 37 + i * i * 11) % 90),
    );
    const given = model === union ? calibration : { tokenIds: ids };
    const options = { model, calibration: given, ...extra, resume: true } as PruneOptions;
    await prune({ ...options, out: join(scratch, 'whole') });
    const out = join(scratch, 'out');
    await stopped({ ...options, out }, 1);
    expect(await readdir(scratch)).toEqual(['.out.unfinished', '.out.unfinished.json', 'whole']);
    const events: PruneEvent[] = [];
    await prune({ ...options, out, onEvent: (event) => events.push(event) });
    const resumed = events.find(({ type }) => type === 'resume');
    expect(resumed).toMatchObject({ finished: 1 });
    expect(await readdir(scratch)).toEqual(['out', 'whole']);
    expect(digests(out)).toEqual(digests(join(scratch, 'whole')));
  });

  test('killed at random moments, again and again: the same bytes in the end', async () => {
    const options = { model: union, calibration, sparsity: 0.6, resume: true, threads: 1 };
    await prune({ ...options, out: join(scratch, 'whole') });
    const out = join(scratch, 'out');
    const script = join(scratch, 'run.mjs');
    const lib = pathToFileURL(folder('lib/index.js')).href;
    await writeFile(
      script,
      `import { prune } from ${JSON.stringify(lib)};
       const onEvent = ({ type, block }) => process.stdout.write(type + ' ' + block + '\\n');
       await prune({ ...${JSON.stringify({ ...options, out })}, onEvent });`,
    );
    const next = random(5);
    let kills = 0;
    let hidden = false;
    for (let code: unknown = null; code !== 0; ) {
      const child = spawn(process.execPath, [script], { stdio: ['ignore', 'pipe', 'inherit'] });
      const exit = new Promise((resolve) => child.on('exit', resolve));
      // At a random moment behind the first block of this run, or behind its second layer.
      const sign = kills % 2 ? /^block/m : /^layer(?:.*\n)+layer/m;
      let seen = '';
      child.stdout.on('data', (data) => {
        seen += data;
        if (sign.test(seen)) setTimeout(() => child.kill('SIGKILL'), 60 * next());
      });
      code = await exit;
      if (code === 0) break;
      kills++;
      // Killed behind the last rename the output is there, whole as is checked below; only hidden names may then be left.
      hidden = (await readdir(scratch)).includes('out');
      if (hidden) break;
    }
    expect(kills).toBeGreaterThan(hidden ? 0 : 2);
    expect(digests(out)).toEqual(digests(join(scratch, 'whole')));
    const names = (await readdir(scratch)).filter((name) => !hidden || !name.startsWith('.out.unfinished'));
    expect(names.sort()).toEqual(['out', 'run.mjs', 'whole']);
  });

  test('is not gone on with by another one: what differs is told, a restart drops it', async () => {
    const shared = { denseTarget: { strength: 0.5, residualStrength: 0.5 } }; // whose default depends on the sparsity
    const options = { ...shared, model: union, calibration, sparsity: 0.6, resume: true, out: join(scratch, 'out') };
    await stopped(options, 1);
    const other = { ...options, sparsity: 0.5, calibration: { ...calibration, seed: 3 } };
    await expect(prune(other)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(
        /^An unfinished run for .*out is there, and it differs in calibration \(\S+ then, \S+ now\), pattern \({"sparsity":0.6} then, {"sparsity":0.5} now\)\. .*--restart/,
      ),
    });
    const events: PruneEvent[] = [];
    await prune({ ...other, restart: true, onEvent: (event) => events.push(event) });
    expect(events.some(({ type }) => type === 'resume')).toBe(false);
    expect(await readdir(scratch)).toEqual(['out']);
  });

  test('whose files were touched begins anew; a record that cannot be read is told', async () => {
    const options = { model: union, calibration, sparsity: 0.6, resume: true, out: join(scratch, 'out') };
    await stopped(options, 1);
    await rm(join(scratch, '.out.unfinished', 'model.safetensors'));
    const events: PruneEvent[] = [];
    await prune({ ...options, onEvent: (event) => events.push(event) });
    expect(events.some(({ type }) => type === 'resume')).toBe(false);
    await writeFile(join(scratch, '.out.unfinished.json'), '{');
    await expect(prune({ ...options, overwrite: true })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('is not what an unfinished run leaves'),
    });
  });

  test.each([
    ['no record', { record: null }],
    ['another kind of record', { record: {} }],
    ['no tensors', { tensors: [] }],
    ['tensors that are no names', { tensors: [5, null] }],
  ])('and whose record was changed is refused: %s', async (_, changed) => {
    const out = join(scratch, 'out');
    const options: PruneOptions = { model: union, method: 'magnitude', sparsity: 0.6, resume: true, out };
    await stopped(options, 1);
    const path = join(scratch, '.out.unfinished.json');
    const found = JSON.parse(await readFile(path, 'utf8'));
    Object.assign(found.progress.steps[0], changed);
    await writeFile(path, JSON.stringify(found));
    await expect(prune(options)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(/\.out\.unfinished\.json is not what an unfinished run leaves; .*--restart/),
    });
  });
});

test('a restart that is killed before its first block leaves nothing that the next run takes for finished blocks', async () => {
  const options = { model: union, method: 'magnitude', sparsity: 0.6, resume: true } as const;
  await prune({ ...options, out: join(scratch, 'whole') });
  const out = join(scratch, 'out');
  await stopped({ ...options, out }, 2);
  const code = `import { prune } from ${JSON.stringify(pathToFileURL(folder('lib/index.js')).href)};
    const onEvent = ({ type }) => type === 'layer' && process.kill(process.pid, 'SIGKILL');
    await prune({ ...${JSON.stringify({ ...options, out, restart: true })}, onEvent });`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', code], { stdio: 'inherit' });
  expect(await new Promise((resolve) => child.on('exit', (_code, signal) => resolve(signal)))).toBe('SIGKILL');
  await prune({ ...options, out });
  expect(digests(out)).toEqual(digests(join(scratch, 'whole')));
});

test('outputs with long names of one beginning: neither is taken for the other', async () => {
  const options = { model: union, method: 'magnitude', resume: true } as const;
  const [a, b] = ['a', 'b'].map((end) => join(scratch, `${'a-model-of-a-long-name'.repeat(3)}-${end}`));
  await stopped({ ...options, sparsity: 0.6, out: a! }, 1);
  await prune({ ...options, sparsity: 0.5, out: b!, restart: true });
  const events: PruneEvent[] = [];
  await prune({ ...options, sparsity: 0.6, out: a!, onEvent: (event) => events.push(event) });
  expect(events.find(({ type }) => type === 'resume')).toMatchObject({ finished: 1 });
});

test('what a killed run set aside when it replaced an output does not stand in the way', async () => {
  const options = { model: union, method: 'magnitude', sparsity: 0.5, resume: true } as const;
  const out = join(scratch, 'out');
  const aside = join(scratch, '.out.unfinished.old');
  for (const there of [false, true]) {
    await mkdir(aside);
    await writeFile(join(aside, 'config.json'), '{}');
    await prune({ ...options, out, overwrite: there });
    expect(await readdir(scratch)).toEqual(['out']);
  }
});

describe('two runs on one output', () => {
  const options = () => ({ model: union, calibration, sparsity: 0.6, resume: true, out: join(scratch, 'out') });

  test('the second is refused while the first one works', async () => {
    let second: unknown;
    const first = prune({
      ...options(),
      onEvent: ({ type }) => {
        if (type === 'block') second ??= prune(options()).catch((error: unknown) => error);
      },
    });
    await first;
    expect(await second).toMatchObject({
      code: 'FILE_SYSTEM',
      message: expect.stringContaining(
        `Another run works on the output ${join(scratch, 'out')}: process ${process.pid}.`,
      ),
    });
  });

  test('a process that another one cannot see keeps it out as well; once it is gone it does not', async () => {
    const lock = join(scratch, 'lock');
    const held = await RunLock.take(lock, 'it');
    // As from another container of the same name: this number is another process there, or none.
    const holder = JSON.parse(await readFile(lock, 'utf8'));
    for (const seen of [{ pid: 2 ** 22 + 1 }, { pid: 1, started: 'another boot 1' }]) {
      await writeFile(lock, JSON.stringify({ ...holder, ...seen }));
      await expect(RunLock.take(lock, 'it')).rejects.toThrow('Another run works on it');
    }
    await writeFile(lock, JSON.stringify({ ...holder, pid: process.pid }));
    const kept = join(scratch, 'kept');
    await link(lock, kept);
    await held.release();
    await link(kept, lock); // as a process leaves it that is killed
    await (await RunLock.take(lock, 'it')).release();
  });

  test('what a worker held that was terminated is free again', async () => {
    const lock = join(scratch, 'lock');
    const script = `import { RunLock } from ${JSON.stringify(new URL('../lib/checkpoint/run-lock.js', import.meta.url).href)};
      import { parentPort } from 'node:worker_threads';
      await RunLock.take(${JSON.stringify(lock)}, 'it');
      parentPort.postMessage('held');
      setInterval(() => {}, 1000);`;
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(script)}`));
    await once(worker, 'message');
    await expect(RunLock.take(lock, 'it')).rejects.toMatchObject({ code: 'FILE_SYSTEM' });
    await worker.terminate();
    await (await RunLock.take(lock, 'it')).release();
  });

  test('what killed processes left beside a lock is removed with the next taking of it, and nothing else', async () => {
    const lock = join(scratch, '.out.unfinished.lock');
    const write = async (name: string, seconds: number, content: object | string = '') => {
      const path = `${lock}.${name}`;
      await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content));
      const time = Date.now() / 1000 - seconds;
      await utimes(path, time, time);
      return path;
    };
    const [gone, elsewhere] = [
      { pid: 2 ** 22 + 1, host: hostname(), locked: true },
      { pid: 1, host: 'elsewhere.invalid', locked: true },
    ];
    await write('00000000000a', 60, gone);
    await write('00000000000b', 60);
    await write('00000000000c', 2 * 86_400, elsewhere);
    const kept = [
      await write('11111111111a', 0, gone), // may be in the making
      await write('11111111111b', 0),
      await write('11111111111c', 60, elsewhere),
      await write('11111111111d', 60, { pid: process.pid, host: hostname() }),
      await write('11111111111e', 60),
      await write('txt', 60),
      await write('11111111111', 60),
      await write('1111111111111', 60),
    ];
    const file = await open(kept[4]!, 'r+');
    try {
      expect(addon().lockFile(file.fd)).toBe('locked');
      const held = await RunLock.take(lock, 'it');
      expect((await readdir(scratch)).sort()).toEqual([lock, ...kept].map((path) => basename(path)).sort());
      await held.release();
    } finally {
      await file.close();
    }
  });

  test('of many that take a lock at once only one has it at a time, and none leaves a file', async () => {
    const lock = join(scratch, 'lock');
    await writeFile(`${lock}.00000000000a`, '');
    await utimes(`${lock}.00000000000a`, 1, 1);
    let [inside, taken] = [0, 0];
    const taker = async () => {
      for (let i = 0; i < 20; i++) {
        const held = await RunLock.take(lock, 'it').catch((error: unknown) => {
          expect(error).toMatchObject({ message: expect.stringContaining('Another run works on it') });
        });
        if (!held) continue;
        expect(++inside).toBe(1);
        taken++;
        await setImmediate();
        inside--;
        await held.release();
      }
    };
    await Promise.all(Array.from({ length: 8 }, taker));
    expect(taken).toBeGreaterThan(0);
    expect(await readdir(scratch)).toEqual([]);
  });

  test.each([
    ['a process that is gone', { pid: 2 ** 22 + 1, host: hostname() }, true],
    ['an earlier process with this number', { pid: process.pid, host: hostname(), started: 'another boot 1' }, true],
    ['another machine', { pid: 1, host: 'elsewhere.invalid' }, false],
  ])('a lock of %s', async (_title, holder, free) => {
    await writeFile(join(scratch, '.out.unfinished.lock'), JSON.stringify(holder));
    const run = prune(options());
    if (free) await run;
    else await expect(run).rejects.toMatchObject({ message: expect.stringContaining('on elsewhere.invalid') });
  });
});

test('without resume nothing is left of a run that was stopped', async () => {
  await stopped({ model: union, calibration, sparsity: 0.6, out: join(scratch, 'out') }, 1);
  expect(await readdir(scratch)).toEqual([]);
});
