// node scripts/gpu/pack.mjs [--whole] [--kernels] [--out .gpu] [--peers FOLDER]: packs what a GPU machine without Node, npm and internet needs for
// scripts/gpu/run.sh into a folder that git ignores:
//   programs.tar.xz  this Node, the shared libraries of the addon, jest and the runtime dependencies, checkouts of the peers
//   build.tar.xz     the addon and the compiled TypeScript
//   tree.tar.xz      with --whole: the files of this repository too, for when the checkout itself does not travel
//                    with --kernels libalps_cuda.so of this build too (scripts/cuda-kernels.mjs), so that nothing is compiled there
//   run.sh           the copy of scripts/gpu/run.sh that starts it all
// --peers is a folder with the checkouts ALPS (mazumder-lab/ALPS) and sparsegpt (IST-DASLab/sparsegpt); without it that stage is left out.
// Archives whose contents have not changed are kept.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const { values: options } = parseArgs({
  options: {
    whole: { type: 'boolean', default: false },
    kernels: { type: 'boolean', default: false },
    out: { type: 'string', default: join(root, '.gpu') },
    peers: { type: 'string' },
  },
});
const out = resolve(options.out);
const megabyte = 2 ** 20;
// Most of it is machine code, which packs better behind its own filter; Python's lzma knows it too.
const filters = [...(process.arch === 'x64' ? ['--x86'] : []), '--lzma2=preset=9'];
const most = 60 * megabyte;

/** Of the C library and what every machine with a compiler has: never packed, they must fit the other machine's kernel and loader. */
const everywhere = /^(libc|libm|libdl|libpthread|librt|ld-linux.*|libstdc\+\+|libgcc_s)\.so/;

/** The npm packages that run and test this one; the drawing of reports and the tools of development stay behind. */
const wanted = [
  '@huggingface/tokenizers',
  'hyparquet',
  'hyparquet-compressors',
  'node-gyp-build',
  'jest',
  '@swc/jest',
  '@swc/core',
  'fast-check',
];

function run(command, args, settings = {}) {
  return execFileSync(command, args, { maxBuffer: 1 << 28, ...settings });
}

/** Shared libraries that a file needs, by the names the loader looks for, with where they lie here. */
function sharedLibraries(file) {
  const lines = run('ldd', [file], { encoding: 'utf8' }).split('\n');
  return lines.flatMap((line) => {
    const found = /^\s*(\S+) => (\S+) /.exec(line);
    if (/not found/.test(line)) throw new Error(`${file} needs a library that is not here: ${line.trim()}`);
    return found && !everywhere.test(found[1]) ? [{ name: found[1], path: realpathSync(found[2]) }] : [];
  });
}

/** Folders of the wanted packages and all they depend on, relative to node_modules. */
function packageFolders(modules) {
  const folders = new Set();
  const visit = (name, from) => {
    for (let at = from; ; at = dirname(at)) {
      const folder = join(at, 'node_modules', name);
      if (existsSync(join(folder, 'package.json'))) {
        const relative = folder.slice(modules.length + 1);
        if (folders.has(relative)) return;
        folders.add(relative);
        const { dependencies = {}, optionalDependencies = {} } = JSON.parse(
          readFileSync(join(folder, 'package.json'), 'utf8'),
        );
        for (const needed of Object.keys({ ...dependencies, ...optionalDependencies })) visit(needed, folder);
        return;
      }
      if (at === dirname(modules)) return;
    }
  };
  for (const name of wanted) visit(name, dirname(modules));
  return [...folders];
}

/** What a package needs at run time; not types, source maps, texts. */
function isRuntime(path) {
  return !/\.(d\.[cm]?ts|map|md|markdown|flow|tsbuildinfo)$|\/(\.github|examples?)$/i.test(path);
}

function listed(folder, files = []) {
  for (const entry of readdirSync(folder, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) listed(path, files);
    else files.push(path);
  }
  return files;
}

/** Makes an archive of a folder unless it is there already with the same contents. */
function archive(name, folder) {
  const hash = createHash('sha256');
  for (const file of listed(folder)) hash.update(file.slice(folder.length)).update('\0').update(readFileSync(file));
  const digest = hash.digest('hex');
  const [path, stamp] = [join(out, `${name}.tar.xz`), join(out, `${name}.sha256`)];
  if (!existsSync(path) || !existsSync(stamp) || readFileSync(stamp, 'utf8').trim() !== digest) {
    process.stderr.write(`pack: ${name}\n`);
    const tar = ['--owner=0', '--group=0', '--sort=name', '-C', folder, '-cf', join(scratch, `${name}.tar`), '.'];
    run('tar', tar);
    run('xz', [...filters, '-f', join(scratch, `${name}.tar`)]);
    copyFileSync(join(scratch, `${name}.tar.xz`), path);
    writeFileSync(stamp, `${digest}\n`);
  }
  return { name: `${name}.tar.xz`, bytes: statSync(path).size };
}

const addonFile = join(root, 'build', 'Release', 'alps.node');
const compiled = join(root, 'lib', 'index.js');
if (!existsSync(addonFile) || !existsSync(compiled)) {
  process.stderr.write('pack: build first: npm run build\n');
  process.exit(1);
}
const scratch = mkdtempSync(join(tmpdir(), 'alps-pack-'));
try {
  mkdirSync(out, { recursive: true });

  const programs = join(scratch, 'programs');
  mkdirSync(join(programs, 'lib'), { recursive: true });
  mkdirSync(join(programs, 'bin'));
  copyFileSync(process.execPath, join(programs, 'bin', 'node'));
  run('strip', [join(programs, 'bin', 'node')]);
  for (const { name, path } of [...sharedLibraries(addonFile), ...sharedLibraries(process.execPath)]) {
    copyFileSync(path, join(programs, 'lib', name));
  }
  const modules = realpathSync(join(root, 'node_modules'));
  for (const folder of packageFolders(modules)) {
    // Nested packages are listed by themselves.
    cpSync(join(modules, folder), join(programs, 'node_modules', folder), {
      recursive: true,
      dereference: true,
      filter: (path) => isRuntime(path) && (path === join(modules, folder) || basename(path) !== 'node_modules'),
    });
  }
  if (options.peers) {
    for (const peer of ['ALPS', 'sparsegpt']) {
      cpSync(join(options.peers, peer), join(programs, 'peers', peer), {
        recursive: true,
        filter: (path) => !/\.(git|ipynb|pyc)$|__pycache__/.test(path),
      });
    }
  }
  const archives = [archive('programs', programs)];

  const build = join(scratch, 'build');
  mkdirSync(join(build, 'build', 'Release'), { recursive: true });
  copyFileSync(addonFile, join(build, 'build', 'Release', 'alps.node'));
  // The kernels on the processor: for the tests in a rehearsal.
  for (const name of ['libalps_cuda_host.so', ...(options.kernels ? ['libalps_cuda.so'] : [])]) {
    const file = join(root, 'build', 'Release', name);
    if (existsSync(file)) copyFileSync(file, join(build, 'build', 'Release', name));
    else if (options.kernels) throw new Error(`--kernels: ${file} is not there`);
  }
  for (const name of readdirSync(join(build, 'build', 'Release'))) {
    run('strip', ['--strip-unneeded', join(build, 'build', 'Release', name)]);
  }
  cpSync(join(root, 'lib'), join(build, 'lib'), { recursive: true, filter: isRuntime });
  archives.push(archive('build', build));

  if (options.whole) {
    const tree = join(scratch, 'tree');
    const files = run('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
      cwd: root,
      encoding: 'utf8',
    });
    for (const file of files.split('\0')) {
      if (file === '' || !existsSync(join(root, file)) || /^test\/fixtures\/(models|tasks)\//.test(file)) continue;
      mkdirSync(dirname(join(tree, file)), { recursive: true });
      copyFileSync(join(root, file), join(tree, file));
    }
    archives.push(archive('tree', tree));
  } else {
    for (const name of ['tree.tar.xz', 'tree.sha256']) rmSync(join(out, name), { force: true });
  }
  copyFileSync(join(root, 'scripts', 'gpu', 'run.sh'), join(out, 'run.sh'));

  const total = archives.reduce((sum, { bytes }) => sum + bytes, 0);
  for (const { name, bytes } of archives) process.stdout.write(`${name}  ${(bytes / megabyte).toFixed(1)} MiB\n`);
  process.stdout.write(`${(total / megabyte).toFixed(1)} MiB in ${out}\n`);
  if (!options.peers) process.stdout.write('Without --peers the comparison with the published code is left out.\n');
  if (total > most) {
    process.stderr.write(`pack: more than ${most / megabyte} MiB\n`);
    process.exit(1);
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
