import { spawnSync } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { CellStore } from '../src/compare/cell-store.js';
import { digestOf } from '../src/compare/fingerprint.js';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'alps-cells-'));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

describe('the store of finished parts', () => {
  test('computes once, also for another process and whatever the order of keys', async () => {
    const store = await CellStore.open(folder);
    const first = await store.take({ a: 1, b: [2, { c: 3, d: 4 }] }, async () => ({ value: 0.1 }));
    const again = await CellStore.open(folder);
    const never = () => Promise.reject(new Error('computed twice'));
    const second = await again.take({ b: [2, { d: 4, c: 3 }], a: 1 }, never);
    expect(first).toEqual({ result: { value: 0.1 }, stored: false });
    expect(second).toEqual({ result: { value: 0.1 }, stored: true });
    expect(await again.find({ a: 1, b: [2, { c: 3, d: 5 }] })).toBeUndefined();
  });

  test('a failed computation leaves nothing', async () => {
    const store = await CellStore.open(folder);
    await expect(store.take('x', () => Promise.reject(new Error('no')))).rejects.toThrow('no');
    expect(await readdir(folder)).toEqual([]);
  });

  test('a damaged file counts as not there', async () => {
    const store = await CellStore.open(folder);
    await store.save('x', 1);
    const [name] = await readdir(folder);
    await writeFile(join(folder, name!), '{"key":"x","res');
    expect(await store.find('x')).toBeUndefined();
    expect(await store.take('x', async () => 2)).toEqual({ result: 2, stored: false });
  });

  test('what a killed process left is removed, what a running one writes is not', async () => {
    const dead = spawnSync(process.execPath, ['-e', '']).pid;
    const store = await CellStore.open(folder);
    const [own, other] = [store.scratch('model'), (await CellStore.open(folder)).scratch('model')];
    expect(own).not.toBe(other);
    const [, place] = /model\.([0-9a-f]{8})-\d+-[0-9a-f]{8}\.partial$/.exec(own)!;
    const elsewhere = ['abc.json.00000000-1-0a1b2c3d.partial', 'old.json.00000000-1-0a1b2c3d.partial'];
    for (const name of [`abc.json.${place}-${dead}-0a1b2c3d.partial`, ...elsewhere])
      await writeFile(join(folder, name), '');
    await mkdir(join(folder, `.model.${place}-${dead}-0a1b2c3d.partial.partial-0a1b2c`));
    await utimes(join(folder, elsewhere[1]!), 0, 0);
    for (const path of [own, other]) await mkdir(path);
    await CellStore.open(folder);
    expect((await readdir(folder)).sort()).toEqual([
      elsewhere[0],
      ...[own, other].map((path) => basename(path)).sort(),
    ]);
  });
});

test('digests tell values apart', () => {
  expect(digestOf({ a: [1, 2] })).not.toBe(digestOf({ a: [2, 1] }));
  expect(digestOf({ a: undefined, b: 1 })).toBe(digestOf({ b: 1 }));
});
