import { Device } from '../device/device.js';
import { AlpsError } from '../errors.js';
import { parse } from './arguments.js';
import type { Command } from './command.js';
import { size, table } from './format.js';

const help = `alps devices - what can compute on this machine

Usage: alps devices [--json]

Shows each device with its instruction set, number formats, threads and memory, or why it cannot be used.

Example:
  alps devices
`;

export const devicesCommand: Command = {
  summary: 'Show the devices that can compute here',
  async run(args, { stdout }) {
    const { values } = parse(args, {}, []);
    if (values.help) {
      stdout.write(help);
      return 0;
    }
    const rows = [probe('cpu')];
    if (values.json) {
      for (const row of rows) stdout.write(`${JSON.stringify(row)}\n`);
    } else {
      const cells = rows.map((row) => [
        row.name,
        row.usable ? 'usable' : 'not usable',
        row.details,
        size(row.memoryLimit),
      ]);
      stdout.write(`${table(['device', 'state', 'details', 'memory limit'], cells)}\n`);
    }
    return rows.some((row) => row.usable) ? 0 : 1;
  },
};

function probe(name: 'cpu') {
  try {
    return { usable: true, ...Device.open(name).info() };
  } catch (error) {
    if (!(error instanceof AlpsError)) throw error;
    return { usable: false, name, details: error.message, memoryLimit: 0 };
  }
}
