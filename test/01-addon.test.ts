import { readFileSync } from 'node:fs';
import { addon } from '../src/device/addon.js';

const source = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url), 'utf8');

describe('the addon and its types', () => {
  const native = [...source('native/binding/addon.cc').matchAll(/^\s+(?:add\("(\w+)"|OP\((\w+)\))/gm)].map(
    (m) => m[1] ?? m[2]!,
  );
  const declared = source('src/device/addon.ts')
    .split('export interface Addon {')[1]!
    .split('\n}')[0]!
    .match(/^ {2}(\w+)\(/gm)!
    .map((line) => line.trim().slice(0, -1));

  test('every native export is declared, and every declaration is exported', () => {
    expect(native.length).toBeGreaterThan(30);
    expect([...native].sort()).toEqual([...declared].sort());
    expect(Object.keys(addon()).sort()).toEqual([...native].sort());
  });

  test('every op is called by the stream', () => {
    const stream = source('src/device/stream.ts');
    const ops = native.slice(native.indexOf('fill'));
    expect(ops.filter((name) => !stream.includes(`this.#op(`) || !stream.includes(`'${name}'`))).toEqual([]);
  });
});
