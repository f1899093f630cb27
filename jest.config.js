import { availableParallelism } from 'node:os';

// Memory of the processor that is promised to hold nothing in particular holds NaN, in the workers and in what they start; that of the kernels'
// imitation of a GPU always does.
process.env.ALPS_POISON ??= '1';

/** TypeScript is stripped by swc; modules stay ES modules, so jest runs with --experimental-vm-modules (see package.json). */
export default {
  testEnvironment: 'node',
  roots: ['<rootDir>/test'],
  testMatch: ['**/*.test.ts'],
  extensionsToTreatAsEsm: ['.ts'],
  moduleNameMapper: { '^(\\.{1,2}/.*)\\.js$': '$1' },
  transform: {
    '^.+\\.ts$': [
      '@swc/jest',
      { jsc: { parser: { syntax: 'typescript' }, target: 'es2022' }, module: { type: 'es6' } },
    ],
  },
  testTimeout: 240000,
  // Most of a test is JavaScript on one thread: two at a time on two cores take 0.6 of the time that one by one takes.
  maxWorkers: Math.min(4, availableParallelism()),
};
