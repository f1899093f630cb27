// Packs the built addon for this platform into prebuilds/, where node-gyp-build finds it. prebuildify drives a "node-gyp" to build; here that
// is scripts/cmake-js-as-node-gyp.mjs.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { root } from './setup.mjs';

const builder = join(root, 'scripts', 'cmake-js-as-node-gyp.mjs');
const args = ['--no-install', 'prebuildify', '--napi', '--strip', '--tag-libc', '--node-gyp', builder];
process.exit(spawnSync('npx', args, { cwd: root, stdio: 'inherit' }).status ?? 1);
