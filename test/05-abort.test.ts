import { getEventListeners } from 'node:events';
import { onAbort } from '../src/abort.js';
import { Device } from '../src/device/device.js';
import { JobQueue } from '../src/jobs/job-queue.js';
import { pruneLayer } from '../src/pruning/prune-layer.js';
import { syntheticLayer } from './helpers/layers.js';

const listeners = (signal: AbortSignal) => getEventListeners(signal, 'abort').length;
const { weight, gram, shape } = syntheticLayer(12, 8);
const data = { weight, gram, shape, sparsity: 0.5 };
const layer = { ...data, device: 'cpu' as const };

describe('onAbort', () => {
  test('one listener for all; each is called once; those taken back are not', () => {
    const { signal, abort } = { signal: undefined as unknown as AbortSignal, abort: new AbortController() };
    expect(() => onAbort(signal, () => undefined)()).not.toThrow();
    const called: string[] = [];
    const release = ['a', 'b', 'c'].map((name) => onAbort(abort.signal, () => called.push(name)));
    expect(listeners(abort.signal)).toBe(1);
    release[1]!();
    release[1]!();
    abort.abort();
    expect(called).toEqual(['a', 'c']);
    for (const one of release) one();
    expect(listeners(abort.signal)).toBe(0);
  });

  test('the last one takes the listener with it, and the next one brings another', () => {
    const { signal } = new AbortController();
    onAbort(signal, () => undefined)();
    expect(listeners(signal)).toBe(0);
    const release = onAbort(signal, () => undefined);
    expect(listeners(signal)).toBe(1);
    release();
    expect(listeners(signal)).toBe(0);
  });

  test('a callback may take another back', () => {
    const controller = new AbortController();
    const called: string[] = [];
    onAbort(controller.signal, () => {
      called.push('first');
      second();
    });
    const second = onAbort(controller.signal, () => called.push('second'));
    controller.abort();
    expect(called).toEqual(['first']);
  });
});

describe('one signal for many', () => {
  test('layers and jobs add one listener, and leave none', async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const queue = new JobQueue({ device: 'cpu', concurrency: 2, maxQueued: 100 });
    const jobs = Array.from({ length: 40 }, () => queue.pruneLayer(data, { signal }));
    const layers = Array.from({ length: 15 }, () => pruneLayer({ ...layer, signal }));
    expect(listeners(signal)).toBe(1);
    await Promise.all([...jobs, ...layers]);
    expect(listeners(signal)).toBe(0);
    const more = Array.from({ length: 30 }, () => queue.pruneLayer(data, { signal }));
    controller.abort();
    const ends = await Promise.allSettled(more);
    expect(ends.every((end) => end.status === 'rejected' && end.reason.code === 'ABORTED')).toBe(true);
    await queue.close();
    expect(Device.open('cpu').info().memoryUsed).toBe(0);
  });

  test('what is no signal is refused', async () => {
    const signal = 'soon' as unknown as AbortSignal;
    const refusal = { code: 'INVALID_ARGUMENT', message: expect.stringContaining('an AbortSignal for signal') };
    await expect(pruneLayer({ ...layer, signal })).rejects.toMatchObject(refusal);
  });
});
