// biome over JavaScript, TypeScript and JSON, clang-format over the native code. `--fix` writes; otherwise differences fail.
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './setup.mjs';

const fix = process.argv.includes('--fix');

function nativeFiles(folder) {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    return entry.isDirectory() ? nativeFiles(path) : /\.(h|cc|inl|cu)$/.test(entry.name) ? [path] : [];
  });
}

const biome = ['--no-install', 'biome', 'check', '--error-on-warnings', ...(fix ? ['--write'] : []), '.'];
const clang = ['--no-install', 'clang-format', ...(fix ? ['-i'] : ['--dry-run', '--Werror']), ...nativeFiles('native')];
const failed = [biome, clang].filter((args) => spawnSync('npx', args, { cwd: root, stdio: 'inherit' }).status !== 0);
process.exit(failed.length === 0 ? 0 : 1);
