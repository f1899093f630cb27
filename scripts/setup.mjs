// Makes a fresh machine able to run and test the package: system packages, npm packages, the native addon, the compiled
// TypeScript. Safe to repeat: what is there already is left alone. Uses nothing but Node itself.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { buildKernels } from './cuda-kernels.mjs';
import { findToolkit } from './cuda-toolkit.mjs';
import { has, install, mayInstall, root, run, say, step } from './steps.mjs';

export { root };

/** What each system package is for, and how to see that it is there. */
const systemPackages = [
  { name: 'g++', present: () => has('c++', '--version') },
  { name: 'make', present: () => has('make', '--version') },
  { name: 'cmake', present: () => has('cmake', '--version') },
  { name: 'libdnnl-dev', present: () => compiles('#include <dnnl.h>', '-ldnnl') },
  { name: 'libopenblas-dev', present: () => compiles('', '-lopenblas') },
];

/** Only for packing: what gives the packed libraries their names and search paths. */
const packingPackages = [{ name: 'patchelf', present: () => has('patchelf', '--version') }];

/** Whether a program with this first line compiles and links. */
function compiles(include, library) {
  const source = `${include}\nint main() { return 0; }\n`;
  const result = spawnSync('c++', ['-x', 'c++', '-', '-o', '/dev/null', library], {
    input: source,
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  return result.status === 0;
}

function fail(text) {
  say(text);
  process.exit(1);
}

function systemStep(packages) {
  const missing = packages.filter((p) => !p.present()).map((p) => p.name);
  if (missing.length === 0) return;
  const asRoot = process.getuid?.() === 0 ? [] : has('sudo', '-n', 'true') ? ['sudo', '-n'] : null;
  const command = `apt-get install ${missing.join(' ')}`;
  if (!has('apt-get', '--version')) {
    fail(
      `These are missing, and there is no apt-get here to install them: ${missing.join(', ')} (Debian's names). Install them and try again.`,
    );
  }
  if (asRoot === null) fail(`These system packages are missing: ${missing.join(', ')}. Run as root: ${command}`);
  say(`installing ${missing.join(', ')} with apt-get`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const apt = (...args) => run([...asRoot, 'apt-get'][0], [...asRoot, 'apt-get', ...args].slice(1), { env });
  try {
    apt('update', '-qq');
    apt('install', '-y', '-qq', '--no-install-recommends', ...missing);
  } catch (error) {
    fail(`${error.message}. Install ${missing.join(', ')} by hand and try again.`);
  }
  const still = packages.filter((p) => !p.present()).map((p) => p.name);
  if (still.length > 0) fail(`apt-get ran, and yet these do not work: ${still.join(', ')}`);
}

/** The browser that a test opens the reports in. Without one that test is skipped. */
function browserStep() {
  const present = () => ['chromium', 'chromium-browser', 'google-chrome'].some((name) => has(name, '--version'));
  if (present()) return;
  if (!mayInstall()) {
    say('no Chromium was found: the test that opens a report in a browser will be skipped');
    return;
  }
  say('installing chromium with apt-get');
  install('chromium');
  if (!present()) say('chromium could not be installed: the test that opens a report in a browser will be skipped');
}

/** All of it, in order; the kernels for GPUs only where a CUDA toolkit is there. */
export function setup({ browser = false, kernels = true, packing = false } = {}) {
  const [major] = process.versions.node.split('.').map(Number);
  if (major < 20) fail(`Node 20 or newer is needed; this is ${process.version}.`);
  systemStep(packing ? [...systemPackages, ...packingPackages] : systemPackages);
  if (browser) browserStep();
  step('npm', ['package.json', 'package-lock.json'], ['node_modules/typescript'], () => {
    say('installing npm packages');
    run('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error']);
  });
  step('native', ['native', 'CMakeLists.txt', 'package-lock.json'], ['build/Release/alps.node'], () => {
    say('building the native addon (about a minute)');
    run('npx', ['--no-install', 'cmake-js', 'compile', '--CDCMAKE_BUILD_TYPE=Release', '--CDALPS_CUDA=off']);
  });
  if (kernels && findToolkit()) buildKernels();
  step('typescript', ['src', 'tsconfig.json', 'tsconfig.build.json', 'package-lock.json'], ['lib/index.js'], () => {
    say('compiling TypeScript');
    run('npx', ['--no-install', 'tsc', '-p', 'tsconfig.build.json']);
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    setup();
    say('ready');
  } catch (error) {
    fail(error.message);
  }
}
