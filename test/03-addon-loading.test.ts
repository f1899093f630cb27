import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { addonFile } from '../src/device/addon.js';
import { explainLoadFailure, thisMachine } from '../src/device/load-failure.js';

const root = fileURLToPath(new URL('..', import.meta.url));
let scratch: string;
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), 'alps-loading-'));
});
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** What a copy of the compiled package says that has these files as its addons. */
function failure(name: string, addons: Record<string, string>) {
  const copy = join(scratch, name);
  cpSync(join(root, 'lib'), join(copy, 'lib'), { recursive: true });
  cpSync(join(root, 'package.json'), join(copy, 'package.json'));
  symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));
  for (const [path, content] of Object.entries(addons)) {
    mkdirSync(join(copy, path, '..'), { recursive: true });
    writeFileSync(join(copy, path), content);
  }
  const script = `import('${copy}/lib/index.js').then(({ Device }) => Device.open('cpu')).catch((e) => console.log(e.code + '\\n' + e.message))`;
  return spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' }).stdout;
}
const platform = `${process.platform}-${process.arch}`;

describe('an addon that cannot be loaded', () => {
  test('there is none', () => {
    const text = failure('none', {});
    expect(text).toMatch(/^ADDON_NOT_LOADED\nThe native addon could not be loaded on \w+-\w+/);
    expect(text).toContain('Addons there: none in build/Release and prebuilds/*');
    expect(text).toContain('  - build the addon from source: docs/install.md');
  });

  test('there is none, where the package brings one along: the code was moved away from it', () => {
    const reason =
      'No native build was found for platform=linux arch=x64 runtime=node abi=115 uv=1 libc=glibc node=20.20.2';
    const text = explainLoadFailure(reason, scratch, { platform: 'linux', arch: 'x64', libc: 'glibc 2.36' });
    expect(text).toContain(
      'Cause: the folder prebuilds/linux-x64, which this package brings along, is not beside its code\n',
    );
    expect(text).toMatch(/What to do:\n {2}- if the program was bundled .* mark alps-prune as external/);
  });

  test.each([
    ['linux-x64 with musl', { platform: 'linux', arch: 'x64', libc: 'musl' }],
    ['linux-arm64 with glibc 2.36', { platform: 'linux', arch: 'arm64', libc: 'glibc 2.36' }],
    ['darwin-x64', { platform: 'darwin', arch: 'x64', libc: '' }],
  ])('there is none, nor does the package bring one along for %s', (name, machine) => {
    const text = explainLoadFailure('No native build was found for platform=...', scratch, machine);
    expect(text).toContain(`Cause: this package brings an addon for linux-x64 with glibc, and this is ${name}\n`);
    expect(text).toMatch(/What to do:\n {2}- build the addon from source: docs\/install\.md.*$/);
  });

  test('there is one for another system only', () => {
    const text = failure('other', { 'prebuilds/sunos-sparc/alps-prune.node': '' });
    expect(text).toContain('Addons there: prebuilds/sunos-sparc/alps-prune.node');
  });

  test('it is broken', () => {
    const text = failure('broken', {
      [`prebuilds/${platform}/alps-prune.node`]: 'not a library at all, whatever its name',
    });
    expect(text).toContain('Cause: the file is broken, or for another kind of machine');
    expect(text).toContain('delete node_modules and install again');
  });

  // As glibc and musl put it.
  test.each([
    [
      "/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.34' not found (required by /a/alps-prune.glibc.node)",
      'needs a newer glibc (the published one 2.34) than this system has (glibc 2.31)',
      'use Debian 12',
    ],
    [
      "/opt/conda/lib/libstdc++.so.6: version `GLIBCXX_3.4.29' not found (required by /a/libalps-dnnl.so.2)",
      'it lacks GLIBCXX_3.4.29',
      'install a newer libstdc++',
    ],
    [
      'libalps-dnnl.so.2: cannot open shared object file: No such file or directory',
      'libalps-dnnl.so.2, which this package brings along, is not beside the addon',
      'install the package again',
    ],
    [
      'libdnnl.so.2: cannot open shared object file: No such file or directory',
      'its library libdnnl.so.2 is missing',
      'apt-get install libdnnl2',
    ],
    [
      'Error loading shared library ld-linux-x86-64.so.2: No such file or directory (needed by /a/alps-prune.glibc.node)',
      'this system has musl',
      'build the addon from source',
    ],
    ['/a/alps-prune.glibc.node: failed to map segment from shared object', 'noexec', 'not mounted noexec'],
    ['something that was never seen', 'not known', 'install the package again'],
  ])('%s', (reason, cause, remedy) => {
    const text = explainLoadFailure(reason, root, { platform: 'linux', arch: 'x64', libc: 'glibc 2.31' });
    expect(text).toContain(`Said: ${reason}`);
    expect(text.split('\n').find((line) => line.startsWith('Cause: '))).toContain(cause);
    expect(text.split('What to do:')[1]).toContain(remedy);
  });

  test('the machine is named with its C library', () => {
    if (process.platform === 'linux') expect(thisMachine().libc).toMatch(/^(glibc \d+\.\d+|musl)$/);
  });
});

/** DT_FLAGS_1 of a 64-bit little-endian ELF file; 0 where it has none. */
function elfFlags(path: string): number {
  const file = readFileSync(path);
  expect(file.subarray(0, 6).toString('latin1')).toBe('\x7fELF\x02\x01');
  const at = (offset: number) => Number(file.readBigUInt64LE(offset));
  const [headers, size, count] = [at(32), file.readUInt16LE(54), file.readUInt16LE(56)];
  const dynamic = Array.from({ length: count }, (_, i) => headers + i * size).find((h) => file.readUInt32LE(h) === 2)!;
  const [from, to] = [at(dynamic + 8), at(dynamic + 8) + at(dynamic + 32)];
  for (let entry = from; entry < to; entry += 16) if (at(entry) === 0x6ffffffb) return at(entry + 8);
  return 0;
}

// Elsewhere than on Linux there is neither this flag nor /proc.
(process.platform === 'linux' ? describe : describe.skip)('an addon that only workers load', () => {
  test('is one that the system keeps in the process', () => {
    const nodelete = 8;
    expect(elfFlags(addonFile()) & nodelete).toBe(nodelete);
  });

  test('is there for the next worker, with the devices of the last', () => {
    const work = `import('${join(root, 'lib', 'index.js')}').then(({ Device }) => {
      for (let i = 1; i <= 10; i++) Device.open('cpu', { threads: 2, memoryLimit: 1e9 + i });
      process.exit();
    })`;
    const script = `const { Worker } = require('node:worker_threads');
      const { readdirSync } = require('node:fs');
      const threads = [];
      const next = () => {
        if (threads.length === 6) return console.log(JSON.stringify(threads));
        new Worker(${JSON.stringify(work)}, { eval: true }).on('exit', () => {
          threads.push(readdirSync('/proc/self/task').length);
          next();
        });
      };
      next();`;
    const { status, signal, stdout } = spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' });
    expect({ status, signal }).toEqual({ status: 0, signal: null });
    const threads = JSON.parse(stdout) as number[];
    // Two threads of each of the four devices that stay open; they were as many more with each worker.
    expect(threads.at(-1)).toBeLessThan(threads[0]! + 8);
  });
});
