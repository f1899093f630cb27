import { cp, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Device } from '../src/device/device.js';
import { prune } from '../src/prune.js';
import { type Method, methods } from '../src/pruning/options.js';
import { type PruneLayerOptions, pruneLayer } from '../src/pruning/prune-layer.js';
import { syntheticLayer } from './helpers/layers.js';
import './helpers/numbers.js'; // names the library of the kernels, if the environment does not
import { codeOf } from './helpers/properties.js';
import { temporaryFolder } from './helpers/safetensors-files.js';

// A GPU without memory left: the kernels' device on the processor refuses allocations, of tensors and of what ops need besides.

const slow: readonly Method[] = ['alps', 'sparsegpt']; // one in nine of their allocations is enough
const every = Number(process.env.ALPS_FUZZ_RUNS ?? 1) >= 10;
const { weight, activations, shape } = syntheticLayer(12, 16, { tokens: 40 });
const given = { weight, activations, shape, sparsity: 0.5 };
const bytesOf = ({ buffer }: Float32Array<ArrayBuffer>) => Buffer.from(buffer).toString('base64');
const onHost = process.env.ALPS_CUDA_LIBRARY!.includes('alps_cuda_host') ? describe : describe.skip;

let opened = 0;

/** A device of its own that refuses its n-th allocation, or undefined where opening it already makes that many. */
function refusing(n: number): Device | undefined {
  try {
    return Device.openKernels('cuda:0', `refuse=${n},own=${opened++}`); // other settings, another device
  } catch (error) {
    expect(error).toMatchObject({ message: expect.stringContaining('could not give') });
    return undefined;
  }
}

/** Bytes that stay on the device: what an op that still runs holds comes back when it is done. */
async function bytesLeft(device: Device): Promise<number> {
  for (let i = 0; i < 1000 && device.info().memoryUsed > 0; i++) await setTimeout(5);
  return device.info().memoryUsed;
}

onHost('an allocation that is refused', () => {
  test.each(methods)('%s: OUT_OF_MEMORY, nothing stays, and the device works on', async (method) => {
    const options: PruneLayerOptions = { ...given, method, refit: 'pcg' };
    const expected = bytesOf((await pruneLayer({ ...options, device: Device.openKernels('cuda:0', '') })).weight);
    let refused = 0;
    for (let n = 1; ; n += every || !slow.includes(method) ? 1 : 9) {
      const device = refusing(n);
      if (!device) continue;
      const code = await codeOf(() => pruneLayer({ ...options, device }));
      if (code === undefined) break;
      expect(await bytesLeft(device)).toBe(0);
      expect(bytesOf((await pruneLayer({ ...options, device })).weight)).toBe(expected);
      expect(code).toBe('OUT_OF_MEMORY');
      refused++;
    }
    if (every) console.log(`${method}: ${refused} allocations refused`);
    expect(refused).toBeGreaterThan(2);
  });

  test('prune(): the same, and no output', async () => {
    const folder = await temporaryFolder();
    const model = join(folder, 'model');
    await cp(fileURLToPath(new URL('fixtures/models/llama-plain', import.meta.url)), model, { recursive: true });
    const tokenIds = [Array.from({ length: 8 }, (_, i) => 3 * i)];
    const run = (device: Device) =>
      prune({ model, out: join(folder, 'out'), sparsity: 0.5, method: 'wanda', calibration: { tokenIds }, device });
    const weights = () => readFile(join(folder, 'out', 'model.safetensors'), 'base64');
    await run(Device.openKernels('cuda:0', ''));
    const expected = await weights();
    await rm(join(folder, 'out'), { recursive: true });
    let failed = 0;
    for (const n of [5, 40, 90, 140, 180]) {
      const device = refusing(n)!;
      const code = await codeOf(() => run(device));
      expect(await bytesLeft(device)).toBe(0);
      if (code === undefined) {
        // It met the block that is read ahead, which is then read again.
        expect(await weights()).toBe(expected);
        await rm(join(folder, 'out'), { recursive: true });
        continue;
      }
      expect(code).toBe('OUT_OF_MEMORY');
      expect(await readdir(folder)).toEqual(['model']);
      failed++;
    }
    expect(failed).toBeGreaterThan(2);
  });
});

onHost('a device with little memory', () => {
  test('refuses what is too large a hundred times, and what fits works as before', async () => {
    const device = Device.openKernels('cuda:0', 'memory=40000');
    const large = syntheticLayer(64, 64, { tokens: 8 });
    const small = { ...given, device, method: 'wanda' as const };
    const expected = bytesOf((await pruneLayer(small)).weight);
    for (let i = 0; i < 100; i++) {
      const { weight, gram, shape } = large;
      expect(await codeOf(() => pruneLayer({ weight, gram, shape, sparsity: 0.5, device }))).toBe('OUT_OF_MEMORY');
    }
    expect(await bytesLeft(device)).toBe(0);
    expect(bytesOf((await pruneLayer(small)).weight)).toBe(expected);
  });
});
