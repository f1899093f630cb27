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

const help = `alps allocate - search for a sparsity for each layer under one total

Usage: alps allocate MODEL --out FILE --work DIR (--sparsity S | --pattern N:M) --calibration FILE [options]

  --out FILE             .json to write, for alps prune --allocation; an existing allocation is replaced
  --work DIR             folder for the models of the search (at most two at a time) and its measurements, search.json

Search:
  --objective O          chooses between candidates: crossEntropy of the text (default), or kl, the divergence of the
                         predictions from the dense model's
  --evaluation FILE      text to measure sensitivities and candidates on; may be given more than once (default: the
                         calibration files, windows by another seed; of token ids, those behind the first --windows)
  --evaluation-windows N windows to measure the sensitivities on, and as many others for the candidates (default 2, or
                         more so that each text of --shares gives one); more windows make the choice more reliable:
                         compare the standard errors beside the losses
  --time-limit MINUTES   start no further step after this time and write the best allocation so far; the same command
                         resumes the search

  --restart              discard what an earlier search left in DIR and start over
  --json                 one JSON line per event on standard output (default if standard output is not a terminal)

Options of alps prune: --calibration, --shares, --field (also of the evaluation files), --windows, --own-windows,
--length, --seed, --preset, --method, --refit, --comparison-group, --dsnot-initial, --dsnot-skip, --dsnot-cycles,
--dsnot-threshold, --schedule, --rho, --max-iterations, --metric, --relaxation, --mixed-precision, --propagation,
--dense-target, --row-weights, --final-norm, --ridge, --refine-iterations, --errors, --precision, --device, --threads,
--memory-limit

The search prunes the model uniformly and, to measure the sensitivity of each layer, a little sparser. It then prunes up
to two candidates and compares them with the uniform model. If a search is interrupted, the same command resumes it.

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
  summary: 'Search for a sparsity for each layer',
  whenInterrupted: 'no allocation was written',
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
      throw new UsageError('Expected a file outside the --work folder, which the search rewrites, for --out');
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
      if (begun) stderr.write('alps: the same command resumes the search; --restart starts over\n');
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
  const { candidates, gain, ended, objective, pattern, evaluation } = search;
  const rows = candidates.map((one) => [
    one.gain === 0 ? 'uniform' : `gain ${one.gain}`,
    one.loss.toFixed(4),
    one.standardError === undefined ? '' : `± ${one.standardError.toFixed(4)}`,
    one.gain === gain ? 'chosen' : '',
  ]);
  const found = gain === 0 ? 'No candidate was better than the uniform model.' : '';
  const time = ended === 'time' ? 'The time limit was reached; the same command resumes the search.' : '';
  return `${table(['candidate', objective, '', ''], rows)}

${evaluation.note ? `Note: ${evaluation.note}\n` : ''}${[`${describePattern(pattern)} over all layers together.`, found, time].filter(Boolean).join(' ')}
Written to ${out}. To use it, give alps prune the same options and --allocation ${quoted(out)}.
`;
}
