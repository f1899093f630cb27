// Packs what is built for this platform into prebuilds/, where node-gyp-build finds it: the addon, the libraries that it needs
// (scripts/bundle-libraries.mjs) and the library of the CUDA kernels for all architectures. `npm pack` calls it first. prebuildify drives
// a "node-gyp" to build; here that is scripts/cmake-js-as-node-gyp.mjs.
//
//   node scripts/prebuilds.mjs [--no-cuda]
import { copyFileSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { bundleLibraries, newestVersions } from './bundle-libraries.mjs';
import { allArchitectures, buildKernels } from './cuda-kernels.mjs';
import { makeToolkit } from './cuda-toolkit.mjs';
import { setup } from './setup.mjs';
import { root, run, say, step } from './steps.mjs';

const name = join('prebuilds', `${process.platform}-${process.arch}`);
const folder = join(root, name);
const inputs = [
  'native',
  'CMakeLists.txt',
  'package-lock.json',
  'scripts/prebuilds.mjs',
  'scripts/bundle-libraries.mjs',
];

/** The oldest systems that the package promises to run on: Debian 12, Ubuntu 22.04, RHEL 9 and what is of their age. */
const oldest = { GLIBC: '2.34', GLIBCXX: '3.4.29', CXXABI: '1.3.13' };

function packAddon() {
  rmSync(folder, { recursive: true, force: true });
  const builder = join(root, 'scripts', 'cmake-js-as-node-gyp.mjs');
  run('npx', ['--no-install', 'prebuildify', '--napi', '--strip', '--tag-libc', '--node-gyp', builder]);
  // prebuildify takes along every library that it sees beside the addon, those for tests too.
  const files = readdirSync(folder);
  for (const file of files.filter((file) => !file.endsWith('.node'))) rmSync(join(folder, file));
  const addon = join(
    folder,
    files.find((file) => file.endsWith('.node')),
  );
  checkVersions([addon, ...(process.platform === 'linux' ? bundleLibraries(addon) : [])]);
}

function packKernels() {
  const architectures = process.env.ALPS_CUDA_ARCHITECTURES?.match(/\d+/g) ?? allArchitectures;
  try {
    buildKernels({ architectures, toolkit: makeToolkit() });
  } catch (error) {
    throw new Error(`the CUDA kernels could not be packed: ${error.message} (--no-cuda packs the addon without them)`);
  }
  const packed = join(folder, 'libalps_cuda.so');
  copyFileSync(join(root, 'build', 'Release', 'libalps_cuda.so'), packed);
  run('strip', [packed]);
  checkVersions([packed]);
}

/** Refuses files that want newer symbols than the oldest systems have. */
function checkVersions(files) {
  if (process.platform !== 'linux') return;
  const newest = newestVersions(files);
  for (const [kind, version] of Object.entries(newest)) {
    if (version.localeCompare(oldest[kind], 'en', { numeric: true }) > 0)
      throw new Error(
        `the prebuild would need ${kind}_${version}; systems that are to run it have ${kind}_${oldest[kind]}`,
      );
  }
}

/** Fills prebuilds/ for this platform, unless it is there for the same sources. `cuda`: 'keep' leaves the kernels as they are. */
export function makePrebuilds({ cuda = process.platform === 'linux' && process.arch === 'x64' } = {}) {
  setup({ kernels: false, packing: true });
  step('prebuilds', inputs, [name], () => {
    say(`packing the addon into ${name}`);
    packAddon();
  });
  if (cuda === 'keep') return;
  if (cuda) packKernels();
  else rmSync(join(folder, 'libalps_cuda.so'), { force: true });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    makePrebuilds(process.argv.includes('--no-cuda') ? { cuda: false } : {});
  } catch (error) {
    say(error.message);
    process.exit(1);
  }
}
