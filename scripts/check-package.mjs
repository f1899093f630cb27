// Packs the package, looks at the tarball, installs it into an empty project on a machine that has nothing but Node, and prunes a layer
// there from ES modules, from CommonJS and through the command; then TypeScript checks programs that use it.
//
//   node scripts/check-package.mjs [--cuda] [--tree FOLDER] [--keep]
//
// The machine is a folder tree that holds Node, npm, and the libraries that Node's program is linked with: no compiler, no shell, no
// /usr/lib, and no network, so npm takes the dependencies from its cache. --tree takes another one, made by debootstrap for example. --cuda packs the CUDA kernels
// too, which takes long. --keep leaves the scratch folder. Exit codes: 0 passed, 1 failed, 77 it cannot be done here.
import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { makePrebuilds } from './prebuilds.mjs';
import { has, root, run } from './steps.mjs';

const { values: options } = parseArgs({
  options: { cuda: { type: 'boolean', default: false }, tree: { type: 'string' }, keep: { type: 'boolean' } },
});
const say = (text) => process.stdout.write(`package: ${text}\n`);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

/** Programs of the three kinds of user; each prunes a layer, or is only checked by TypeScript. */
const prunes = `
const weight = Float32Array.from({ length: 8 * 16 }, (_, i) => Math.sin(i));
const activations = Float32Array.from({ length: 64 * 16 }, (_, i) => Math.cos(i * i));
async function main() {
  const { kept, error } = await pruneLayer({ weight, shape: [8, 16], activations, sparsity: 0.5, device: 'cpu' });
  if (kept !== 64 || !(error > 0 && error < 1)) throw new Error('kept ' + kept + ', error ' + error);
  const refused = await pruneLayer({ weight, shape: [8, 16], activations, sparsity: 2 }).catch((e) => e);
  if (!(refused instanceof AlpsError) || refused.code !== 'INVALID_ARGUMENT') throw refused;
  console.log('pruned');
}
main();
`;
const typed = `
const options: PruneOptions = { model: 'a', out: 'b', sparsity: 0.5 };
const wrong: PruneOptions = {
  model: 'a',
  out: 'b',
  // @ts-expect-error: not a number
  sparsity: 'half',
};
export async function use(weight: Float32Array<ArrayBuffer>): Promise<number> {
  const device = Device.open('cpu');
  const { error } = await pruneLayer({ weight, shape: [1, weight.length], activations: weight, sparsity: 0.5, device });
  await prune(error > 0 ? options : wrong).catch((e: unknown) => e instanceof AlpsError && e.code === 'ABORTED');
  return error;
}
`;
const programs = {
  'esm.mjs': `import { AlpsError, pruneLayer } from 'alps-prune';${prunes}`,
  'commonjs.cjs': `const { AlpsError, pruneLayer } = require('alps-prune');${prunes}`,
  'typed.mts': `import { AlpsError, Device, prune, pruneLayer, type PruneOptions } from 'alps-prune';${typed}`,
  'typed.cts': `import alps = require('alps-prune');
import type { PruneOptions } from 'alps-prune';
const { AlpsError, Device, prune, pruneLayer } = alps;${typed}`,
};

/** The tarball, from prebuilds that are there already or are made now. */
function pack(scratch) {
  makePrebuilds({ cuda: options.cuda || 'keep' });
  const args = ['pack', '--ignore-scripts', '--json', '--pack-destination', scratch];
  const said = JSON.parse(run('npm', args));
  const { filename, size, unpackedSize, files } = Array.isArray(said) ? said[0] : Object.values(said)[0];
  say(`${filename}: ${megabytes(size)}, unpacked ${megabytes(unpackedSize)}, ${files.length} files`);
  const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const atInstall = ['preinstall', 'install', 'postinstall', 'prepare'].filter((name) => scripts[name]);
  if (atInstall.length > 0)
    throw new Error(`the package has scripts that run when it is installed: ${atInstall.join(', ')}`);
  const paths = files.map((file) => file.path);
  const wanted = [
    'lib/index.js',
    'lib/index.cjs',
    'CMakeLists.txt',
    `prebuilds/${process.platform}-${process.arch}/alps-prune.glibc.node`,
    `prebuilds/${process.platform}-${process.arch}/LICENSES/README.txt`,
  ];
  const missing = wanted.filter((path) => !paths.includes(path));
  if (missing.length > 0) throw new Error(`the tarball lacks ${missing.join(', ')}`);
  const stray = paths.filter((path) => /libalps_cuda_host|\.o$|^(test|src|models)\//.test(path));
  if (stray.length > 0) throw new Error(`the tarball has ${stray.join(', ')}`);
  return join(scratch, filename);
}

/** publint and "are the types wrong". */
function lint(tarball) {
  const tools = [
    ['publint', 'publint/src/cli.js', ['run', tarball, '--strict']],
    ['attw', '@arethetypeswrong/cli/dist/index.js', [tarball]],
  ];
  for (const [name, path, args] of tools) {
    const program = join(root, 'node_modules', path);
    if (!existsSync(program)) throw new Error(`${name} is not installed: npm ci`);
    run(process.execPath, [program, ...args]);
    say(`${name} has nothing to say`);
  }
}

/** A folder tree with Node, npm and what Node's program is linked with. */
function makeTree(tree) {
  const node = realpathSync(process.execPath);
  const libraries = [...run('ldd', [node]).matchAll(/(?:=> )?(\/\S+) \(0x/g)].map((match) => match[1]);
  for (const path of libraries) {
    mkdirSync(join(tree, dirname(path)), { recursive: true });
    if (!existsSync(join(tree, path))) copyFileSync(path, join(tree, path));
  }
  for (const folder of ['bin', 'proc', 'dev', 'tmp', 'etc', 'npm', 'cache', 'project', 'root'])
    mkdirSync(join(tree, folder), { recursive: true });
  writeFileSync(join(tree, 'etc', 'passwd'), 'root:x:0:0:root:/root:/bin/none\n');
}

/** Runs Node with these arguments in the tree, away from all other folders and from the network; what it printed. */
function inTree(tree, command, { cache, npm }) {
  const node = realpathSync(process.execPath);
  const script = [
    'set -e',
    `touch "$TREE/bin/node" "$TREE/dev/null"`,
    `mount --bind "$NODE" "$TREE/bin/node"`,
    `mount --bind /dev/null "$TREE/dev/null"`,
    `mount --rbind /proc "$TREE/proc"`,
    `mount --bind "$NPM" "$TREE/npm"`,
    `mount --bind "$CACHE" "$TREE/cache"`,
    `exec env -i PATH=/bin HOME=/root "$CHROOT" "$TREE" /bin/node "$@"`,
  ].join('\n');
  const chroot = ['/usr/sbin/chroot', '/usr/bin/chroot', '/sbin/chroot'].find(existsSync);
  const env = { ...process.env, TREE: tree, NODE: node, NPM: npm, CACHE: cache, CHROOT: chroot };
  const args = [
    '--mount',
    '--net',
    ...(process.getuid() === 0 ? [] : ['--map-root-user']),
    'sh',
    '-c',
    script,
    'sh',
    ...command,
  ];
  const result = spawnSync('unshare', args, { encoding: 'utf8', env });
  if (result.status !== 0)
    throw new Error(`node ${command.join(' ')} failed in the bare tree:\n${result.stdout}${result.stderr}`);
  return result.stdout.trim();
}

function check(scratch) {
  const tarball = pack(scratch);
  lint(tarball);
  const tree = options.tree ?? join(scratch, 'tree');
  makeTree(tree);
  const project = join(tree, 'project');
  rmSync(project, { recursive: true, force: true });
  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), '{ "private": true }\n');
  for (const [name, text] of Object.entries(programs)) writeFileSync(join(project, name), text);
  copyFileSync(tarball, join(project, 'alps-prune.tgz'));
  // With a network, into npm's cache; the cache then serves the tree.
  const cache = run('npm', ['config', 'get', 'cache']).trim();
  const registry = run('npm', ['config', 'get', 'registry']).trim();
  const warm = join(scratch, 'warm');
  mkdirSync(warm);
  writeFileSync(join(warm, 'package.json'), '{ "private": true }\n');
  run('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline', tarball], { cwd: warm });
  rmSync(warm, { recursive: true });
  const npm = join(dirname(realpathSync(run('which', ['npm']).trim())), '..');
  const bare = (...command) => inTree(tree, command, { cache, npm });
  const install = ['install', '--offline', '--no-audit', '--no-fund', '--cache=/cache', `--registry=${registry}`];
  const before = performance.now();
  bare('/npm/bin/npm-cli.js', ...install, '--prefix=/project', '/project/alps-prune.tgz');
  const seconds = (performance.now() - before) / 1000;
  const size = Number(run('du', ['-sb', join(project, 'node_modules')]).split('\t')[0]);
  say(`installed in ${seconds.toFixed(1)} s (from npm's cache), ${megabytes(size)} in node_modules`);
  for (const program of ['esm.mjs', 'commonjs.cjs']) {
    if (bare(`/project/${program}`) !== 'pruned') throw new Error(`${program} did not prune`);
    say(`${program} prunes a layer`);
  }
  const devices = bare('/project/node_modules/alps-prune/lib/cli/main.js', 'devices');
  if (!devices.includes('cpu')) throw new Error(`alps devices printed ${devices}`);
  say('the command runs');
  checkTypes(project);
}

/** The compiler of this repository over the project's typed programs, in each way that TypeScript has to find a package. */
function checkTypes(project) {
  mkdirSync(join(project, 'node_modules', '@types'), { recursive: true });
  for (const name of ['@types/node', 'undici-types']) {
    const target = join(project, 'node_modules', name);
    if (!existsSync(target)) symlinkSync(realpathSync(join(root, 'node_modules', name)), target);
  }
  const ways = [
    ['node16', 'node16', ['typed.mts']],
    ['nodenext', 'nodenext', ['typed.mts', 'typed.cts']],
    ['preserve', 'bundler', ['typed.mts', 'typed.cts']],
  ];
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
  for (const [module, moduleResolution, files] of ways) {
    const args = [tsc, '--noEmit', '--strict', '--types', 'node', '--target', 'es2022', '--lib', 'es2023'];
    run(process.execPath, [...args, '--module', module, '--moduleResolution', moduleResolution, ...files], {
      cwd: project,
    });
    say(`TypeScript takes ${files.join(' and ')} with module resolution ${moduleResolution}`);
  }
}

if (
  process.platform !== 'linux' ||
  !has('unshare', '--mount', ...(process.getuid() === 0 ? [] : ['--map-root-user']), 'true')
) {
  say('not checked: it needs Linux and a shell that may use unshare');
  process.exit(77);
}
const scratch = mkdtempSync(join(tmpdir(), 'alps-package-'));
try {
  check(scratch);
} catch (error) {
  say(error.message);
  process.exitCode = 1;
} finally {
  if (!options.keep) rmSync(scratch, { recursive: true, force: true });
  else say(`left in ${scratch}`);
}
