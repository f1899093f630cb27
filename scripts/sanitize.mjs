// Builds the native code with clang's sanitizers and runs what there is to run on it, in .sanitize/ (kept: a second run compiles nothing):
// the unit tests (native/test) under ASan + UBSan and under TSan, then the fuzzer (native/fuzz) from its corpus.
//
//   node scripts/sanitize.mjs [--seconds 60]     # 60 s of fuzzing; what is new stays in .sanitize/corpus
//   node scripts/sanitize.mjs --node             # the addon in Node under ASan
//   node scripts/sanitize.mjs --minimize         # native/fuzz/corpus anew from .sanitize/corpus
//
// --node builds the addon with GCC's address sanitizer, and runs scripts/sanitized-node.mjs and test/04-addon-fuzz.test.ts on it (after
// `npm run setup`). A leak counts when its stack passes through the addon: Node itself never frees all it has.
//
// Exit codes: 0 done, 1 failed, 77 clang, its run-time libraries or doctest are missing.
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { install, mayInstall, root, run, say, step } from './steps.mjs';

const folder = join(root, '.sanitize');
const corpus = join(root, 'native', 'fuzz', 'corpus');
const found = join(folder, 'corpus');
const { values: options } = parseArgs({
  options: { seconds: { type: 'string', default: '60' }, node: { type: 'boolean' }, minimize: { type: 'boolean' } },
});

/** Whether clang links a program with these sanitizers. */
function links(sanitizers, include = '') {
  const source = `${include}\nextern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }\n`;
  const args = ['-x', 'c++', '-', '-o', '/dev/null', `-fsanitize=${sanitizers}`];
  return spawnSync('clang++', args, { input: source, stdio: ['pipe', 'ignore', 'ignore'] }).status === 0;
}

function findTools() {
  const present = () =>
    links('fuzzer,address,undefined', '#define DOCTEST_CONFIG_DISABLE\n#include <doctest/doctest.h>') &&
    links('fuzzer,thread');
  if (present()) return;
  const packages = ['clang', 'doctest-dev'];
  if (!mayInstall())
    skip(`clang with its sanitizers, or doctest, is missing (Debian: apt-get install ${packages.join(' ')})`);
  say(`installing ${packages.join(', ')} and clang's sanitizers with apt-get`);
  install(...packages);
  // The run-time libraries are a package of their own, named after clang's version.
  const version = /version (\d+)/.exec(spawnSync('clang++', ['--version'], { encoding: 'utf8' }).stdout ?? '')?.[1];
  if (version) install(`libclang-rt-${version}-dev`);
  if (!present()) skip(`${packages.join(', ')} could not be installed`);
}

function skip(text) {
  say(`the native code is not run under sanitizers: ${text}`);
  process.exit(77);
}

function build(name, sanitizers, targets) {
  const path = join(folder, name);
  step(
    `sanitize-${name}`,
    ['native/core', 'native/cpu', 'native/cmake', 'native/test', 'native/fuzz', 'native/cuda/copy_team.h'],
    targets.map((t) => join('.sanitize', name, t)),
    () => {
      say(`compiling for ${sanitizers}`);
      const settings = ['-DCMAKE_CXX_COMPILER=clang++', '-DCMAKE_BUILD_TYPE=None', `-DALPS_SANITIZE=${sanitizers}`];
      run('cmake', ['-S', 'native/test', '-B', path, ...settings]);
      run('cmake', ['--build', path, '--target', ...targets, '--parallel', String(availableParallelism())]);
    },
  );
  return path;
}

/** Runs a step that says what it did on its last lines, which are printed. */
function report(title, command, args, settings = {}, pattern = /./) {
  const result = spawnSync(command, args, {
    cwd: folder,
    encoding: 'utf8',
    env: { ...process.env, ...settings },
    maxBuffer: 1 << 28,
  });
  const text = `${result.stdout ?? ''}${result.stderr ?? ''}`;
  if (result.status !== 0) {
    process.stderr.write(text.slice(-20000));
    throw new Error(`${title}: failed with ${result.signal ?? `exit code ${result.status}`}`);
  }
  for (const line of text.split('\n').filter((line) => pattern.test(line))) say(`${title}: ${line}`);
}

// Libraries of the system (oneDNN, OpenBLAS, libgomp) are not instrumented: TSan sees their memory but not their locks.
const thread = { TSAN_OPTIONS: 'ignore_noninstrumented_modules=1 halt_on_error=1' };
const counts = /test cases|assertions/;

function sanitize() {
  findTools();
  const address = build('address', 'address,undefined', ['alps_tests', 'alps_fuzz']);
  report('ASan + UBSan', join(address, 'alps_tests'), [], {}, counts);
  report('TSan', join(build('thread', 'thread', ['alps_tests']), 'alps_tests'), [], thread, counts);
  mkdirSync(found, { recursive: true });
  const limits = ['-max_len=768', '-timeout=60', '-rss_limit_mb=2048', `-artifact_prefix=${folder}/`];
  if (options.minimize) return minimize(join(address, 'alps_fuzz'));
  const args = [`-max_total_time=${options.seconds}`, ...limits, found, ...(existsSync(corpus) ? [corpus] : [])];
  report('fuzzer', join(address, 'alps_fuzz'), args, {}, /^Done|^#\d+\s+DONE/);
}

/** Few inputs that together reach what all that were found reach. */
function minimize(fuzzer) {
  const small = join(folder, 'minimized');
  rmSync(small, { recursive: true, force: true });
  mkdirSync(small);
  if (existsSync(corpus)) cpSync(corpus, found, { recursive: true });
  run(fuzzer, ['-set_cover_merge=1', '-use_counters=0', '-use_value_profile=0', small, found]);
  rmSync(corpus, { recursive: true, force: true });
  cpSync(small, corpus, { recursive: true });
  say(`native/fuzz/corpus: ${readdirSync(corpus).length} inputs`);
}

/**
 * The leaks of a report whose stack passes through the addon. The 40 bytes that napi_create_external itself takes for an external are Node's,
 * and freed by the garbage collector only: those of a worker that is terminated stay. What the external points to is the addon's and counts.
 */
function leaksOf(text) {
  const leaks = text
    .split(/^(?=Direct leak|Indirect leak)/m)
    .filter((part) => /^(Direct|Indirect) leak/.test(part) && part.includes('alps.node'));
  return leaks.filter((part) => !/^\s+#1 .* in napi_create_external\b/m.test(part));
}

/** The addon under GCC's address sanitizer, in Node. */
function sanitizeNode() {
  const library = (name) => spawnSync('g++', [`-print-file-name=${name}`], { encoding: 'utf8' }).stdout?.trim() ?? '';
  if (!library('libasan.so').startsWith('/')) skip('GCC has no address sanitizer here');
  const path = join(folder, 'node', 'build');
  const inputs = ['native/core', 'native/cpu', 'native/cmake', 'native/binding', 'CMakeLists.txt'];
  step('sanitize-node', inputs, [join('.sanitize', 'node', 'build', 'Release', 'alps.node')], () => {
    say('compiling the addon for address');
    const flags = '-O1 -g -fno-omit-frame-pointer -fsanitize=address';
    run('cmake', ['-S', '.', '-B', path, '-DCMAKE_BUILD_TYPE=None', `-DCMAKE_CXX_FLAGS=${flags}`, '-DALPS_CUDA=off']);
    run('cmake', ['--build', path, '--target', 'alps', '--parallel', String(availableParallelism())]);
  });
  const env = {
    ...process.env,
    ALPS_PRUNE_PREBUILD: join(folder, 'node'), // where node-gyp-build looks first
    ALPS_ADDON_CALLS: '8000',
    LD_PRELOAD: `${library('libasan.so')} ${library('libstdc++.so')}`,
    ASAN_OPTIONS: 'detect_leaks=1:malloc_context_size=40',
    LSAN_OPTIONS: 'exitcode=0',
  };
  const jest = ['--experimental-vm-modules', 'node_modules/jest/bin/jest.js', '--runInBand', 'test/04'];
  for (const args of [['scripts/sanitized-node.mjs'], jest]) {
    const { status, signal, stdout, stderr } = spawnSync(process.execPath, args, {
      cwd: root,
      encoding: 'utf8',
      env,
      maxBuffer: 1 << 28,
    });
    const leaks = leaksOf(stderr);
    if (status !== 0 || leaks.length > 0 || stderr.includes('ERROR: AddressSanitizer')) {
      process.stderr.write(`${stdout}${status === 0 ? leaks.join('') : stderr.slice(-20000)}`);
      throw new Error(`${args.at(-1)}: ${signal ?? `exit code ${status}`}, ${leaks.length} leaks through the addon`);
    }
    const summary = `${stdout}${stderr}`.split('\n').filter((line) => /^Tests:|^solved/.test(line));
    say(`ASan in Node, ${args.at(-1)}: ${summary.join('; ')}; 0 leaks through the addon`);
  }
}

try {
  mkdirSync(folder, { recursive: true });
  if (options.node) sanitizeNode();
  else sanitize();
} catch (error) {
  say(error.message);
  process.exit(1);
}
