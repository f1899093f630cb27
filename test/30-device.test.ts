import { readdirSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Worker } from 'node:worker_threads';
import { Device } from '../src/device/device.js';
import { Scope } from '../src/device/tensor.js';

setFlagsFromString('--expose-gc');
const device = Device.open('cpu');

describe('device, stream, tensor', () => {
  test('what is written is read back', async () => {
    using stream = device.stream();
    using tensor = stream.upload('float32', [2, 3], new Float32Array([1, 2, 3, 4, 5, 6]));
    expect([...(await stream.read(tensor))]).toEqual([1, 2, 3, 4, 5, 6]);
    using row = tensor.rows(1, 2);
    expect([...(await stream.read(row))]).toEqual([4, 5, 6]);
    expect(row.shape).toEqual([1, 3]);
  });

  test('a new tensor is zero', async () => {
    using stream = device.stream();
    using tensor = device.tensor('float32', [1000]);
    expect((await stream.read(tensor)).every((x) => x === 0)).toBe(true);
  });

  test('a call that breaks an op’s shapes throws at once and says what came', () => {
    using stream = device.stream();
    using scope = new Scope();
    const a = scope.hold(device.tensor('float32', [2, 3]));
    expect(() => stream.gemm(a, a, a)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('float32 [2, 3]') }),
    );
  });

  test('a disposed tensor or stream refuses', async () => {
    const stream = device.stream();
    const tensor = device.tensor('float32', [4]);
    tensor.dispose();
    tensor.dispose();
    expect(() => stream.fill(tensor, 1)).toThrow(expect.objectContaining({ code: 'DISPOSED' }));
    stream.dispose();
    await expect(stream.sync()).rejects.toMatchObject({ code: 'DISPOSED' });
  });

  test('the limit is checked before memory is taken, and the error names the tensor', () => {
    const small = Device.open('cpu', { memoryLimit: 1 << 20 });
    expect(() => small.tensor('float32', [1 << 20], 'the Gram matrix of q')).toThrow(
      expect.objectContaining({
        code: 'OUT_OF_MEMORY',
        message: expect.stringMatching(/the Gram matrix of q, float32 \[1048576\]: 4194304 bytes .* limit of 1048576/),
      }),
    );
    using fits = small.tensor('float32', [1 << 17]);
    expect(small.info().memoryUsed).toBe(fits.size * 4);
  });

  test('devices with many different options do not stay', async () => {
    const collect = runInNewContext('gc') as () => void;
    const threads = () => readdirSync('/proc/self/task').length;
    const before = threads();
    for (let i = 1; i <= 24; i++) {
      const own = Device.open('cpu', { threads: 3, memoryLimit: (1 << 28) + i });
      using stream = own.stream();
      using tensor = own.tensor('float32', [1 << 16]);
      stream.fill(tensor, i);
      expect((await stream.read(tensor))[0]).toBe(i);
    }
    // Four are kept, of three threads each; handles are collected in their own time.
    for (let i = 0; i < 100 && threads() > before + 12; i++) {
      collect();
      await setTimeout(10);
      Device.open('cpu'); // frees what went on its own thread
    }
    expect(threads()).toBeLessThanOrEqual(before + 12);
  });

  test('memory is given back', async () => {
    const own = Device.open('cpu', { memoryLimit: 1 << 30 });
    using stream = own.stream();
    for (let i = 0; i < 10; i++) {
      const tensor = own.tensor('float32', [1 << 26]);
      tensor.dispose();
    }
    await stream.sync();
    expect(own.info().memoryUsed).toBe(0);
  });

  test('new tensors are zero, and those of no promised contents are NaN under ALPS_POISON', async () => {
    using stream = device.stream();
    using held = device.tensor('uint8', [1]); // while something is in use, what is freed is kept
    for (const length of [3, 1000, 300_000]) {
      for (let i = 0; i < 3; i++) {
        using zero = device.tensor('float32', [length]);
        expect(new Set(await stream.read(zero))).toEqual(new Set([0]));
        using empty = device.empty('float32', [length]);
        expect(new Set(await stream.read(empty))).toEqual(new Set([Number.NaN]));
        stream.fill(zero, 7);
        stream.fill(empty, 7);
        await stream.sync();
      }
    }
    expect(held.disposed).toBe(false);
  });

  test('an aborted signal rejects the await and refuses new streams', async () => {
    const controller = new AbortController();
    using stream = device.stream({ signal: controller.signal });
    using tensor = device.tensor('float32', [1 << 20]);
    for (let i = 0; i < 2000; i++) stream.fill(tensor, i);
    controller.abort();
    await expect(stream.sync()).rejects.toMatchObject({ code: 'ABORTED' });
    expect(() => device.stream({ signal: controller.signal })).toThrow(expect.objectContaining({ code: 'ABORTED' }));
  });

  test('an abort does not wait for the ops of other streams', async () => {
    const controller = new AbortController();
    using busy = device.stream();
    using stopped = device.stream({ signal: controller.signal });
    using tensor = device.tensor('float32', [1 << 18]);
    const order: string[] = [];
    for (let i = 0; i < 300; i++) busy.fill(tensor, i);
    for (let i = 0; i < 3000; i++) stopped.fill(tensor, i);
    const ends = [
      busy.sync().then(() => order.push('busy')),
      stopped.sync().catch(({ code }) => order.push(code)),
      stopped.read(tensor).catch(({ code }) => order.push(code)),
    ];
    controller.abort();
    await Promise.all(ends);
    expect(order).toEqual(['ABORTED', 'ABORTED', 'busy']);
  });

  test('the event loop turns while the device works', async () => {
    using stream = device.stream();
    using tensor = device.tensor('float32', [1 << 24]);
    let turns = 0;
    const timer = setInterval(() => turns++, 1);
    for (let i = 0; i < 20; i++) stream.fill(tensor, i);
    await stream.sync();
    clearInterval(timer);
    expect(turns).toBeGreaterThan(1);
  });

  test('streams share a device in turn', async () => {
    using first = device.stream();
    using second = device.stream();
    using tensor = device.tensor('float32', [1 << 22]);
    using other = device.tensor('float32', [1]);
    const order: string[] = [];
    for (let i = 0; i < 300; i++) first.fill(tensor, i);
    second.fill(other, 1);
    await Promise.all([first.sync().then(() => order.push('long')), second.sync().then(() => order.push('short'))]);
    expect(order).toEqual(['short', 'long']);
  });

  test('a worker terminated with work in flight takes nothing down', async () => {
    const worker = new Worker(
      `const { createRequire } = require('node:module');
       const addon = createRequire(process.cwd() + '/package.json')('node-gyp-build')(process.cwd());
       const device = addon.openDevice('cpu', { threads: 0, memoryLimit: 0, isa: '' }, { kernels: '', folders: [] });
       const stream = addon.openStream(device);
       const tensor = addon.makeTensor(device, 'float32', [1 << 22], 't', true);
       for (let i = 0; i < 5000; i++) addon.fill(stream, tensor, i);
       addon.readTensor(stream, tensor, new Float32Array(1 << 22), () => {});
       require('node:worker_threads').parentPort.postMessage('busy');`,
      { eval: true },
    );
    await new Promise((resolve) => worker.once('message', resolve));
    await worker.terminate();
    using stream = device.stream();
    await stream.sync();
  });
});
