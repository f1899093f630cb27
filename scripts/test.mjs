// The test command: set-up, lint, types, then jest. The last line is "N passed, N failed".
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root, setup } from './setup.mjs';

try {
  setup({ browser: true, kernels: false, packing: true });
} catch (error) {
  process.stderr.write(`setup: ${error.message}\n`);
  process.exit(1);
}

/** Whether a check passed; undefined for one that says (by exit code 77) that it cannot be made here. */
function check(name, command, args) {
  const from = performance.now();
  const result = spawnSync(command, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] });
  if (result.status === 77) {
    process.stdout.write(`SKIPPED: ${name}\n`);
    return undefined;
  }
  const passed = result.status === 0;
  const seconds = Math.round((performance.now() - from) / 1000);
  process.stdout.write(`${passed ? 'ok' : 'FAILED'}: ${name} (${seconds} s)\n`);
  return passed;
}

const checks = [
  check('format and lint', process.execPath, ['scripts/lint.mjs']),
  check('types', 'npx', ['--no-install', 'tsc', '--noEmit']),
  check('CUDA kernels compile', process.execPath, ['scripts/cuda-kernels.mjs', '--make-toolkit']),
  check('the package installs on a bare machine', process.execPath, ['scripts/check-package.mjs']),
  ...(process.env.CI
    ? [
        check('the addon compiles for arm64', process.execPath, ['scripts/cross-arm64.mjs']),
        check('the addon compiles for musl', process.execPath, ['scripts/cross-musl.mjs']),
        check('native tests and fuzzer under sanitizers', process.execPath, [
          'scripts/sanitize.mjs',
          '--seconds',
          '20',
        ]),
        check('the addon in Node under ASan', process.execPath, ['scripts/sanitize.mjs', '--node']),
      ]
    : []),
];

const scratch = mkdtempSync(join(tmpdir(), 'alps-test-'));
const report = join(scratch, 'jest.json');
const jest = spawnSync(
  process.execPath,
  [
    '--experimental-vm-modules',
    '--disable-warning=ExperimentalWarning',
    'node_modules/jest/bin/jest.js',
    '--json',
    `--outputFile=${report}`,
    ...process.argv.slice(2),
  ],
  { cwd: root, stdio: ['ignore', 'ignore', 'inherit'] },
);
let counts = { numPassedTests: 0, numFailedTests: 1, numPendingTests: 0, numRuntimeErrorTestSuites: 0 };
try {
  counts = JSON.parse(readFileSync(report, 'utf8'));
} catch (error) {
  process.stderr.write(`jest left no report: ${error.message}\n`);
}
rmSync(scratch, { recursive: true, force: true });
const passed = counts.numPassedTests + checks.filter(Boolean).length;
const failed = counts.numFailedTests + counts.numRuntimeErrorTestSuites + checks.filter((ok) => ok === false).length;
const skipped = counts.numPendingTests + checks.filter((ok) => ok === undefined).length;
if (skipped > 0) process.stdout.write(`${skipped} skipped\n`);
process.stdout.write(`${passed} passed, ${failed} failed\n`);
process.exit(failed === 0 && jest.status === 0 && counts.numPassedTests > 0 ? 0 : 1);
