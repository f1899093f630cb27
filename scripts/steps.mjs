// What the scripts that prepare a machine share: steps that run once for their inputs, and the commands they call.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const stamps = join(root, '.setup');

export function say(text) {
  process.stderr.write(`setup: ${text}\n`);
}

/** Whether a command runs. */
export function has(command, ...args) {
  return spawnSync(command, args, { stdio: 'ignore' }).status === 0;
}

/** Whether packages may be installed: for what can be done without, which does not ask for more rights than it has. */
export function mayInstall() {
  return process.getuid?.() === 0 && has('apt-get', '--version');
}

/** Installs packages with apt-get where it can; the caller looks whether they are there. */
export function install(...packages) {
  const options = { cwd: root, stdio: 'ignore', env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' } };
  spawnSync('apt-get', ['update', '-qq'], options);
  spawnSync('apt-get', ['install', '-y', '-qq', '--no-install-recommends', ...packages], options);
}

/** Runs a step; its output is shown only when it fails. */
export function run(command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28, ...options });
  if (result.status !== 0) {
    process.stderr.write(`${result.stdout ?? ''}${result.stderr ?? ''}`);
    throw new Error(
      `${command} ${args.join(' ')} failed${result.error ? `: ${result.error.message}` : ` with exit code ${result.status}`}`,
    );
  }
  return result.stdout;
}

/** A digest of files' contents; a step whose inputs have the digest of the last success is skipped. */
function digest(paths, variant) {
  const hash = createHash('sha256');
  const visit = (path) => {
    const full = join(root, path);
    if (!existsSync(full)) return;
    if (statSync(full).isDirectory()) for (const name of readdirSync(full).sort()) visit(join(path, name));
    else hash.update(path).update(readFileSync(full));
  };
  for (const path of paths) visit(path);
  return hash.update(process.version).update(variant).digest('hex');
}

/** Does `action` unless it was done for these inputs (files, folders) and this variant, and its outputs are there. */
export function step(name, inputs, outputs, action, variant = '') {
  const stamp = join(stamps, name);
  const key = digest(inputs, variant);
  if (outputs.every((path) => existsSync(join(root, path))) && existsSync(stamp) && readFileSync(stamp, 'utf8') === key)
    return;
  const done = () => {
    mkdirSync(stamps, { recursive: true });
    writeFileSync(stamp, key);
  };
  const running = action();
  return running instanceof Promise ? running.then(done) : done();
}
