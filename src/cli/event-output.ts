import type { Values } from './arguments.js';
import type { CommandContext } from './command.js';
import { Progress } from './progress.js';

/** How a long command reports: JSON lines on standard output with `--json` or without a terminal, else text; progress goes to standard error. */
export function eventOutput(values: Values, { stdout, stderr }: CommandContext) {
  const json = values.json === true || !stdout.isTTY;
  const progress = new Progress(stderr, { enabled: !json || stderr.isTTY });
  /** Writes nothing in text mode. */
  const writeEvent = (event: object) => {
    if (!json) return;
    progress.clear();
    stdout.write(`${JSON.stringify(event)}\n`);
  };
  return { json, progress, writeEvent };
}
