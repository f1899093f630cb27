import { AsyncLocalStorage } from 'node:async_hooks';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { randomNumbers } from '../src/calibration/windows.js';
import { Device } from '../src/device/device.js';
import { estimateLayerBytes, estimateModelBytes } from '../src/jobs/estimate.js';
import type { JobEvent } from '../src/jobs/events.js';
import { JobQueue } from '../src/jobs/job-queue.js';
import type { JobQueueOptions } from '../src/jobs/options.js';
import { WaitingLine } from '../src/jobs/waiting-line.js';
import { type PruneOptions, prune } from '../src/prune.js';
import type { PruningOptions } from '../src/pruning/options.js';
import { pruneLayer } from '../src/pruning/prune-layer.js';
import { syntheticLayer } from './helpers/layers.js';

// A device of its own, so that its memory is that of these jobs alone.
const device = Device.open('cpu', { memoryLimit: 1 << 29 });
const model = fileURLToPath(new URL('../models/union-4m', import.meta.url));
const { activations: _x, ...layer } = syntheticLayer(48, 32);

/** A job that ends when it is told to. */
function gate() {
  let open = () => {};
  const opened = new Promise<void>((resolve) => (open = resolve));
  return { open, work: () => opened };
}

/** Runs jobs one at a time behind a gate, and gives the order in which they were served. */
async function served(jobs: { name: string; priority?: number; key?: string }[]): Promise<string[]> {
  const queue = new JobQueue({ device, concurrency: 1 });
  const { open, work } = gate();
  const order: string[] = [];
  const first = queue.run(work);
  const all = jobs.map((job) => queue.run(() => order.push(job.name), job));
  open();
  await Promise.all([first, ...all]);
  return order;
}

const nothingUsed = async () => {
  using stream = device.stream();
  await stream.sync();
  return device.info().memoryUsed;
};

describe('order', () => {
  test('first come, first served', async () => {
    const names = Array.from({ length: 20 }, (_, i) => `job ${i}`);
    expect(await served(names.map((name) => ({ name })))).toEqual(names);
  });

  test('a higher priority goes first', async () => {
    const jobs = [0, 5, -1, 5, 0.5].map((priority, i) => ({ name: `${i}`, priority }));
    expect(await served(jobs)).toEqual(['1', '3', '4', '0', '2']);
  });

  test('keys of one priority are served in turn', async () => {
    const jobs = ['a1', 'a2', 'a3', 'a4', 'b1', 'b2', 'c1'].map((name) => ({ name, key: name[0]! }));
    expect(await served(jobs)).toEqual(['a1', 'b1', 'c1', 'a2', 'b2', 'a3', 'a4']);
  });

  test('of many priorities, whichever jobs leave the line', async () => {
    const queue = new JobQueue({ device, concurrency: 1 });
    const { open, work } = gate();
    const first = queue.run(work);
    const controller = new AbortController();
    const order: number[] = [];
    const priorities = Array.from({ length: 60 }, (_, i) => ((i * 37) % 20) - 10);
    const jobs = priorities.map((priority, i) =>
      queue.run(() => order.push(priority), i % 3 === 0 ? { priority, signal: controller.signal } : { priority }),
    );
    controller.abort();
    open();
    await Promise.allSettled([first, ...jobs]);
    expect(order).toEqual(priorities.filter((_, i) => i % 3 !== 0).sort((a, b) => b - a));
  });

  test('whatever joins the line and leaves it: as by lists', () => {
    const random = randomNumbers(7);
    const upTo = (count: number) => Math.floor(random() * count);
    const line = new WaitingLine<{ priority: number; key: string; id: number }>();
    /** By priority the keys with those of each, the next one first. */
    const lists = new Map<number, [key: string, ids: number[]][]>();
    const waiting: { priority: number; key: string; id: number }[] = [];
    const leave = ({ priority, key, id }: (typeof waiting)[number]) => {
      const level = lists.get(priority)!;
      const row = level.find(([name]) => name === key)!;
      row[1] = row[1].filter((one) => one !== id);
      lists.set(
        priority,
        level.filter(([, ids]) => ids.length > 0),
      );
      if (lists.get(priority)!.length === 0) lists.delete(priority);
      waiting.splice(
        waiting.findIndex((one) => one.id === id),
        1,
      );
    };
    for (let id = 0; id < 6000; id++) {
      const grows = id % 1000 < 500;
      if (random() < (grows ? 0.8 : 0.3)) {
        const item = { priority: upTo(12) - 6, key: `${upTo(4)}`, id };
        line.add(item);
        waiting.push(item);
        const level = lists.get(item.priority) ?? [];
        const row = level.find(([key]) => key === item.key);
        if (row) row[1].push(id);
        else level.push([item.key, [id]]);
        lists.set(item.priority, level);
      } else if (random() < 0.5) {
        const item = waiting[upTo(waiting.length)];
        if (!item) continue;
        expect(line.remove(item)).toBe(true);
        expect(line.remove(item)).toBe(false);
        leave(item);
      } else {
        const level = lists.get(Math.max(...lists.keys()));
        const expected = level?.[0]?.[1][0];
        expect(line.peek()?.id).toBe(expected);
        const item = line.take();
        expect(item?.id).toBe(expected);
        if (level) level.push(level.shift()!);
        if (item) leave(item);
      }
      expect(line.size).toBe(waiting.length);
    }
    expect(line.items().map(({ id }) => id)).toEqual(
      [...lists.values()].flatMap((level) => level.flatMap(([, ids]) => ids)),
    );
  });

  test('as many at once as asked for, and as the budget has bytes for', async () => {
    const queue = new JobQueue({ device, concurrency: 3, memoryBudget: 100 });
    const gates = [60, 50, 40, 10, 10].map((bytes) => ({ bytes, ...gate() }));
    const all = gates.map(({ work, bytes }) => queue.run(work, { bytes }));
    const load = () => [queue.load.running, queue.load.queued, queue.load.bytes];
    // 50 does not fit beside 60, and the small ones behind it do not overtake it.
    expect(load()).toEqual([1, 4, 60]);
    gates[0]!.open();
    await all[0];
    expect(load()).toEqual([3, 1, 100]);
    gates[1]!.open();
    await all[1];
    expect(load()).toEqual([3, 0, 60]);
    for (const { open } of gates) open();
    await queue.idle();
    expect(load()).toEqual([0, 0, 0]);
  });
});

describe('back-pressure', () => {
  test('beyond maxQueued a call is refused; ready() waits for room', async () => {
    const queue = new JobQueue({ device, concurrency: 1, maxQueued: 2 });
    const { open, work } = gate();
    const taken = [work, () => 1, () => 2].map((job) => queue.run<unknown>(job));
    await expect(queue.run(() => 3)).rejects.toMatchObject({
      code: 'QUEUE_FULL',
      message: expect.stringContaining('2 jobs wait'),
    });
    let ready = false;
    const waiting = queue.ready().then(() => (ready = true));
    await new Promise(setImmediate);
    expect(ready).toBe(false);
    open();
    await waiting;
    expect(await queue.run(() => 3)).toBe(3);
    expect(await Promise.all(taken)).toEqual([undefined, 1, 2]);
  });

  test('a producer that waits for ready() is never refused, however many there are', async () => {
    const queue = new JobQueue({ device, concurrency: 2, maxQueued: 1 });
    const done: number[] = [];
    const produce = async (i: number) => {
      await queue.ready();
      await queue.run(() => done.push(i));
    };
    await Promise.all(Array.from({ length: 50 }, (_, i) => produce(i)));
    expect(done).toEqual(Array.from({ length: 50 }, (_, i) => i));
  });

  test('nor where what runs leaves places but no memory, or nobody may wait', async () => {
    const out = await mkdtemp(join(tmpdir(), 'alps-jobs-'));
    for (const maxQueued of [0, 1]) {
      const queue = new JobQueue({ device, concurrency: 2, memoryBudget: 100, maxQueued });
      const { open, work } = gate();
      const running = queue.run(work, { bytes: 100 });
      const produced = [0, 1].map(async (i) => {
        await queue.ready();
        if (i === 0) return queue.run(() => 'taken', { bytes: 50 });
        const options = { model, out: join(out, `${maxQueued}`), sparsity: 0.5, method: 'magnitude' } as const;
        return queue.prune(options, { bytes: 50 }).then(() => 'taken');
      });
      setImmediate(open);
      expect(await Promise.all(produced)).toEqual(['taken', 'taken']);
      await running;
    }
    const queue = new JobQueue({ device, concurrency: 2, maxQueued: 1 });
    const { open, work } = gate();
    const running = queue.run(work, { bytes: queue.memoryBudget });
    await Promise.all([queue.ready(), queue.ready()]);
    const waits = queue.run(() => 'taken', { bytes: 50 });
    const estimated = queue.prune({ model, out: join(out, 'estimated'), sparsity: 0.5, method: 'magnitude' });
    open();
    await Promise.all([running, waits, estimated]);
    await rm(out, { recursive: true });
  });

  test('so are those of models, whose headers are read first; a full queue opens none', async () => {
    const out = await mkdtemp(join(tmpdir(), 'alps-jobs-'));
    const queue = new JobQueue({ device, concurrency: 1, maxQueued: 1 });
    const start = (i: number) => queue.prune({ model, out: join(out, `${i}`), sparsity: 0.5, method: 'magnitude' });
    await Promise.all(Array.from({ length: 6 }, (_, i) => queue.ready().then(() => start(i))));
    const refused: JobEvent[] = [];
    const { open, work } = gate();
    const taken = [queue.run(work), queue.run(work)];
    const none = { model: join(out, 'none'), out: join(out, 'x'), sparsity: 0.5, method: 'magnitude' } as const;
    await expect(queue.prune(none, { onEvent: (event) => refused.push(event) })).rejects.toMatchObject({
      code: 'QUEUE_FULL',
    });
    expect(refused.map(({ type }) => type)).toEqual(['refused']);
    open();
    await Promise.all(taken);
    await expect(queue.prune(none)).rejects.toMatchObject({ code: 'FILE_SYSTEM' });
    expect(await Promise.all([queue.run(() => 1), queue.run(() => 2)])).toEqual([1, 2]);
    await rm(out, { recursive: true });
  });

  test.each([
    ['OUT_OF_MEMORY', 1e5, 0],
    ['INVALID_ARGUMENT', 1e9, Number.NaN],
  ])('a model that is refused once its headers are read leaves its place: %s', async (code, memoryBudget, priority) => {
    const queue = new JobQueue({ device, concurrency: 1, maxQueued: 0, memoryBudget });
    const options = { model, out: join(tmpdir(), 'alps-refused'), sparsity: 0.5, method: 'magnitude' } as const;
    const refused = expect(queue.prune(options, { priority })).rejects.toMatchObject({ code });
    const ready = queue.ready();
    await refused;
    await ready;
  });

  test('those who are let in and do nothing do not keep others out', async () => {
    const queue = new JobQueue({ device, concurrency: 1, maxQueued: 1 });
    const { open, work } = gate();
    const jobs = [queue.run(work), queue.run(() => {})];
    const waiting = Array.from({ length: 5 }, () => queue.ready());
    const given = queue.ready({ signal: AbortSignal.abort() });
    await expect(given).rejects.toMatchObject({ code: 'ABORTED' });
    open();
    await Promise.all([...jobs, ...waiting]);
  });

  test('with maxQueued 0 only what starts at once is taken', async () => {
    const queue = new JobQueue({ device, concurrency: 1, maxQueued: 0 });
    const { open, work } = gate();
    const running = queue.run(work);
    await expect(queue.run(work)).rejects.toMatchObject({ code: 'QUEUE_FULL' });
    open();
    await running;
  });

  test('a job larger than the budget is refused at once', async () => {
    const queue = new JobQueue({ device, memoryBudget: 1000 });
    await expect(queue.pruneLayer({ ...layer, name: 'q', sparsity: 0.5 })).rejects.toMatchObject({
      code: 'OUT_OF_MEMORY',
      message: expect.stringMatching(/^q needs \d+ bytes, more than the queue's whole memory budget of 1000$/),
    });
  });
});

describe('cancellation', () => {
  test('a queued job leaves the line, and the next one is served', async () => {
    const queue = new JobQueue({ device, concurrency: 1 });
    const { open, work } = gate();
    const controller = new AbortController();
    const order: string[] = [];
    const jobs = [
      queue.run(work),
      queue.run(() => order.push('cancelled'), { signal: controller.signal }),
      queue.run(() => order.push('next')),
    ];
    const why = new Error('why');
    controller.abort(why);
    await expect(jobs[1]).rejects.toMatchObject({ code: 'ABORTED', cause: why });
    expect(queue.load).toEqual({ running: 1, queued: 1, bytes: 0 });
    open();
    await Promise.all([jobs[0], jobs[2]]);
    expect(order).toEqual(['next']);
    await expect(queue.run(work, { signal: controller.signal })).rejects.toMatchObject({ code: 'ABORTED' });
  });

  test('many that one signal stops: each is told in order, before anything else is started, with no signal made for it', async () => {
    const Made = globalThis.AbortController;
    let made = 0;
    globalThis.AbortController = class extends Made {
      constructor() {
        super();
        made++;
      }
    };
    try {
      const events: string[] = [];
      const onEvent = ({ type, job, load }: JobEvent) => events.push(`${job.name} ${type}, ${load.queued} wait`);
      const queue = new JobQueue({ device, concurrency: 2, memoryBudget: 100, onEvent });
      const { open, work } = gate();
      const running = queue.run(work, { name: 'running', bytes: 60 });
      const controller = new Made();
      const { signal } = controller;
      const stopped = Array.from({ length: 500 }, (_, i) => queue.run(work, { name: `${i}`, bytes: 90, signal }));
      const small = queue.run(() => 'small', { name: 'small', bytes: 40 });
      expect(made).toBe(1);
      events.length = 0;
      const why = new Error('why');
      controller.abort(why);
      expect(events).toEqual(stopped.map((_, i) => `${i} finished, ${500 - i} wait`));
      for (const job of stopped) await expect(job).rejects.toMatchObject({ code: 'ABORTED', cause: why });
      expect(await small).toBe('small');
      expect(events.slice(500, 502)).toEqual(['small started, 0 wait', 'small finished, 0 wait']);
      expect(made).toBe(2);
      open();
      await running;
    } finally {
      globalThis.AbortController = Made;
    }
  });

  test('of those that one signal stops, or close({ cancel }), none is started', async () => {
    for (const stop of ['signal', 'close']) {
      const queue = new JobQueue({ device, concurrency: 2, memoryBudget: 100 });
      const { open, work } = gate();
      const controller = new AbortController();
      const { signal } = controller;
      const started: string[] = [];
      const running = queue.run(work, { bytes: 50 });
      const onEvent = ({ type }: JobEvent) => {
        if (type === 'finished' && stop === 'signal') void queue.run(() => undefined); // starts what fits
      };
      const large = queue.run(() => started.push('large'), { bytes: 100, signal, onEvent });
      const small = queue.run(() => started.push('small'), { bytes: 10, signal });
      if (stop === 'signal') controller.abort();
      const closed = stop === 'close' ? queue.close({ cancel: true }) : undefined;
      for (const job of [large, small]) await expect(job).rejects.toMatchObject({ code: 'ABORTED' });
      expect(started).toEqual([]);
      open();
      await Promise.all([running, closed]);
    }
  });

  test('the memory of a call that fails or is stopped is back when it rejects, and the next job has it', async () => {
    const { activations, weight, shape } = syntheticLayer(96, 256, { tokens: 2048 });
    const options = { activations, weight, shape, sparsity: 0.5, method: 'wanda' } as const;
    const own = Device.open('cpu', { memoryLimit: estimateLayerBytes(options) });
    const queue = new JobQueue({ device: own, concurrency: 1 });
    const larger = syntheticLayer(4096, 256, { tokens: 2048 });
    const tooLarge = { ...options, activations: larger.activations, weight: larger.weight, shape: larger.shape };
    for (let i = 0; i < 5; i++) {
      const alone = pruneLayer({ ...tooLarge, device: own });
      await expect(alone).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' });
      expect(own.info().memoryUsed).toBe(0);
      const failing = queue.pruneLayer(tooLarge, { bytes: 1 });
      const good = [0, 1, 2].map(() => queue.pruneLayer(options));
      await expect(failing).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' });
      await Promise.all(good);
      for (const delay of [0, 1, 2, 3, 4]) {
        const controller = new AbortController();
        const stopped = pruneLayer({ ...options, device: own, signal: controller.signal });
        setTimeout(() => controller.abort(), delay);
        await stopped.catch(({ code }) => expect(code).toBe('ABORTED'));
        expect(own.info().memoryUsed).toBe(0);
      }
    }
  });

  test('a large job that is cancelled lets those behind it start', async () => {
    const queue = new JobQueue({ device, concurrency: 2, memoryBudget: 100 });
    const { open, work } = gate();
    const controller = new AbortController();
    const first = queue.run(work, { bytes: 60 });
    const large = queue.run(work, { bytes: 90, signal: controller.signal });
    const small = queue.run(() => 'small', { bytes: 40 });
    controller.abort();
    await expect(large).rejects.toMatchObject({ code: 'ABORTED' });
    expect(await small).toBe('small');
    open();
    await first;
  });

  test('layers that run and layers that wait: all memory comes back, nothing is left unhandled', async () => {
    const unhandled: unknown[] = [];
    const note = (error: unknown) => unhandled.push(error);
    process.on('unhandledRejection', note);
    const queue = new JobQueue({ device, concurrency: 3 });
    const wide = syntheticLayer(192, 192, { tokens: 300 });
    const outcomes = await Promise.all(
      Array.from({ length: 24 }, async (_, i) => {
        const controller = new AbortController();
        const job = queue.pruneLayer(
          { ...wide, activations: undefined, sparsity: 0.6, name: `layer ${i}` },
          { signal: controller.signal },
        );
        if (i % 3 === 1) setTimeout(() => controller.abort(), i);
        if (i % 3 === 2) controller.abort();
        return job.then(
          ({ sparsity }) => sparsity,
          ({ code }) => code,
        );
      }),
    );
    await queue.close();
    await new Promise(setImmediate);
    process.off('unhandledRejection', note);
    for (const [i, outcome] of outcomes.entries()) {
      if (i % 3 === 0) expect(outcome).toBeCloseTo(0.6, 3);
      if (i % 3 === 2) expect(outcome).toBe('ABORTED');
    }
    expect(unhandled).toEqual([]);
    expect(await nothingUsed()).toBe(0);
  });

  test('close() lets jobs end, close({ cancel }) stops them; both refuse new ones', async () => {
    const queue = new JobQueue({ device, concurrency: 1 });
    const jobs = [queue.run(() => 1), queue.run(() => 2)];
    await queue.close();
    expect(await Promise.all(jobs)).toEqual([1, 2]);
    await expect(queue.run(() => 3)).rejects.toMatchObject({ code: 'DISPOSED' });
    await expect(queue.ready()).rejects.toMatchObject({ code: 'DISPOSED' });

    const other = new JobQueue({ device, concurrency: 1, maxQueued: 1 });
    const running = other.run(
      ({ signal }) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason))),
    );
    const ends = [running, other.run(() => 2), other.ready()].map((promise) => promise.catch(({ code }) => code));
    await other.close({ cancel: true });
    expect(await Promise.all(ends)).toEqual(['ABORTED', 'ABORTED', 'DISPOSED']);
  });

  test('idle() and close() wait for models whose headers are being read; close({ cancel }) takes none of them', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'alps-closing-'));
    const start = (queue: JobQueue, name: string) => {
      let isDone = false;
      const job = queue.prune({ model, out: join(folder, name), sparsity: 0.5, method: 'magnitude' });
      const settled = job.then(
        () => (isDone = true),
        ({ code }) => code,
      );
      return { settled, isDone: () => isDone };
    };
    const [idle, closed, stopped] = [0, 1, 2].map(() => new JobQueue({ device, concurrency: 1 }));
    const first = start(idle!, 'idle');
    await idle!.idle();
    expect(first.isDone()).toBe(true);
    const second = start(closed!, 'closed');
    await closed!.close();
    expect(second.isDone()).toBe(true);
    const third = start(stopped!, 'stopped');
    await stopped!.close({ cancel: true });
    expect(await third.settled).toBe('DISPOSED');
    await rm(folder, { recursive: true });
  });
});

test('a layer whose data is read when its turn comes', async () => {
  const queue = new JobQueue({ device, concurrency: 1 });
  const { open, work } = gate();
  const order: string[] = [];
  const bytes = estimateLayerBytes({ shape: layer.shape, sparsity: 0.5 });
  const first = queue.run(() => work().then(() => order.push('first')));
  const lazy = async () => {
    order.push('read');
    return { ...layer, sparsity: 0.5 };
  };
  const second = queue.pruneLayer(lazy, { bytes, name: 'lazy' });
  open();
  await first;
  expect((await second).sparsity).toBe(0.5);
  expect(order).toEqual(['first', 'read']);
  await expect(queue.pruneLayer(lazy)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
});

describe('memory estimates', () => {
  test('what they cannot be of is refused', async () => {
    const shape = [8, 8] as const;
    for (const activations of [null, 'abcd', [], new Float32Array(12)])
      expect(() => estimateLayerBytes({ shape, sparsity: 0.5, activations: activations as never })).toThrow(
        'Expected numbers [tokens, 8] for activations',
      );
    expect(() => estimateLayerBytes({ shape, pattern: { keep: 2, of: 5 } })).toThrow('a width that 5 divides');
    expect(() => estimateLayerBytes({ shape, sparsity: 0.5, tokens: 0 })).toThrow('at least 1 for tokens');
    expect(() => estimateLayerBytes({ shape, sparsity: 0.5, precision: 'fp16' as never })).toThrow(
      'Expected "float32" or "bfloat16" for precision but received "fp16"',
    );
    for (const given of [undefined, 'cpu'])
      await expect(estimateModelBytes({ model, out: 'out', sparsity: 0.5 }, given as never)).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining('Expected an open device for device'),
      });
  });

  test.each<[string, unknown]>([
    ['none', []],
    ['numbers', [1, 2]],
    ['null', [null]],
    ['a window without ids', [[]]],
    ['an object', {}],
    ['one window', new Uint32Array(4)],
  ])('token ids that are no windows are named as prune() does: %s', async (_, tokenIds) => {
    const options = { model, out: 'out', sparsity: 0.5, calibration: { tokenIds: tokenIds as never } };
    const { code, message } = await prune(options).catch((error) => error);
    expect(message).toContain('tokenIds');
    await expect(new JobQueue({ device }).prune(options)).rejects.toMatchObject({ code, message });
    await expect(estimateModelBytes(options, device)).rejects.toMatchObject({ code, message });
  });

  test('the largest layer takes no longer than the smallest', () => {
    expect(estimateLayerBytes({ shape: [1e9, 1e9], sparsity: 0.7 })).toBeGreaterThan(1e19);
  });

  const methods: PruningOptions[] = [
    {},
    { refit: 'backsolve' },
    { schedule: 'alps', metric: 'diagonal', traceErrors: true, traceEvery: 1 },
    { method: 'magnitude' },
    { method: 'magnitude', errors: false },
    { method: 'wanda' },
    { method: 'wanda', errors: false },
    { method: 'wanda', refit: 'pcg' },
    { method: 'dsnot' },
    { method: 'dsnot', errors: false },
    { preset: 'balanced' },
    { method: 'sparsegpt' },
    { method: 'dsnot', dsnot: { initial: 'sparsegpt' } },
  ];
  const shapes = [
    [96, 256],
    [512, 128],
    [200, 200],
  ] as const;

  test.each(methods.flatMap((options) => shapes.map((shape) => ({ options, shape }))))(
    'of a layer: at least what it takes, at most 30 % more: $options $shape',
    async ({ options, shape: [m, n] }) => {
      const { gram, ...rest } = syntheticLayer(m, n, { tokens: 256 });
      for (const precision of ['float32', 'bfloat16'] as const) {
        const job = { ...rest, sparsity: 0.6, precision, device, ...options };
        device.resetPeak();
        await pruneLayer(job);
        const { memoryPeak } = device.info();
        expect(estimateLayerBytes(job)).toBeGreaterThanOrEqual(memoryPeak);
        expect(estimateLayerBytes(job)).toBeLessThan(1.3 * memoryPeak + 32768);
      }
      expect(gram.length).toBe(n * n);
    },
  );

  /** The estimate of a model is no less than what its pruning takes, and not twice as much. */
  async function pruneWithin(job: PruneOptions, own: Device): Promise<void> {
    own.resetPeak();
    await prune(job);
    const { memoryPeak } = own.info();
    const estimate = await estimateModelBytes(job, own);
    expect(estimate).toBeGreaterThanOrEqual(memoryPeak);
    expect(estimate).toBeLessThan(2 * memoryPeak);
  }

  // Where the block behind is read meanwhile.
  test.each(['gpt2', 'mixtral', 'opt-post'])('of a model on a GPU: %s', async (name) => {
    const own = Device.open('cuda:0', { memoryLimit: (1 << 29) + name.length });
    const out = await mkdtemp(join(tmpdir(), 'alps-jobs-'));
    const tokenIds = Array.from({ length: 20 }, (_, i) => Array.from({ length: 24 }, (_, j) => (i * 31 + j * 7) % 90));
    const job: PruneOptions = {
      model: fileURLToPath(new URL(`fixtures/models/${name}`, import.meta.url)),
      out: join(out, 'pruned'),
      sparsity: 0.5,
      calibration: { tokenIds },
      device: own,
    };
    await pruneWithin(job, own);
    await rm(out, { recursive: true });
  });

  test.each(['union-4m', 'gpt2', 'opt-post', 'mixtral', 'qwen3-moe-fused', 'gemma2'])(
    'of a model: %s',
    async (name) => {
      const own = Device.open('cpu', { memoryLimit: (1 << 29) + name.length }); // its peak is that of this test alone
      const folder = name === 'union-4m' ? model : fileURLToPath(new URL(`fixtures/models/${name}`, import.meta.url));
      const out = await mkdtemp(join(tmpdir(), 'alps-jobs-'));
      const windows = (count: number) =>
        Array.from({ length: count }, (_, i) => Array.from({ length: 24 }, (_, j) => (i * 31 + j * 7) % 90));
      const ids = windows(40);
      const jobs: Partial<PruneOptions>[] = [
        { propagation: 'sequential' },
        { propagation: 'block' },
        { calibration: { tokenIds: windows(520) } }, // several chunks
        { method: 'wanda', refit: 'pcg', denseTarget: true },
        // The weighted rows beside a solve, with nothing else there, and few other tensors.
        { denseTarget: false, calibration: { tokenIds: ids.slice(0, 3) } },
        { denseTarget: false, calibration: { tokenIds: ids.slice(0, 3) }, precision: 'bfloat16', preset: 'balanced' },
        // What the model writes takes more than its pruning.
        { method: 'magnitude', calibration: { tokenIds: ids.slice(0, 1), ownWindows: 3 } },
        { method: 'magnitude', calibration: { tokenIds: ids.slice(0, 1), ownWindows: 3 }, precision: 'bfloat16' },
      ];
      for (const [i, options] of jobs.entries()) {
        const job: PruneOptions = {
          model: folder,
          out: join(out, `${i}`),
          sparsity: 0.5,
          calibration: { tokenIds: ids },
          device: own,
          ...options,
        };
        await pruneWithin(job, own);
      }
      await rm(out, { recursive: true });
    },
    300_000,
  );

  test('of a model that writes fewer windows at a time where memory is short', async () => {
    const out = await mkdtemp(join(tmpdir(), 'alps-jobs-'));
    const job: PruneOptions = {
      model,
      out: join(out, 'pruned'),
      sparsity: 0.5,
      method: 'magnitude',
      precision: 'float32', // in bfloat16 loading the model takes more than writing
      calibration: { tokenIds: [Array.from({ length: 32 }, (_, i) => i)], ownWindows: 40 },
    };
    const most = await estimateModelBytes(job, Device.open('cpu', { memoryLimit: 1 << 30 }));
    const least = await estimateModelBytes(job, Device.open('cpu', { memoryLimit: 1 << 20 }));
    expect(least).toBeLessThan(most);
    const tight = Device.open('cpu', { memoryLimit: Math.ceil((least + most) / 2) });
    expect(await estimateModelBytes(job, tight)).toBe(tight.info().memoryLimit);
    await new JobQueue({ device: tight }).prune(job);
    expect(tight.info().memoryPeak).toBeLessThanOrEqual(tight.info().memoryLimit);
    await rm(out, { recursive: true });
  }, 300_000);

  test('of a model whose calibration is a file of token ids: as many windows as it has', async () => {
    const out = await mkdtemp(join(tmpdir(), 'alps-jobs-'));
    const ids = Array.from({ length: 300 }, (_, i) => Array.from({ length: 24 }, (_, j) => (i * 31 + j * 7) % 90));
    const text = join(out, 'ids.json');
    await writeFile(text, JSON.stringify(ids));
    const job = { model, out, sparsity: 0.5 };
    expect(await estimateModelBytes({ ...job, calibration: { text } }, device)).toBe(
      await estimateModelBytes({ ...job, calibration: { tokenIds: ids } }, device),
    );
    for (const [windows, taken] of [[100, 100], [400, 300]] as const) // biome-ignore format: pairs
      expect(await estimateModelBytes({ ...job, calibration: { text, windows } }, device)).toBe(
        await estimateModelBytes({ ...job, calibration: { tokenIds: ids.slice(0, taken) } }, device),
      );
    await rm(out, { recursive: true });
  });

  test('a queue never takes more than its budget', async () => {
    const wide = { ...syntheticLayer(128, 128, { tokens: 200 }), activations: undefined, sparsity: 0.5 };
    const bytes = estimateLayerBytes(wide);
    const queue = new JobQueue({ device, concurrency: 8, memoryBudget: Math.floor(2.5 * bytes) });
    device.resetPeak();
    const jobs = Array.from({ length: 8 }, () => queue.pruneLayer(wide));
    expect(queue.load).toEqual({ running: 2, queued: 6, bytes: 2 * bytes });
    await Promise.all(jobs);
    expect(device.info().memoryPeak).toBeLessThanOrEqual(queue.memoryBudget);
    expect(await nothingUsed()).toBe(0);
  });
});

describe('what is told', () => {
  test('in the async context that a job was queued in', async () => {
    const request = new AsyncLocalStorage<string>();
    const seen: string[] = [];
    const queue = new JobQueue({
      device,
      concurrency: 1,
      onEvent: ({ type, job }) => seen.push(`${job.name} ${type} in ${request.getStore()}`),
    });
    const controller = new AbortController();
    const submit = (name: string, signal?: AbortSignal) =>
      request.run(name, () =>
        queue.run(() => seen.push(`${name} runs in ${request.getStore()}`), { name, ...(signal && { signal }) }),
      );
    const jobs = [submit('a'), submit('b'), submit('c', controller.signal)];
    request.run('other', () => controller.abort());
    await Promise.allSettled(jobs);
    expect(seen).toHaveLength(10);
    for (const line of seen) expect(line).toMatch(/^(\w) .* in \1$/);
  });

  test('all listeners of one event before any of the next', async () => {
    const seen: string[] = [];
    const queue = new JobQueue({ device, concurrency: 1, onEvent: ({ type }) => seen.push(`queue: ${type}`) });
    const { open, work } = gate();
    const first = queue.run(work);
    const controller = new AbortController();
    const onEvent = ({ type }: JobEvent) => {
      seen.push(`job: ${type}`);
      if (type === 'queued') controller.abort();
    };
    seen.length = 0;
    const job = queue.run(work, { signal: controller.signal, onEvent });
    await expect(job).rejects.toMatchObject({ code: 'ABORTED' });
    expect(seen).toEqual(['job: queued', 'queue: queued', 'job: finished', 'queue: finished']);
    open();
    await first;
  });

  test('events, channel and logger: each job from queued to finished', async () => {
    const events: JobEvent[] = [];
    const lines: [level: string, facts: object, message?: string][] = [];
    const log = (level: string) => (facts: object, message?: string) => lines.push([level, facts, message]);
    const logger = { debug: log('debug'), info: log('info'), warn: log('warn'), error: log('error') };
    const published: unknown[] = [];
    const note = (message: unknown) => published.push(message);
    subscribe('alps-prune:job', note);
    const queue = new JobQueue({
      device,
      concurrency: 1,
      maxQueued: 1,
      logger,
      onEvent: (event) => events.push(event),
    });
    const jobs = [
      queue.pruneLayer({ ...layer, sparsity: 0.5, name: 'q' }, { key: 'me', priority: 2 }),
      queue.pruneLayer({ ...layer, weight: layer.weight.map(() => Number.NaN), sparsity: 0.5, name: 'k' }),
      queue.pruneLayer({ ...layer, sparsity: 0.5, name: 'v' }),
    ];
    await Promise.allSettled(jobs);
    unsubscribe('alps-prune:job', note);
    expect(events.map(({ type, job }) => `${job.name} ${type}`)).toEqual([
      'q queued',
      'q started',
      'k queued',
      'v refused',
      'q finished',
      'k started',
      'k finished',
    ]);
    expect(published).toEqual(events);
    expect(events[1]).toEqual({
      type: 'started',
      job: {
        id: 1,
        kind: 'layer',
        name: 'q',
        key: 'me',
        priority: 2,
        bytes: estimateLayerBytes({ ...layer, sparsity: 0.5 }),
      },
      load: { running: 1, queued: 0, bytes: events[1]!.job.bytes },
      waited: expect.any(Number),
    });
    expect(events[4]).toMatchObject({ outcome: 'done' });
    expect(events[6]).toMatchObject({ outcome: 'failed', code: 'NOT_FINITE' });
    expect(lines.map(([level]) => level)).toEqual(['debug', 'info', 'debug', 'warn', 'info', 'info', 'error']);
    expect(lines[6]).toEqual(['error', expect.objectContaining({ err: expect.any(Error) }), 'k failed']);
  });

  test('a model’s progress, its own logger and channel', async () => {
    const out = await mkdtemp(join(tmpdir(), 'alps-jobs-'));
    const events: JobEvent[] = [];
    const messages: string[] = [];
    const published: unknown[] = [];
    const note = (message: unknown) => published.push(message);
    const log = (_facts: object, message?: string) => messages.push(message!);
    subscribe('alps-prune:prune', note);
    const queue = new JobQueue({ device });
    const options = {
      model,
      sparsity: 0.5,
      method: 'magnitude',
      logger: { debug: log, info: log, warn: log, error: log },
    } as const;
    const report = await queue.prune({ ...options, out: join(out, 'a') }, { onEvent: (event) => events.push(event) });
    await expect(queue.prune({ ...options, model: join(out, 'none'), out: join(out, 'b') })).rejects.toMatchObject({
      code: 'FILE_SYSTEM',
    });
    await expect(queue.prune({ ...options, sparsity: 2, out: join(out, 'b') })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    unsubscribe('alps-prune:prune', note);
    await rm(out, { recursive: true });
    const progress = events.flatMap((event) => (event.type === 'progress' ? [event.event.type] : []));
    expect(progress.filter((type) => type === 'layer')).toHaveLength(report.layers.length);
    expect(messages).toHaveLength(progress.length);
    expect(published).toHaveLength(progress.length);
    expect(published[0]).toMatchObject({ model, event: { type: 'start' } });
  });

  test('a listener that throws is an uncaught error, and the queue goes on', async () => {
    // In a process of its own: jest's would end.
    const { spawnSync } = await import('node:child_process');
    const { status, stdout } = spawnSync(
      process.execPath,
      [
        '--input-type=module',
        '-e',
        `import { JobQueue } from ${JSON.stringify(new URL('../lib/index.js', import.meta.url).href)};
         const errors = [];
         process.on('uncaughtException', (error) => errors.push(error.message));
         const queue = new JobQueue({ device: 'cpu', onEvent: ({ type }) => { throw new Error(type); } });
         const value = await queue.run(() => 42);
         await new Promise(setImmediate);
         console.log(JSON.stringify([value, errors]));`,
      ],
      { encoding: 'utf8' },
    );
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toEqual([42, ['queued', 'started', 'finished']]);
  });
});

test.each<[string, Partial<Record<keyof JobQueueOptions, unknown>>, string]>([
  ['concurrency', { concurrency: 0 }, 'Expected an integer of at least 1 for concurrency but received 0'],
  ['maxQueued', { maxQueued: 1.5 }, 'Expected an integer of at least 0 for maxQueued'],
  ['memoryBudget', { memoryBudget: Number.NaN }, 'Expected an integer of at least 1 for memoryBudget'],
  ['logger', { logger: { info() {} } }, 'Expected an object with the functions debug, info, warn and error for logger'],
  ['device', { device: 'tpu' }, 'for device but received "tpu"'],
])('a wrong %s is refused in words', (_name, options, message) => {
  expect(() => new JobQueue(options as JobQueueOptions)).toThrow(
    expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(message) }),
  );
});

test('no job, no options, and no listener are refused', async () => {
  const queue = new JobQueue({ device });
  const none = null as never;
  for (const wrong of [
    queue.run(() => 1, none),
    queue.run(() => 1, { onEvent: 'x' as never }),
    queue.pruneLayer({ ...layer, sparsity: 0.5 }, none),
    queue.pruneLayer(none),
    queue.prune({ model, out: 'x', sparsity: 0.5, method: 'magnitude' }, none),
    queue.prune({ model, out: 'x', sparsity: 0.5, method: 'magnitude' }, { onEvent: 5 as never }),
    queue.ready(none),
    queue.close(none),
  ])
    await expect(wrong).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  await queue.idle();
});

test('wrong job options are refused in words', async () => {
  const queue = new JobQueue({ device });
  const refused = (promise: Promise<unknown>, message: string) =>
    expect(promise).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(message) });
  await refused(queue.run(1 as never), 'Expected a function for work');
  await refused(
    queue.run(() => 1, { priority: Number.NaN }),
    'Expected a finite number for priority',
  );
  await refused(
    queue.run(() => 1, { bytes: -1 }),
    'Expected an integer of at least 0 for bytes',
  );
  await refused(
    queue.run(() => 1, { key: 1 as never }),
    'Expected a string for key',
  );
  await refused(queue.pruneLayer({ ...layer, sparsity: 2 }), 'sparsity');
  await refused(
    queue.run(() => 1, { name: {} as never }),
    'Expected a string for name',
  );
  await refused(queue.close({ cancel: 'yes' as never }), 'Expected true or false for cancel');
  expect(queue.load).toEqual({ running: 0, queued: 0, bytes: 0 });
});
