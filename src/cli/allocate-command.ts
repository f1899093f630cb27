import { resolve, sep } from 'node:path';
import { readAllocation } from '../allocation/allocation-file.js';
import { searchAllocation } from '../allocation/search.js';
import type { AllocationSearch, AllocationSearchEvent, SearchObjective } from '../allocation/search-options.js';
import { replaceFile } from '../checkpoint/output-folder.js';
import { describePattern } from '../pruning/pattern.js';
import { quoted } from '../quoted.js';
import { list, number, parse, required, string, UsageError } from './arguments.js';
import type { Command } from './command.js';
import { eventOutput } from './event-output.js';
import { table } from './format.js';
import { checkReplaceable } from './output-file.js';
import type { Progress } from './progress.js';
import { pruningOptions, pruningOptionsOf } from './pruning-options.js';

const help = `alps allocate - find how sparse each layer is to be, under one total

Usage: alps allocate MODEL --out FILE --work DIR (--sparsity S | --pattern N:M) --calibration FILE [options]

  --out FILE             .json to write, for alps prune --allocation; an allocation of this name is replaced
  --work DIR             folder for the models of the search (two at a time) and for what it has measured, search.json

What is measured:
  --objective O          what chooses: crossEntropy (default), of the text, or kl, of the predictions against those of the dense model
  --evaluation FILE      text for sensitivities and choice; may be given more than once (default: the calibration's
                         files, windows by another seed)
  --evaluation-windows N windows for the sensitivities, and as many others for the choice (default 2)
  --time-limit MINUTES   begin nothing new after this time; the best that is there by then is written, and the same command goes on

  --restart              drop what an earlier search left in DIR
  --json                 one JSON line an event on standard output (the default when it is not a terminal)

How the model is pruned, as for alps prune: --calibration, --shares, --field, --windows, --own-windows, --length, --seed, --preset, --method,
--refit, --comparison-group, --dsnot-initial, --dsnot-skip, --dsnot-cycles, --dsnot-threshold, --schedule, --rho, --max-iterations, --metric, --relaxation,
--mixed-precision, --propagation, --dense-target, --row-weights, --final-norm, --ridge, --refine-iterations, --errors, --precision, --device, --threads, --memory-limit

The model is pruned uniformly and, for what each layer tolerates, a little sparser; then up to two candidates are pruned and compared
with the first. A search that was stopped goes on when the same command is given again.

Example:
  alps allocate ./SmolLM2-135M --out allocation.json --work ./search --sparsity 0.7 --calibration speeches.jsonl
  alps prune ./SmolLM2-135M --out ./pruned --sparsity 0.7 --calibration speeches.jsonl --allocation allocation.json
`;

const options = {
  out: { type: 'string' },
  work: { type: 'string' },
  objective: { type: 'string' },
  evaluation: { type: 'string', multiple: true },
  'evaluation-windows': { type: 'string' },
  'time-limit': { type: 'string' },
  restart: { type: 'boolean' },
  ...pruningOptions,
} as const;

export const allocateCommand: Command = {
  summary: 'Find how sparse each layer is to be',
  async run(args, context) {
    const { signal, stdout, stderr } = context;
    const { values, positional } = parse(args, options, ['MODEL']);
    if (values.help) {
      stdout.write(help);
      return 0;
    }
    const out = required(values, 'out', 'FILE, the allocation to write');
    const work = required(values, 'work', 'DIR, a folder for the search');
    if (resolve(out).startsWith(resolve(work) + sep))
      throw new UsageError('Expected --out outside of --work, which the search rewrites');
    const minutes = number(values, 'time-limit');
    const files = list(values, 'evaluation');
    const { json, progress, writeEvent } = eventOutput(values, context);
    const show = progressOf(progress);
    let begun = false;
    const onEvent = (event: AllocationSearchEvent) => {
      begun ||= event.type === 'prune';
      writeEvent(event);
      show(event);
    };
    const pruning = pruningOptionsOf(values);
    await checkReplaceable(out, readAllocation);
    try {
      const search = await searchAllocation({
        model: positional[0]!,
        work,
        ...pruning,
        evaluation: {
          windows: number(values, 'evaluation-windows'),
          ...(files.length > 0 ? { text: files, field: string(values, 'field') } : {}),
        },
        objective: string(values, 'objective') as SearchObjective | undefined,
        ...(minutes === undefined ? {} : { timeLimit: minutes * 60_000 }),
        restart: values.restart === true,
        signal,
        onEvent,
      });
      await replaceFile(resolve(out), `${JSON.stringify(search, null, 2)}\n`);
      progress.clear();
      if (json) writeEvent({ type: 'written', out });
      else stdout.write(summary(search, out));
      return 0;
    } catch (error) {
      progress.clear();
      if (begun) stderr.write('alps: the same command goes on where the search was; --restart begins anew\n');
      throw error;
    } finally {
      progress.clear();
    }
  },
};

/** The five parts of a search: base, next level, sensitivities, two candidates. */
function progressOf(progress: Progress): (event: AllocationSearchEvent) => void {
  let candidates = 0;
  const update = (part: number, share: number, doing: string) => progress.update((part + share) / 5, doing);
  return (event) => {
    if (event.type === 'generate') progress.writing(event.share);
    if (event.type === 'candidate') candidates++;
    if (event.type === 'block') update(2, (event.block + 1) / event.blocks, `sensitivities, block ${event.block}`);
    if (event.type !== 'prune' || event.event.type !== 'block') return;
    const { block, blocks } = event.event;
    const part = { base: 0, next: 1, candidate: 2 + candidates }[event.what];
    const doing = event.gain === undefined ? event.what : `${event.what} ${event.gain}`;
    update(part, (block + 1) / blocks, `pruning the ${doing}, block ${block}`);
  };
}

function summary(search: AllocationSearch, out: string): string {
  const { candidates, gain, ended, objective, pattern } = search;
  const rows = candidates.map((one) => [
    one.gain === 0 ? 'all layers alike' : `gain ${one.gain}`,
    one.loss.toFixed(4),
    one.gain === gain ? 'taken' : '',
  ]);
  const found = gain === 0 ? 'Nothing better than all layers alike was found.' : '';
  const time = ended === 'time' ? 'The time was up: the same command goes on.' : '';
  return `${table(['candidate', objective, ''], rows)}

${[`${describePattern(pattern)} of all layers together.`, found, time].filter(Boolean).join(' ')}
Written to ${out}: alps prune takes it with --allocation ${quoted(out)}, beside the other options of this command.
`;
}
