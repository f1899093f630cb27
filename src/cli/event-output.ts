import type { Values } from './arguments.js';
import type { CommandContext } from './command.js';
import { Progress } from './progress.js';

/** How a long command tells what happens: by JSON lines on standard output (`--json`, or no terminal there), else by text; progress is drawn beside. */
export function eventOutput(values: Values, { stdout, stderr }: CommandContext) {
  const json = values.json === true || !stdout.isTTY;
  const progress = new Progress(stderr, { enabled: !json || stderr.isTTY });
  /** Nothing where text is told. */
  const writeEvent = (event: object) => {
    if (!json) return;
    progress.clear();
    stdout.write(`${JSON.stringify(event)}\n`);
  };
  return { json, progress, writeEvent };
}
