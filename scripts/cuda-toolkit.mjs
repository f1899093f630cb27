// Makes what compiles the CUDA kernels and what they need to run, in .cuda/, from packages on PyPI (about 530 MB to download):
//
//   node scripts/cuda-toolkit.mjs [--force]
//
// Not needed where a CUDA 13 toolkit is installed; then it does nothing, unless forced to. The folder is laid out like an installed
// toolkit (.cuda/nvidia/cu13/bin/nvcc, include, lib64) and appears under its name only when it works.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { root } from './steps.mjs';

const version = '13.0';
const wheels = ['cuda-nvcc', 'cuda-crt', 'cuda-runtime', 'cuda-cccl', 'nvvm', 'cublas'];

/** Why there can be no toolkit, in words for people. */
export class NoToolkit extends Error {}

const say = (text) => process.stderr.write(`cuda-toolkit: ${text}\n`);

/** The version of an nvcc ("13.0"), or undefined when it does not run. */
function versionOf(nvcc) {
  const { stdout, status } = spawnSync(nvcc, ['--version'], { encoding: 'utf8' });
  return status === 0 ? /release (\d+\.\d+)/.exec(stdout)?.[1] : undefined;
}

/** The nvcc that native/cuda/cuda.cmake will find: `{ nvcc, version }`, or undefined when there is none of CUDA 13. */
export function findToolkit() {
  const { CUDACXX, CUDA_PATH, CUDA_HOME } = process.env;
  const inFolder = (folder) => (folder ? [join(folder, 'bin', 'nvcc')].filter(existsSync) : []);
  const candidates = CUDACXX
    ? [CUDACXX]
    : [
        ...inFolder(CUDA_PATH),
        ...inFolder(CUDA_HOME),
        ...inFolder(join(root, '.cuda', 'nvidia', 'cu13')),
        'nvcc',
        ...inFolder('/usr/local/cuda'),
      ];
  for (const nvcc of candidates) {
    const found = versionOf(nvcc);
    if (found) return found.startsWith('13.') ? { nvcc, version: found } : undefined;
  }
  return undefined;
}

function python() {
  const name = ['python3', 'python'].find((name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0);
  if (!name) throw new NoToolkit('it is made by pip, and there is no python3');
  if (spawnSync(name, ['-m', 'pip', '--version'], { stdio: 'ignore' }).status !== 0)
    throw new NoToolkit(`it is made by pip, and ${name} has none (Debian and Ubuntu: apt-get install python3-pip)`);
  return name;
}

/** The linker looks for names without a version: libcublas.so for libcublas.so.13. */
function linkPlainNames(folder) {
  for (const name of readdirSync(folder)) {
    const plain = /^(lib\w+\.so)\.\d+$/.exec(name)?.[1];
    if (plain && !existsSync(join(folder, plain))) symlinkSync(name, join(folder, plain));
  }
}

/**
 * Makes .cuda/ unless a CUDA 13 toolkit is there already.
 *
 * @returns {{nvcc: string, version: string}}
 * @throws {NoToolkit} when it cannot be had
 */
export function makeToolkit({ force = false } = {}) {
  const present = findToolkit();
  if (present && !force) return present;
  if (process.platform !== 'linux') throw new NoToolkit('it can be made on Linux only');
  const target = join(root, '.cuda');
  const partial = join(root, '.cuda.partial');
  const pip = ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--no-deps', '--only-binary=:all:'];
  const interpreter = python();
  say(`downloading CUDA ${version} from PyPI (about 530 MB) into .cuda/`);
  rmSync(partial, { recursive: true, force: true });
  mkdirSync(partial, { recursive: true });
  try {
    const packages = wheels.map((name) => `nvidia-${name}==${version}.*`);
    const args = [...pip, '--no-cache-dir', '--no-compile', '--target', partial, ...packages];
    const result = spawnSync(interpreter, args, { encoding: 'utf8', maxBuffer: 1 << 26 });
    if (result.status !== 0) {
      const reason = result.stderr.trim().split('\n').slice(-3).join('\n');
      throw new NoToolkit(`pip could not install nvidia-* ${version} from PyPI; is there a network?\n${reason}`);
    }
    const home = join(partial, 'nvidia', 'cu13');
    if (!existsSync(join(home, 'lib64'))) symlinkSync('lib', join(home, 'lib64'));
    linkPlainNames(join(home, 'lib'));
    if (!versionOf(join(home, 'bin', 'nvcc'))?.startsWith(version))
      throw new NoToolkit(`the nvcc of the packages does not run: ${join(home, 'bin', 'nvcc')} --version`);
    rmSync(target, { recursive: true, force: true });
    renameSync(partial, target);
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
  return { nvcc: join(target, 'nvidia', 'cu13', 'bin', 'nvcc'), version };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    const { nvcc, version } = makeToolkit({ force: process.argv.includes('--force') });
    say(`CUDA ${version}: ${nvcc}`);
  } catch (error) {
    if (!(error instanceof NoToolkit)) throw error;
    say(`there is no CUDA toolkit: ${error.message}`);
    process.exit(1);
  }
}
