#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import { AlpsError } from '../errors.js';
import { allocateCommand } from './allocate-command.js';
import { UsageError } from './arguments.js';
import type { Command } from './command.js';
import { compareCommand } from './compare-command.js';
import { devicesCommand } from './devices-command.js';
import { evalCommand } from './eval-command.js';
import { generateCommand } from './generate-command.js';
import { inspectCommand } from './inspect-command.js';
import { paperCommand } from './paper-command.js';
import { pruneCommand } from './prune-command.js';

const commands: Record<string, Command> = {
  prune: pruneCommand,
  allocate: allocateCommand,
  generate: generateCommand,
  eval: evalCommand,
  compare: compareCommand,
  paper: paperCommand,
  inspect: inspectCommand,
  devices: devicesCommand,
};

const help = `alps - one-shot pruning of large language models

Usage: alps COMMAND [options]
       alps --help | --version

Commands:
${Object.entries(commands)
  .map(([name, command]) => `  ${name.padEnd(9)} ${command.summary}`)
  .join('\n')}

Examples:
  alps prune ./SmolLM2-135M --out ./SmolLM2-135M-70 --sparsity 0.7 --calibration speeches.jsonl
  alps prune ./SmolLM2-135M --out ./SmolLM2-135M-24 --pattern 2:4 --calibration speeches.jsonl
  alps eval ./SmolLM2-135M-70 --text held-out.jsonl
  alps inspect ./SmolLM2-135M-24 --pattern 2:4

"alps COMMAND --help" explains a command, "alps --version" prints the version.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted by SIGINT (Ctrl-C), 143 by SIGTERM, 141 if the reader of
standard output closes it.
`;

function version(): string {
  return (JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string })
    .version;
}

/** Runs a command line and returns its exit code. */
async function main(args: string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    process.stdout.write(help);
    return name === undefined ? 2 : 0;
  }
  if (name === '--version' || name === '-v') {
    process.stdout.write(`${version()}\n`);
    return 0;
  }
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (command === undefined) {
    process.stderr.write(
      `alps: Expected a command (${Object.keys(commands).join(', ')}) but received "${name}". See: alps --help\n`,
    );
    return 2;
  }
  // The first signal cancels and cleans up; a second one does not wait.
  const controller = new AbortController();
  let signalled: NodeJS.Signals | undefined;
  const onSignal = (signal: NodeJS.Signals) => {
    if (signalled) process.exit(signalCode(signal));
    signalled = signal;
    controller.abort(new Error(`received ${signal}`));
  };
  process.on('SIGINT', onSignal);
  process.on('SIGTERM', onSignal);
  try {
    return await command.run(rest, { signal: controller.signal, stdout: process.stdout, stderr: process.stderr });
  } catch (error) {
    if (error instanceof UsageError) {
      process.stderr.write(`alps ${name}: ${error.message}. See: alps ${name} --help\n`);
      return 2;
    }
    if (signalled) {
      process.stderr.write(`alps: ${['interrupted', command.whenInterrupted].filter(Boolean).join('; ')}\n`);
      return signalCode(signalled);
    }
    const text =
      error instanceof AlpsError ? `${error.message} (${error.code})` : ((error as Error)?.stack ?? String(error));
    process.stderr.write(`alps: ${text}\n`);
    return error instanceof AlpsError && error.code === 'INVALID_ARGUMENT' ? 2 : 1;
  } finally {
    process.off('SIGINT', onSignal);
    process.off('SIGTERM', onSignal);
  }
}

function signalCode(signal: NodeJS.Signals): number {
  return signal === 'SIGTERM' ? 143 : 130;
}

// A reader that goes away (| head) ends the command as SIGPIPE would: exit code 0 would look like success.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(141);
  process.stderr.write(`alps: Could not write to standard output: ${error.message}\n`);
  process.exit(1);
});
// If an error message cannot be written, the exit code still tells.
process.stderr.on('error', () => undefined);
process.exitCode = await main(process.argv.slice(2));
