// What ptxas says of the compiled kernels (build/cuda/*.ptxas): registers, shared memory, stack and spills of each, on each architecture.
// Fails when a kernel spills or goes past its bounds.
//
//   node scripts/check-ptxas.mjs [--all]        # prints those past their bounds, or, with --all, every kernel
import { readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { root } from './steps.mjs';

/**
 * Most a kernel may take. 128 registers let two blocks of 256 threads share a multiprocessor; 48 KiB of fixed shared memory is all that
 * CUDA gives unasked; a stack means an array that did not fit into registers. Kernels that are meant to take more stand below, by name;
 * `elsewhere` is what other architectures than 9.0, for which they are written, may take besides.
 */
const usual = { registers: 128, shared: 48 << 10, stack: 0, spills: 0 };
const exceptions = {
  // Queries, scores and sums of a tile stay in registers: two blocks of 128 threads a multiprocessor, one of 256 from 192 dimensions on.
  attentionBf16Kernel: { registers: 255, elsewhere: { stack: 48, spills: 168 } },
  attentionF32Kernel: { registers: 254, elsewhere: { stack: 8, spills: 16 } },
  // One block factors a diagonal block alone, so nothing else needs the registers.
  factorKernel: { registers: 255 },
  solveKernel: { elsewhere: { stack: 8, spills: 16 } },
  useKernel: { elsewhere: { stack: 24, spills: 48 } },
  normKernel: { elsewhere: { stack: 8, spills: 24 } },
  rowsKernel: { elsewhere: { stack: 8, spills: 48 } },
};

/** The kernel's own name in a mangled one: _ZN4alps12_GLOBAL__N_110fillKernelIfEEvPT_ → fillKernel. */
function nameOf(mangled) {
  let rest = /^_ZN(.*)$/.exec(mangled)?.[1];
  let name = mangled;
  for (let match = /^\d+/.exec(rest); match; match = /^\d+/.exec(rest)) {
    const end = match[0].length + Number(match[0]);
    name = rest.slice(match[0].length, end);
    rest = rest.slice(end);
  }
  return name;
}

/** One entry a kernel, instance of its template and architecture. */
function parse(report) {
  const kernels = [];
  for (const part of report.split('Compiling entry function ').slice(1)) {
    const [, mangled, architecture] = /^'(.+?)' for '(\w+)'/.exec(part) ?? [];
    // What follows until the next kernel may name functions that were not inlined: all of them count.
    const sum = (pattern) => [...part.matchAll(pattern)].reduce((total, match) => total + Number(match[1]), 0);
    kernels.push({
      name: nameOf(mangled),
      mangled,
      architecture,
      registers: sum(/Used (\d+) registers/g),
      shared: sum(/(\d+) bytes smem/g),
      stack: sum(/(\d+) bytes stack frame/g),
      spills: sum(/(\d+) bytes spill stores/g) + sum(/(\d+) bytes spill loads/g),
    });
  }
  return kernels;
}

const line = (kernel) =>
  `${kernel.name} on ${kernel.architecture}: ${kernel.registers} registers, ${kernel.shared} bytes of shared memory, ` +
  `${kernel.stack} of stack, ${kernel.spills} of spills`;

/** Whether all kernels keep their bounds; those that do not are printed. */
export function checkPtxas({ all = false } = {}) {
  const sources = readdirSync(join(root, 'native', 'cuda')).filter((name) => name.endsWith('.cu'));
  let passed = true;
  let count = 0;
  for (const source of sources) {
    const kernels = parse(readFileSync(join(root, 'build', 'cuda', `${basename(source, '.cu')}.ptxas`), 'utf8'));
    count += kernels.length;
    for (const kernel of kernels) {
      const { elsewhere, ...exception } = exceptions[kernel.name] ?? {};
      const bounds = { ...usual, ...exception, ...(kernel.architecture === 'sm_90' ? {} : elsewhere) };
      const past = Object.keys(bounds).filter((key) => !(kernel[key] <= bounds[key]));
      if (all) process.stdout.write(`${source}: ${line(kernel)}\n`);
      for (const key of past)
        process.stdout.write(`${source}: ${key} may be ${bounds[key]}: ${line(kernel)} (${kernel.mangled})\n`);
      passed &&= past.length === 0;
    }
  }
  process.stdout.write(`${count} compiled kernels looked at (each instance on each architecture)\n`);
  return passed && count > 0;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  process.exitCode = checkPtxas({ all: process.argv.includes('--all') }) ? 0 : 1;
}
