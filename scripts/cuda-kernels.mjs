// Compiles the CUDA kernels into build/Release/libalps_cuda.so, beside the addon, and looks at what ptxas says of each:
//
//   node scripts/cuda-kernels.mjs [--architectures 90,120 | --all] [--make-toolkit]
//
// Without an option: for the GPUs of this machine, or, where there is none, for compute capability 9.0; a list in the environment
// variable ALPS_CUDA_ARCHITECTURES goes before that. --all: everything that a published package contains. --make-toolkit: a missing
// CUDA toolkit is made first (scripts/cuda-toolkit.mjs). Exit codes: 0 done, 1 failed, 77 there is no toolkit.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { isAbsolute, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { checkPtxas } from './check-ptxas.mjs';
import { findToolkit, makeToolkit, NoToolkit } from './cuda-toolkit.mjs';
import { root, run, say, step } from './steps.mjs';

export const allArchitectures = ['80', '86', '89', '90', '100', '120'];

/** Compute capabilities of the GPUs here ("90"), ascending; empty without a driver. */
function architecturesHere() {
  const { stdout, status } = spawnSync('nvidia-smi', ['--query-gpu=compute_cap', '--format=csv,noheader'], {
    encoding: 'utf8',
  });
  const found = status === 0 ? stdout.match(/^\d+\.\d+$/gm) : null;
  return [...new Set(found?.map((capability) => capability.replace('.', '')))].sort((a, b) => a - b);
}

function chooseArchitectures() {
  const asked = process.env.ALPS_CUDA_ARCHITECTURES?.match(/\d+/g);
  if (asked) return asked;
  const here = architecturesHere();
  return here.length > 0 ? here : ['90'];
}

/**
 * Builds the library, unless it is there already for the same sources, toolkit and architectures.
 *
 * @throws {NoToolkit} without nvcc
 */
export function buildKernels({ architectures = chooseArchitectures(), toolkit = findToolkit() } = {}) {
  if (!toolkit) throw new NoToolkit('nvcc of CUDA 13 was not found');
  if (!existsSync(join(root, 'build', 'CMakeCache.txt')))
    throw new Error('the addon has to be built first: npm run setup');
  const list = architectures.join(';');
  step(
    'kernels',
    ['native/cuda', 'native/core', 'CMakeLists.txt'],
    ['build/Release/libalps_cuda.so', 'build/cuda'],
    () => {
      say(`compiling the CUDA kernels for sm_${architectures.join(', sm_')}`);
      const env = { ...process.env, ...(isAbsolute(toolkit.nvcc) && { CUDACXX: toolkit.nvcc }) };
      run('cmake', ['-DALPS_CUDA=on', `-DALPS_CUDA_ARCHITECTURES=${list}`, 'build'], { env });
      const parallel = String(availableParallelism());
      run('cmake', ['--build', 'build', '--target', 'alps_cuda', '--parallel', parallel], { env });
    },
    `${toolkit.version} ${list}`,
  );
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({
    options: {
      architectures: { type: 'string' },
      all: { type: 'boolean' },
      'make-toolkit': { type: 'boolean' },
    },
  });
  try {
    const architectures = values.all ? allArchitectures : values.architectures?.split(',');
    buildKernels({ architectures, toolkit: values['make-toolkit'] ? makeToolkit() : findToolkit() });
    process.exitCode = checkPtxas() ? 0 : 1;
  } catch (error) {
    say(error instanceof NoToolkit ? `the CUDA kernels cannot be compiled: ${error.message}` : error.message);
    process.exitCode = error instanceof NoToolkit ? 77 : 1;
  }
}
