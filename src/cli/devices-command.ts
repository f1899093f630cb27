import { type CudaFinding, findCuda } from '../device/cuda.js';
import { Device, type DeviceName } from '../device/device.js';
import { AlpsError } from '../errors.js';
import { parse } from './arguments.js';
import type { Command } from './command.js';
import { size, table } from './format.js';

const help = `alps devices - show what can compute on this machine

Usage: alps devices [--json]

Shows the processor and each NVIDIA GPU: instruction set or compute capability, threads or multiprocessors, and memory, or
why the device cannot be used. Also shows which device "--device auto" takes, and where CUDA's kernels and libraries were
searched for.

  --json          one JSON line per device

Example:
  alps devices
`;

export const devicesCommand: Command = {
  summary: 'Show the devices of this machine',
  async run(args, { stdout }) {
    const { values } = parse(args, {}, []);
    if (values.help) {
      stdout.write(help);
      return 0;
    }
    const found = findCuda();
    const auto = Device.open('auto');
    const rows = [probe('cpu'), ...gpus(found)].map((row) => ({ ...row, auto: row.name === auto.name }));
    if (values.json) {
      for (const row of rows) stdout.write(`${JSON.stringify(row)}\n`);
    } else {
      const cells = rows.map((row) => [
        row.name,
        row.usable ? 'usable' : 'not usable',
        row.details,
        row.usable ? size(row.memoryLimit) : '-',
      ]);
      const versions = `driver: ${version(found.driver)}; kernels: ${version(found.runtime)}`;
      const text = [
        table(['device', 'state', 'details', 'memory limit'], cells),
        '',
        `"auto" is ${auto.name}${auto.fallback === undefined ? '' : `: ${auto.fallback}`}`,
        `CUDA, ${versions}; tried:`,
        ...found.tried.map(({ what, outcome }) => `  ${what}: ${outcome}`),
      ];
      stdout.write(`${text.join('\n')}\n`);
    }
    return rows.some((row) => row.usable) ? 0 : 1;
  },
};

/** 13.0 → "CUDA 13.0" */
function version(text: string): string {
  return text === '' || text === 'none' ? 'none' : `CUDA ${text}`;
}

/** A row for each GPU, or one that says why there is none. */
function gpus({ devices, driver, runtime, failure, tried }: CudaFinding) {
  const cuda = { driver, runtime, tried };
  if (failure) return [{ usable: false, name: 'cuda', details: failure, memoryLimit: 0, cuda }];
  return devices.map(({ name: gpu, capability, memory }, i) => ({
    ...probe(`cuda:${i}`),
    cuda: { ...cuda, gpu, capability, memory },
  }));
}

function probe(name: DeviceName) {
  try {
    return { usable: true, ...Device.open(name).info() };
  } catch (error) {
    if (!(error instanceof AlpsError)) throw error;
    return { usable: false, name, details: error.message.split('\n', 1)[0]!, memoryLimit: 0 };
  }
}
