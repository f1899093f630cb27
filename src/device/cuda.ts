import { existsSync, readdirSync } from 'node:fs';
import { delimiter, dirname, join, resolve } from 'node:path';
import { AlpsError } from '../errors.js';
import { addon, addonFile, type CudaLocation, type CudaProbe, packageRoot } from './addon.js';

/** What there is of CUDA on this machine; `failure` says in words why no GPU can be used. */
export interface CudaFinding extends CudaProbe {
  where: CudaLocation;
}

type Environment = Record<string, string | undefined>;

/** The library of the kernels: `ALPS_CUDA_LIBRARY`, or libalps_cuda.so beside the addon (build/Release or the prebuild's folder). */
export function kernelsFile(env: Environment = process.env): string {
  if (env.ALPS_CUDA_LIBRARY) return resolve(env.ALPS_CUDA_LIBRARY);
  return join(dirname(addonFile()), 'libalps_cuda.so');
}

/**
 * Where CUDA's own libraries (cuBLAS) are looked for, in order: the folders that `CUDA_PATH` and `CUDA_HOME` name, the system's search
 * path (`''`), /usr/local/cuda, packages of pip (nvidia-cublas, as PyTorch brings along), the toolkit that scripts/cuda-toolkit.mjs makes.
 * Folders that do not exist are left out.
 */
export function cudaFolders(env: Environment = process.env): string[] {
  const libraries = (home: string | undefined) => (home ? [join(home, 'lib64'), join(home, 'lib')] : []);
  const folders = [
    ...libraries(env.CUDA_PATH),
    ...libraries(env.CUDA_HOME),
    '',
    '/usr/local/cuda/lib64',
    ...pythonFolders(env).map((packages) => join(packages, 'nvidia', 'cu13', 'lib')),
    join(packageRoot, '.cuda', 'nvidia', 'cu13', 'lib'),
  ];
  return [...new Set(folders)].filter((folder) => folder === '' || existsSync(folder));
}

/** Where pip installs packages, without running Python: of the active environment, of the user, of each python3 in PATH, of the system. */
function pythonFolders(env: Environment): string[] {
  const inPath = (env.PATH ?? '')
    .split(delimiter)
    .filter((folder) => folder !== '' && existsSync(join(folder, 'python3')))
    .map((folder) => dirname(folder));
  const prefixes = [env.VIRTUAL_ENV, env.CONDA_PREFIX, env.HOME && join(env.HOME, '.local'), ...inPath, '/usr/local'];
  const versions = (lib: string) => {
    try {
      return readdirSync(lib).filter((name) => /^python3(\.\d+)?$/.test(name));
    } catch {
      return [];
    }
  };
  return prefixes
    .filter((prefix): prefix is string => Boolean(prefix))
    .map((prefix) => join(prefix, 'lib'))
    .flatMap((lib) => versions(lib).map((version) => join(lib, version)))
    .flatMap((lib) => [join(lib, 'site-packages'), join(lib, 'dist-packages')])
    .concat('/usr/lib/python3/dist-packages');
}

/** Opens the library of the kernels (once a process) and asks the driver for GPUs. Never throws for what the machine lacks. */
export function findCuda(): CudaFinding {
  const where = { kernels: kernelsFile(), folders: cudaFolders() };
  if (existsSync(where.kernels)) return { where, ...addon().probeCuda(where) };
  const failure = `the library of the CUDA kernels is not there: ${where.kernels}`;
  return {
    where,
    devices: [],
    driver: '',
    runtime: '',
    failure,
    tried: [{ what: where.kernels, outcome: 'there is no such file' }],
  };
}

/** Files that the drivers of NVIDIA make: on Linux, under WSL, on Jetson. */
const driverFiles = ['/dev/nvidiactl', '/dev/dxg', '/dev/nvhost-gpu', '/dev/nvgpu'];

/**
 * Where `auto` may try a GPU, or the reason why it does not. Cheap without a GPU: nothing of CUDA is opened then.
 */
export function cudaForAuto(): { where: CudaLocation } | { reason: string } {
  if (!driverFiles.some((file) => existsSync(file)))
    return { reason: 'this machine shows no NVIDIA GPU (/dev/nvidiactl)' };
  const found = findCuda();
  if (found.failure) return { reason: found.failure };
  if (found.driver === 'none')
    return {
      reason: 'ALPS_CUDA_LIBRARY names kernels that run on the processor, for tests; only an explicit cuda:N uses them',
    };
  return { where: found.where };
}

/** `NO_DEVICE`, with all that was tried and what to do. */
export function noCudaError(name: string, found: CudaFinding): AlpsError {
  return new AlpsError(
    'NO_DEVICE',
    [
      `The device ${name} cannot be used: ${found.failure}`,
      'Tried:',
      ...found.tried.map(({ what, outcome }) => `  ${what}: ${outcome}`),
      remedy(found),
    ].join('\n'),
  );
}

function remedy({ where, runtime, failure }: CudaFinding): string {
  if (!existsSync(where.kernels))
    return 'The kernels are built by: npm run build:cuda (docs/cuda.md); ALPS_CUDA_LIBRARY names another place.';
  if (/libcublas/.test(failure))
    return 'It needs cuBLAS of CUDA 13 (pip install nvidia-cublas, or a CUDA toolkit; CUDA_PATH names its folder).';
  if (runtime === '') return 'The kernels are built again by: npm run build:cuda (docs/cuda.md).';
  return 'It needs an NVIDIA GPU of compute capability 8.0 or newer and its driver (docs/cuda.md); "cpu" works everywhere.';
}
