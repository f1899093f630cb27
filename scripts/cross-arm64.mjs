// Compiles the addon for 64-bit ARM Linux on this machine, as a check that it builds there: build-arm64/Release/alps.node. Needs Debian's
// cross compiler (installed when permitted); oneDNN and OpenBLAS for arm64 are unpacked beside the build, the system stays as it is.
//
//   node scripts/cross-arm64.mjs
//
// Exit codes: 0 done, 1 failed, 77 there is no cross compiler.
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { has, install, mayInstall, root, run, say, step } from './steps.mjs';

const packages = [
  'libdnnl-dev',
  'libdnnl2',
  'libgfortran5',
  'libgomp1',
  'libopenblas-pthread-dev',
  'libopenblas0-pthread',
  'ocl-icd-libopencl1',
];
const build = join(root, 'build-arm64');
const sysroot = join(build, 'sysroot');

function skip(text) {
  say(`arm64 is not compiled: ${text}`);
  process.exit(77);
}

function findCompiler() {
  const present = () => has('aarch64-linux-gnu-g++', '--version');
  if (present()) return;
  if (!mayInstall()) skip('there is no aarch64-linux-gnu-g++ (Debian: apt-get install g++-aarch64-linux-gnu)');
  say('installing g++-aarch64-linux-gnu with apt-get');
  install('g++-aarch64-linux-gnu');
  if (!present()) skip('g++-aarch64-linux-gnu could not be installed');
}

/** Debian's packages for arm64, fetched by an apt-get with lists of its own, so that the system's architectures stay what they are. */
function makeSysroot() {
  const state = join(build, 'apt');
  for (const folder of ['lists/partial', 'cache/archives/partial', 'debs'])
    mkdirSync(join(state, folder), { recursive: true });
  writeFileSync(join(state, 'status'), '');
  const settings = {
    'APT::Architecture': 'arm64',
    'APT::Architectures': 'arm64',
    'APT::Sandbox::User': 'root',
    'Dir::State': state,
    'Dir::State::status': join(state, 'status'),
    'Dir::Cache': join(state, 'cache'),
  };
  const args = Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
  const debs = join(state, 'debs');
  run('apt-get', [...args, 'update', '-qq']);
  run('apt-get', [...args, 'download', '-qq', ...packages], { cwd: debs });
  for (const deb of readdirSync(debs)) run('dpkg', ['-x', join(debs, deb), sysroot]);
}

try {
  findCompiler();
  if (!existsSync(join(sysroot, 'usr', 'include', 'dnnl.h'))) makeSysroot();
  const inputs = ['native/core', 'native/cpu', 'native/binding', 'native/cmake', 'CMakeLists.txt', 'package-lock.json'];
  const addon = join('build-arm64', 'Release', 'alps.node');
  step('arm64', inputs, [addon], () => {
    say('compiling the addon for arm64');
    const toolchain = join(root, 'native', 'cmake', 'aarch64-linux-gnu.cmake');
    const settings = [`-DCMAKE_TOOLCHAIN_FILE=${toolchain}`, `-DALPS_SYSROOT=${sysroot}`, '-DALPS_CUDA=off'];
    run('cmake', ['-S', '.', '-B', build, '-DCMAKE_BUILD_TYPE=None', '-DCMAKE_CXX_FLAGS=-O1', ...settings]);
    run('cmake', ['--build', build, '--target', 'alps', '--parallel', String(availableParallelism())]);
  });
  const header = run('readelf', ['-h', join(root, addon)]);
  if (!header.includes('AArch64')) throw new Error(`${addon} is not for arm64`);
  say(`${addon} is for arm64`);
} catch (error) {
  say(error.message);
  process.exit(1);
}
