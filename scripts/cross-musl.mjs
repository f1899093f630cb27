// Checks that the addon's sources compile against musl, the C library of Alpine. The compiler is Zig's Clang, from PyPI, which brings musl's
// headers and a C++ library's. Nothing is linked: oneDNN and OpenBLAS for musl are not there, and what musl lacks shows in its headers.
//
//   node scripts/cross-musl.mjs
//
// Needs build/ (npm run setup), whose compile commands it repeats. Exit codes: 0 done, 1 failed, 77 there is no such compiler.
import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';
import { has, root, run, say, step } from './steps.mjs';

const execute = promisify(execFile);
const build = join(root, 'build-musl');
const python = join(build, 'venv', 'bin', 'python');
const headers = join(build, 'headers');
const zig = ['-m', 'ziglang', 'c++', '-target', 'x86_64-linux-musl'];
const env = { ...process.env, ZIG_GLOBAL_CACHE_DIR: join(build, 'cache'), ZIG_LOCAL_CACHE_DIR: join(build, 'cache') };

function skip(text) {
  say(`musl is not compiled for: ${text}`);
  process.exit(77);
}

function findCompiler() {
  const present = () => has(python, '-m', 'ziglang', 'version');
  if (present()) return;
  mkdirSync(build, { recursive: true });
  if (!has('python3', '-m', 'venv', join(build, 'venv'))) skip('there is no python3 with venv');
  say('installing ziglang with pip');
  if (!has(python, '-m', 'pip', 'install', '--quiet', 'ziglang') || !present()) skip('ziglang could not be installed');
}

/** The headers of oneDNN and OpenMP alone: the rest of /usr/include is glibc's. */
function findHeaders() {
  mkdirSync(headers, { recursive: true });
  const openmp = run('gcc', ['-print-file-name=include/omp.h']).trim();
  const all = ['dnnl.h', 'dnnl.hpp', 'dnnl_config.h', 'dnnl_types.h', 'dnnl_version.h', 'oneapi'];
  for (const path of [...all.map((name) => join('/usr/include', name)), openmp]) {
    const link = join(headers, basename(path));
    if (existsSync(path) && !existsSync(link)) symlinkSync(path, link);
  }
}

/** The command that compiles a file for this machine, without its compiler, its output and the system's headers. */
function argumentsOf({ command, file }) {
  const words = command.split(' ').slice(1);
  const object = words[words.indexOf('-o') + 1];
  // Without optimisation: what compiles is the same, in a third of the time.
  return words.filter((word) => ![file, object, '-o', '-c', '-O3', '-fopenmp'].includes(word));
}

try {
  findCompiler();
  const commands = join(root, 'build', 'compile_commands.json');
  if (!existsSync(commands)) skip('there is no build/compile_commands.json: npm run setup');
  const inputs = ['native/core', 'native/cpu', 'native/binding', 'native/cmake', 'CMakeLists.txt', 'package-lock.json'];
  const done = join('build-musl', 'checked');
  await step('musl', inputs, [done], async () => {
    say('compiling the addon for musl');
    findHeaders();
    const sources = JSON.parse(readFileSync(commands, 'utf8')).filter(({ file }) =>
      /\/native\/(core|cpu|binding)\/[^/]+(\/[^/]+)?\.cc$/.test(file),
    );
    if (sources.length < 20) throw new Error(`build/compile_commands.json has only ${sources.length} of the sources`);
    const waiting = [...sources];
    const compile = async (_, worker) => {
      const object = join(build, `${worker}.o`);
      for (let source = waiting.shift(); source; source = waiting.shift())
        await execute(python, [...zig, ...argumentsOf(source), '-isystem', headers, '-c', source.file, '-o', object], {
          env,
        });
    };
    await Promise.all(Array.from({ length: availableParallelism() }, compile));
    writeFileSync(join(root, done), `${sources.length} sources\n`);
    say(`${sources.length} sources compile for musl`);
  });
} catch (error) {
  say(error.message);
  process.exit(1);
}
