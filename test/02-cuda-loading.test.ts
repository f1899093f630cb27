import { spawnSync } from 'node:child_process';
import { copyFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { addonFile, packageRoot } from '../src/device/addon.js';
import { cudaFolders, findCuda, kernelsFile } from '../src/device/cuda.js';
import { Device } from '../src/device/device.js';

// What holds without a GPU. With one, ALPS_CUDA_LIBRARY is still a file that cannot be used in most of these cases.
const kernelsOnProcessor = join(packageRoot, 'build', 'Release', 'libalps_cuda_host.so');
const main = fileURLToPath(new URL('../lib/cli/main.js', import.meta.url));

const before = process.env.ALPS_CUDA_LIBRARY;

let scratch: string;
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'alps-cuda-'));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

afterEach(() => {
  if (before === undefined) delete process.env.ALPS_CUDA_LIBRARY;
  else process.env.ALPS_CUDA_LIBRARY = before;
});

/** The message of the error that opening a device gives. */
function refusal(name: 'cuda' | `cuda:${number}`): string {
  try {
    Device.open(name);
  } catch (error) {
    expect(error).toMatchObject({ name: 'AlpsError', code: 'NO_DEVICE' });
    return (error as Error).message;
  }
  throw new Error(`${name} opened`);
}

describe('devices without a GPU', () => {
  test('auto is the processor, and says why', () => {
    process.env.ALPS_CUDA_LIBRARY = join(scratch, 'missing.so');
    const device = Device.open('auto');
    expect(device.name).toBe('cpu');
    expect(device.fallback).toMatch(/no NVIDIA GPU|is not there/);
    expect(device.info().fallback).toBe(device.fallback);
    expect(Device.open('cpu').fallback).toBeUndefined();
    expect(Device.open('cpu').info()).not.toHaveProperty('fallback');
  });

  test('auto never takes the kernels on the processor; cuda:N does, and "cuda" is cuda:0', () => {
    process.env.ALPS_CUDA_LIBRARY = kernelsOnProcessor;
    expect(Device.open('auto')).toMatchObject({ name: 'cpu', fallback: expect.any(String) });
    expect(Device.open('cuda').name).toBe('cuda:0');
    expect(Device.open('cuda').info().details).toContain('kernels on the processor');
    expect(Device.open('cuda:1').info().name).toBe('cuda:1');
  });

  test('a number past the last GPU is refused in words', () => {
    process.env.ALPS_CUDA_LIBRARY = kernelsOnProcessor;
    expect(refusal('cuda:7')).toBe('There is no device cuda:7: the driver shows 2 GPUs');
  });

  test.each(['gpu', 'cuda:', 'cuda:-1', 'cuda:1234', 'CUDA'])('%j is no device', (name) => {
    expect(() => Device.open(name as 'cuda')).toThrow(
      expect.objectContaining({
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining('Expected "auto", "cpu", "cuda" or "cuda:N" for device'),
      }),
    );
  });

  test('an instruction set is of the processor', () => {
    expect(Device.open('auto', { isa: 'scalar' })).toMatchObject({ name: 'cpu', fallback: undefined });
    expect(() => Device.open('cuda', { isa: 'scalar' })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expect(() => Device.open('cpu', { isa: 'order=1' as 'scalar' })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });
});

describe('a library of kernels that cannot be used', () => {
  test('that is missing', () => {
    const file = join(scratch, 'missing.so');
    process.env.ALPS_CUDA_LIBRARY = file;
    expect(refusal('cuda')).toBe(
      [
        `The device cuda:0 cannot be used: the library of the CUDA kernels is not there: ${file}`,
        'Tried:',
        `  ${file}: there is no such file`,
        'The kernels are built by: npm run build:cuda (docs/cuda.md); ALPS_CUDA_LIBRARY names another place.',
      ].join('\n'),
    );
  });

  test('that is no library', async () => {
    const file = join(scratch, 'text.so');
    await writeFile(file, 'no library');
    process.env.ALPS_CUDA_LIBRARY = file;
    const lines = refusal('cuda:0').split('\n');
    expect(lines[0]).toMatch(`The device cuda:0 cannot be used: ${file}: `);
    expect(lines[1]).toBe('Tried:');
    expect(lines.at(-2)).toMatch(`  ${file}: `);
    expect(lines.at(-1)).toContain('npm run build:cuda');
    expect(lines.filter((line) => line.includes('libcublas.so.13')).length).toBeGreaterThan(0);
  });

  test('that has none of the functions', async () => {
    const file = join(scratch, 'other.so');
    await copyFile(addonFile(), file);
    process.env.ALPS_CUDA_LIBRARY = file;
    expect(refusal('cuda')).toMatch(/undefined symbol: alpsCuda/);
  });

  test('of another version of the addon', () => {
    const file = join(scratch, 'version.so');
    const source = 'extern "C" { int alpsCudaVersion() { return -1; } void alpsCudaProbe() {} void alpsCudaOpen() {} }';
    const built = spawnSync('c++', ['-x', 'c++', '-', '-shared', '-fPIC', '-o', file], { input: source });
    expect(built.status).toBe(0);
    process.env.ALPS_CUDA_LIBRARY = file;
    expect(refusal('cuda')).toContain(`${file} was built for another version of the addon`);
  });
});

// CUDA's runtime, inside the library for GPUs, meets a driver that answers as a real one would.
const kernelsForGpus = join(packageRoot, 'build', 'Release', 'libalps_cuda.so');
process.env.ALPS_CUDA_LIBRARY = kernelsForGpus;
const opens = findCuda().runtime !== ''; // built, and cuBLAS is here
(opens ? describe : describe.skip)('drivers that cannot be used', () => {
  beforeAll(() => {
    const source = `
      #include <cstdlib>
      #include <cstring>
      static int number(const char* name) { return std::atoi(std::getenv(name)); }
      static int noDevice() { return 100; }
      extern "C" {
      int cuInit(unsigned) { return number("DRIVER_INIT"); }
      int cuDriverGetVersion(int* version) { *version = number("DRIVER_VERSION"); return 0; }
      int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long, int* status) {
        if (status) *status = 0;
        *function = !std::strcmp(name, "cuInit") ? (void*)cuInit
                  : !std::strcmp(name, "cuDriverGetVersion") ? (void*)cuDriverGetVersion
                  : !std::strcmp(name, "cuGetProcAddress") ? (void*)cuGetProcAddress_v2
                  : (void*)noDevice;
        return 0;
      }
      int cuGetProcAddress(const char* name, void** function, int version, unsigned long flags) {
        return cuGetProcAddress_v2(name, function, version, flags, nullptr);
      }
      }`;
    const file = join(scratch, 'libcuda.so.1');
    expect(spawnSync('c++', ['-x', 'c++', '-', '-shared', '-fPIC', '-o', file], { input: source }).status).toBe(0);
  });

  test.each([
    [12040, 0, /too old, it supports CUDA 12\.4; one for CUDA 13\.0 or newer/],
    [13000, 100, /the NVIDIA driver shows no GPU/],
    [13020, 999, /the NVIDIA driver failed: .+ \(cuda\w+\)/],
  ])('version %d that answers %d', (version, answer, message) => {
    const { status, stdout } = spawnSync(process.execPath, [main, 'devices'], {
      encoding: 'utf8',
      env: {
        ...process.env,
        ALPS_CUDA_LIBRARY: kernelsForGpus,
        LD_LIBRARY_PATH: scratch,
        DRIVER_VERSION: String(version),
        DRIVER_INIT: String(answer),
      },
    });
    expect(status).toBe(0);
    expect(stdout).toMatch(message);
    expect(stdout).toMatch(/^cuda +not usable /m);
  });
});

describe('where things are looked for', () => {
  test('the kernels: beside the addon, or where ALPS_CUDA_LIBRARY says', () => {
    expect(kernelsFile({})).toBe(join(addonFile(), '..', 'libalps_cuda.so'));
    expect(kernelsFile({ ALPS_CUDA_LIBRARY: 'kernels.so' })).toBe(join(process.cwd(), 'kernels.so'));
  });

  test('CUDA’s libraries: CUDA_PATH, CUDA_HOME, the system, pip’s packages', async () => {
    const make = async (...parts: string[]) => {
      const folder = join(scratch, ...parts);
      await mkdir(folder, { recursive: true });
      return folder;
    };
    const toolkit = await make('toolkit', 'lib64');
    const home = await make('home-toolkit', 'lib');
    const venv = await make('venv', 'lib', 'python3.12', 'site-packages', 'nvidia', 'cu13', 'lib');
    const user = await make('user', '.local', 'lib', 'python3.11', 'site-packages', 'nvidia', 'cu13', 'lib');
    const other = await make('python', 'lib', 'python3.10', 'site-packages', 'nvidia', 'cu13', 'lib');
    await writeFile(join(await make('python', 'bin'), 'python3'), '');
    const folders = cudaFolders({
      CUDA_PATH: join(scratch, 'toolkit'),
      CUDA_HOME: join(scratch, 'home-toolkit'),
      VIRTUAL_ENV: join(scratch, 'venv'),
      CONDA_PREFIX: join(scratch, 'missing'),
      HOME: join(scratch, 'user'),
      PATH: `${join(scratch, 'python', 'bin')}:/missing`,
    });
    expect(folders.filter((folder) => folder === '' || folder.startsWith(scratch))).toEqual([
      toolkit,
      home,
      '',
      venv,
      user,
      other,
    ]);
  });

  test('what was found is told once for a process: asking again gives the same', () => {
    process.env.ALPS_CUDA_LIBRARY = kernelsOnProcessor;
    expect(findCuda()).toEqual(findCuda());
    expect(findCuda().devices).toHaveLength(2);
  });
});

describe('alps devices', () => {
  const devices = (library: string, ...args: string[]) =>
    spawnSync(process.execPath, [main, 'devices', ...args], {
      encoding: 'utf8',
      env: { ...process.env, ALPS_CUDA_LIBRARY: library },
    });

  test('says why CUDA cannot be used, what was tried, and what auto is', () => {
    const file = join(scratch, 'missing.so');
    const { status, stdout, stderr } = devices(file);
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout).toMatch(/^cpu +usable /m);
    expect(stdout).toMatch(/^cuda +not usable +the library of the CUDA kernels is not there/m);
    expect(stdout).toMatch(/^"auto" is cpu: /m);
    expect(stdout).toContain(`\n  ${file}: there is no such file\n`);
  });

  test('--json: one line a device', () => {
    const { status, stdout } = devices(kernelsOnProcessor, '--json');
    expect(status).toBe(0);
    const rows = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(rows.map((row) => row.name)).toEqual(['cpu', 'cuda:0', 'cuda:1']);
    expect(rows.map((row) => row.auto)).toEqual([true, false, false]);
    expect(rows[1]).toMatchObject({
      usable: true,
      isa: 'sm_90',
      cuda: { gpu: 'kernels on the processor', capability: '9.0', memory: 2 ** 32, driver: 'none' },
    });
  });
});
