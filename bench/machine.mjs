// The machine that a benchmark ran on.
import { readFileSync } from 'node:fs';
import { arch, cpus, loadavg, platform, totalmem } from 'node:os';

const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));

/** AMD's families by name, which the model name of a virtual machine lacks. */
function architecture() {
  try {
    const info = readFileSync('/proc/cpuinfo', 'utf8');
    const field = (name) => new RegExp(`^${name}\\s*: (.*)$`, 'm').exec(info)?.[1];
    if (field('vendor_id') !== 'AuthenticAMD') return '';
    if (field('cpu family') === '25') return /\bavx512f\b/.test(info) ? 'Zen 4' : 'Zen 3';
    return { 23: 'Zen 1 or 2', 26: 'Zen 5' }[field('cpu family')] ?? '';
  } catch {
    return '';
  }
}

export function machineOf(device) {
  const { name, details, isa, bf16Products, int8Products, threads } = device.info();
  return {
    date: new Date().toISOString(),
    version,
    node: process.version,
    platform: `${platform()} ${arch()}`,
    cpu: cpus()[0]?.model.trim() ?? '',
    architecture: architecture(),
    cores: cpus().length,
    memory: totalmem(),
    loadBefore: loadavg()[0],
    device: { name, details, isa, bf16Products, int8Products, threads },
  };
}
