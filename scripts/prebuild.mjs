// Packs what is built for this platform into prebuilds/, where node-gyp-build finds it: the addon and, beside it, the library of the CUDA
// kernels for all architectures. prebuildify drives a "node-gyp" to build; here that is scripts/cmake-js-as-node-gyp.mjs.
//
//   node scripts/prebuild.mjs [--no-cuda]
import { spawnSync } from 'node:child_process';
import { copyFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { allArchitectures, buildKernels } from './cuda-kernels.mjs';
import { makeToolkit } from './cuda-toolkit.mjs';
import { root, run, say } from './steps.mjs';

const cuda = process.platform === 'linux' && !process.argv.includes('--no-cuda');
const folder = join(root, 'prebuilds', `${process.platform}-${process.arch}`);
const builder = join(root, 'scripts', 'cmake-js-as-node-gyp.mjs');
const args = ['--no-install', 'prebuildify', '--napi', '--strip', '--tag-libc', '--node-gyp', builder];
const { status } = spawnSync('npx', args, { cwd: root, stdio: 'inherit' });
if (status !== 0) process.exit(status ?? 1);
try {
  // prebuildify takes along every library that it sees beside the addon, those for tests too.
  for (const name of ['libalps_cuda_host.so', 'libalps_cuda.so']) rmSync(join(folder, name), { force: true });
  if (cuda) {
    const architectures = process.env.ALPS_CUDA_ARCHITECTURES?.match(/\d+/g) ?? allArchitectures;
    buildKernels({ architectures, toolkit: makeToolkit() });
    const packed = join(folder, 'libalps_cuda.so');
    copyFileSync(join(root, 'build', 'Release', 'libalps_cuda.so'), packed);
    run('strip', [packed]);
  }
} catch (error) {
  say(`the CUDA kernels could not be packed: ${error.message} (--no-cuda packs the addon without them)`);
  process.exit(1);
}
