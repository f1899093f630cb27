#!/usr/bin/env node
// Called by prebuildify in place of node-gyp: builds with cmake-js, whose output has the same place (build/Release).
import { spawnSync } from 'node:child_process';

const args = ['--no-install', 'cmake-js', 'compile', '--CDCMAKE_BUILD_TYPE=Release', '--CDALPS_CUDA=off'];
process.exit(spawnSync('npx', args, { stdio: 'inherit' }).status ?? 1);
