import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

// Hosts are processes of their own, with the compiled package, as users have them; `npm test` compiles it first.
const library = new URL('../lib/index.js', import.meta.url).href;

/** A layer whose solve takes far longer than the tests, unless something stops it. */
const prelude = `
  import { once } from 'node:events';
  import { Worker, isMainThread, parentPort } from 'node:worker_threads';
  import { Device, JobQueue, pruneLayer } from ${JSON.stringify(library)};
  const device = Device.open('cpu');
  const queue = new JobQueue({ device, concurrency: 2 });
  const layer = (n) => {
    const gram = new Float32Array(n * n);
    for (let i = 0; i < n; i++) gram[i * n + i] = 1 + (i % 5);
    return { weight: Float32Array.from({ length: n * n }, (_, i) => Math.sin(i)), shape: [n, n], gram, sparsity: 0.7 };
  };
  const long = { ...layer(512), schedule: 'fixed', alpsSchedule: { maxIterations: 1e6, initialRho: 1 } };
  const short = layer(48);
  const settled = async () => {
    using_ = device.stream();
    await using_.sync();
    using_.dispose();
    return device.info().memoryUsed;
  };
  let using_;
  /** Until jobs compute. */
  const busy = async () => {
    while (device.info().memoryUsed < 4 * 512 * 512 * 4) await new Promise((resolve) => setTimeout(resolve, 2));
  };
`;

interface End {
  status: number | null;
  signal: string | null;
  stdout: string;
  stderr: string;
}

/** Runs a module to its end; one that hangs is killed, and its status is null. */
function host(code: string, env: NodeJS.ProcessEnv = process.env): Promise<End> {
  const child = spawn(process.execPath, ['--input-type=module', '-e', prelude + code], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 50_000,
    killSignal: 'SIGKILL',
  });
  const output = { stdout: '', stderr: '' };
  child.stdout.setEncoding('utf8').on('data', (data) => (output.stdout += data));
  child.stderr.setEncoding('utf8').on('data', (data) => (output.stderr += data));
  return new Promise((resolve) => child.on('close', (status, signal) => resolve({ status, signal, ...output })));
}

/** A worker of the host above: the same prelude, then `code`. */
const worker = (code: string) =>
  `new Worker(new URL('data:text/javascript,' + encodeURIComponent(${JSON.stringify(prelude + code)})))`;

describe('work in flight when a process ends', () => {
  test('it ends by itself once its jobs are done: nothing has to be closed', async () => {
    const { status, stdout } = await host(`
      const results = await Promise.all([queue.pruneLayer(short), queue.pruneLayer(short), pruneLayer(short)]);
      console.log(results.map(({ kept }) => kept).join());`);
    expect({ status, stdout }).toEqual({ status: 0, stdout: '691,691,691\n' });
  });

  test('process.exit', async () => {
    const end = await host(`
      for (let i = 0; i < 4; i++) queue.pruneLayer(long).catch(() => {});
      await busy();
      process.exit(3);`);
    expect(end).toEqual({ status: 3, signal: null, stdout: '', stderr: '' });
  });

  test('an uncaught exception', async () => {
    const { status, signal, stderr } = await host(`
      for (let i = 0; i < 4; i++) queue.pruneLayer(long).catch(() => {});
      await busy();
      setTimeout(() => { throw new Error('of the host'); });`);
    expect({ status, signal }).toEqual({ status: 1, signal: null });
    expect(stderr).toContain('Error: of the host');
  });

  test('a rejection that nobody handles', async () => {
    const { status, signal, stderr } = await host(`
      queue.pruneLayer(long).catch(() => {});
      await busy();
      queue.pruneLayer({ ...short, weight: short.weight.map(() => NaN) });
      await new Promise(() => {});`);
    expect({ status, signal }).toEqual({ status: 1, signal: null });
    expect(stderr).toContain("code: 'NOT_FINITE'");
  });

  test('a signal that nobody handles', async () => {
    const { status, signal } = await host(`
      queue.pruneLayer(long).catch(() => {});
      await busy();
      process.kill(process.pid, 'SIGTERM');
      await new Promise(() => {});`);
    expect({ status, signal }).toEqual({ status: null, signal: 'SIGTERM' });
  });
});

describe('worker threads', () => {
  test('terminated during a solve: their memory comes back, and other threads work on', async () => {
    const end = await host(`
      for (let round = 0; round < 3; round++) {
        const workers = Array.from({ length: 3 }, () => ${worker(`
          for (let i = 0; i < 3; i++) queue.pruneLayer(long);
          await busy();
          parentPort.postMessage('busy');`)});
        const mine = queue.pruneLayer(short);
        await Promise.all(workers.map((one) => once(one, 'message')));
        await Promise.all(workers.map((one) => one.terminate()));
        await mine;
      }
      const { kept } = await queue.pruneLayer(short);
      console.log(kept, await settled());`);
    expect(end).toEqual({ status: 0, signal: null, stdout: '691 0\n', stderr: '' });
  });

  test('that exit or fail with work in flight', async () => {
    const { status, signal, stdout } = await host(`
      const exits = ${worker(`queue.pruneLayer(long); await busy(); process.exit(5);`)};
      const fails = ${worker(`queue.pruneLayer(long); await busy(); throw new Error('of the worker');`)};
      const [[code], [error]] = await Promise.all([once(exits, 'exit'), once(fails, 'error')]);
      const { kept } = await queue.pruneLayer(short);
      console.log(code, error.message, kept, await settled());`);
    expect({ status, signal, stdout }).toEqual({ status: 0, signal: null, stdout: '5 of the worker 691 0\n' });
  });

  test('process.exit of the main thread while they work', async () => {
    const end = await host(`
      const one = ${worker(`queue.pruneLayer(long); await busy(); parentPort.postMessage('busy');`)};
      await once(one, 'message');
      process.exit(4);`);
    expect(end).toEqual({ status: 4, signal: null, stdout: '', stderr: '' });
  });
});

test('without HOME and a temporary folder a model is pruned all the same', async () => {
  const model = fileURLToPath(new URL('../models/union-4m', import.meta.url));
  const scratch = await mkdtemp(join(tmpdir(), 'alps-host-'));
  const options = { model, out: join(scratch, 'out'), sparsity: 0.5, method: 'magnitude' };
  const code = `const { layers } = await queue.prune(${JSON.stringify(options)}); console.log(layers.length);`;
  const end = await host(code, { PATH: process.env.PATH, TMPDIR: '/no/such/folder' });
  await rm(scratch, { recursive: true });
  expect(end).toEqual({ status: 0, signal: null, stdout: '35\n', stderr: '' });
});

test('hundreds of jobs, many of them stopped: no memory of the device stays, no rejection is left', async () => {
  const end = await host(`
    const outcomes = {};
    const limited = new JobQueue({ device, concurrency: 3, maxQueued: 20 });
    const all = [];
    for (let i = 0; i < 300; i++) {
      await limited.ready();
      const controller = new AbortController();
      all.push(limited.pruneLayer(i % 10 ? short : long, { signal: controller.signal }).then(
        () => (outcomes.done = (outcomes.done ?? 0) + 1),
        ({ code }) => (outcomes[code] = (outcomes[code] ?? 0) + 1),
      ));
      if (i % 10 === 0) setTimeout(() => controller.abort(), 5);
    }
    await Promise.all(all);
    await limited.close();
    console.log(JSON.stringify(outcomes), await settled());`);
  expect(end).toEqual({ status: 0, signal: null, stdout: '{"ABORTED":30,"done":270} 0\n', stderr: '' });
});
