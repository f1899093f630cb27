// Makes an addon relocatable: what it is linked with, and what that is linked with, is copied beside it under names of our own, each file
// looks for the others in its own folder ($ORIGIN), and the licences come along.
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { run } from './steps.mjs';

/** In every process of Node: its own program is linked with these, and a second C++ runtime in one process would not do. */
const ofNode = [
  'libc.so.6',
  'libm.so.6',
  'libdl.so.2',
  'libpthread.so.0',
  'librt.so.1',
  'libstdc++.so.6',
  'libgcc_s.so.1',
  'ld-linux-x86-64.so.2',
  'ld-linux-aarch64.so.1',
];

const needs = (file) => [...run('readelf', ['-d', file]).matchAll(/\(NEEDED\).*\[(.+)\]/g)].map((match) => match[1]);

/** libdnnl.so.2 → libalps-dnnl.so.2. With a name that no system has, a copy of the system's is never taken for it, nor it for one. */
const ownName = (name) => name.replace(/^lib/, 'libalps-');

/** The newest version of each kind (GLIBC, GLIBCXX, ...) among the symbols that a file wants of others: `{ GLIBC: '2.34' }`. */
export function newestVersions(files) {
  const newest = {};
  const compare = new Intl.Collator('en', { numeric: true }).compare;
  for (const file of files) {
    for (const [, kind, version] of run('objdump', ['-T', file]).matchAll(
      /\*UND\*.*\((GLIBC|GLIBCXX|CXXABI)_([\d.]+)\)/g,
    )) {
      if (!newest[kind] || compare(version, newest[kind]) > 0) newest[kind] = version;
    }
  }
  return newest;
}

/** Where the dynamic linker finds everything that a file needs, directly or not. */
function found(file) {
  const lines = run('ldd', [file]).matchAll(/^\s*(\S+) => (.+?)(?: \(0x[0-9a-f]+\))?$/gm);
  return new Map([...lines].map(([, name, path]) => [name, path]));
}

/**
 * Copies the libraries of `addon` into its folder and makes both find each other there.
 *
 * @returns the files beside the addon
 */
export function bundleLibraries(addon) {
  const folder = join(addon, '..');
  const paths = found(addon);
  const names = [...paths.keys()].filter((name) => !ofNode.includes(name) && name.startsWith('lib'));
  const bundled = [];
  for (const name of names) {
    const path = paths.get(name);
    if (path === 'not found') throw new Error(`${name} was not found`);
    const copy = join(folder, ownName(name));
    copyFileSync(path, copy);
    chmodSync(copy, 0o755);
    // Before patchelf, whose files strip may spoil.
    run('strip', ['--strip-unneeded', copy]);
    run('patchelf', ['--set-soname', basename(copy), copy]);
    bundled.push(copy);
  }
  for (const file of [addon, ...bundled]) {
    const renamed = needs(file).filter((name) => names.includes(name));
    // Two calls: patchelf 0.14 mixes up the arguments of these options.
    run('patchelf', ['--set-rpath', '$ORIGIN', file]);
    if (renamed.length > 0) run('patchelf', [...renamed.flatMap((n) => ['--replace-needed', n, ownName(n)]), file]);
    const stray = needs(file).filter((name) => !ofNode.includes(name) && !existsSync(join(folder, name)));
    if (stray.length > 0) throw new Error(`${basename(file)} still needs ${stray.join(', ')} of the system`);
  }
  licences(
    names.map((name) => ({ name, path: realpathSync(paths.get(name)) })),
    join(folder, 'LICENSES'),
  );
  return bundled;
}

/** One file for each of Debian's source packages, the general licences that these refer to, and a list of what is from where. */
function licences(libraries, folder) {
  mkdirSync(folder, { recursive: true });
  const lines = [];
  const common = new Set();
  for (const { name, path } of libraries) {
    const owner = spawnSync('dpkg-query', ['-S', path], { encoding: 'utf8' });
    if (owner.status !== 0) throw new Error(`${path} is of no Debian package, so its licence is not known`);
    const packageName = owner.stdout.split(': ')[0];
    const [source, version] = run('dpkg-query', [
      '-W',
      '-f',
      `\${source:Package} \${source:Version}`,
      packageName,
    ]).split(' ');
    const copyright = readFileSync(join('/usr/share/doc', packageName.split(':')[0], 'copyright'), 'utf8');
    writeFileSync(join(folder, `${source}.txt`), copyright);
    for (const [licence] of copyright.matchAll(/(?<=\/usr\/share\/common-licenses\/)[A-Za-z]+(?:-\d(?:\.\d)?)?/g))
      common.add(licence);
    lines.push(`${ownName(name)}  ${name} of Debian's source package ${source} ${version}: ${source}.txt`);
  }
  for (const licence of common) {
    const path = join('/usr/share/common-licenses', licence);
    if (existsSync(path)) copyFileSync(path, join(folder, `${licence}.txt`));
  }
  const text = `These libraries are Debian's, stripped; their names and search paths were changed, nothing else. The sources are Debian's source
packages of the versions below. Each library may be replaced by another build of it under the same name.

${lines.join('\n')}

Licences that Debian's files refer to: ${readdirSync(folder)
    .filter((file) => common.has(file.slice(0, -4)))
    .join(', ')}
`;
  writeFileSync(join(folder, 'README.txt'), text);
}
