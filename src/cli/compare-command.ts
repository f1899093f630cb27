import { basename } from 'node:path';
import type { PerplexityProtocol } from '../calibration/protocols.js';
import { compare } from '../compare/compare.js';
import type { CompareEvent } from '../compare/comparison.js';
import { methodNames } from '../compare/method-spec.js';
import { writeComparison } from '../report/comparison-report.js';
import type { Propagation } from '../traversal.js';
import {
  calibrationOptions,
  device,
  deviceOptions,
  list,
  nmPattern,
  number,
  numbers,
  onlyWith,
  parse,
  required,
  string,
  UsageError,
  type Values,
} from './arguments.js';
import type { Command, CommandContext } from './command.js';
import { taskList } from './eval-command.js';
import { eventOutput } from './event-output.js';
import { commandLine } from './format.js';

const help = `alps compare - compare several methods at several sparsities in one report

Usage: alps compare MODEL --out DIR --calibration FILE --text FILE [--methods LIST] [--sparsity LIST] [--pattern LIST]
                    [options]

  --methods LIST         any of ${methodNames.join(', ')};
                         append +refit (conjugate gradients) or +backsolve (exact) to refit the kept weights
                         (default mp,wanda,dsnot,sparsegpt,alps)
  --sparsity LIST        such as 0.5,0.6,0.7 (default 0.5,0.6,0.7,0.8 unless --pattern is given)
  --pattern LIST         such as 2:4,4:8
  --calibration FILE, --shares A,B, --field NAME, --windows N, --own-windows N, --length N, --seed N
                         as for alps prune; --field is also that of the --text files; the windows that the model writes
                         are the same for all cells
  --text [NAME=]FILE     text to measure perplexity on; may be given more than once; not needed with --tasks
  --protocol [NAME=]P    protocol of all texts, or of the text NAME, as for alps eval: text (default), wikitext2, ptb or
                         c4; may be given more than once
  --text-length N        tokens per evaluation window (default: as for alps eval)
  --text-windows N       at most this many windows per text (default: all)
  --tasks LIST, --limit N
                         zero-shot tasks for each cell, as for alps eval
  --propagation P        sequential (default) or block, unless the method sets it
  --precision P          of pruning and evaluation: auto (default), float32 or bfloat16
  --device D, --threads N, --memory-limit SIZE   as for alps prune, but a single device

  --out DIR              folder for report.html, report.json, report.csv and layers.csv; finished cells are kept in cells/
  --json                 one JSON line per event, except progress, on standard output (default if standard output is not
                         a terminal)

A cell is one method at one sparsity or pattern. If a run is interrupted, the same command computes only the missing
cells. If a pruned model gives values that are not finite, or a Gram matrix cannot be factorised, the cell is reported
without numbers, the next run tries it again, and the exit code is 1. The report is written if at least one cell has
numbers.

Example:
  alps compare ./SmolLM2-135M --out ./comparison --methods mp,wanda,sparsegpt,dsnot,alps --sparsity 0.5,0.7 \\
      --pattern 2:4,4:8 --calibration speeches.jsonl --windows 32 --length 1024 \\
      --text speeches=held-out.jsonl --text novel=moby-dick.txt --text-length 1024
`;

/** Options that the paper command takes as well. */
export const comparisonOptions = {
  out: { type: 'string' },
  methods: { type: 'string' },
  sparsity: { type: 'string' },
  pattern: { type: 'string' },
  ...calibrationOptions,
  text: { type: 'string', multiple: true },
  protocol: { type: 'string', multiple: true },
  'text-length': { type: 'string' },
  'text-windows': { type: 'string' },
  tasks: { type: 'string', multiple: true },
  limit: { type: 'string' },
  propagation: { type: 'string' },
  ...deviceOptions,
} as const;

export const compareCommand: Command = {
  summary: 'Compare methods: errors, perplexities and time in one report',
  whenInterrupted: 'no report was written',
  async run(args, context) {
    const { values, positional } = parse(args, comparisonOptions, ['MODEL']);
    const { stdout } = context;
    if (values.help) {
      stdout.write(help);
      return 0;
    }
    const options = comparisonOf(positional[0]!, values);
    const { out } = options;
    const command = commandLine('compare', args);
    const { onEvent, onError, json, progress } = reporter(values, context);
    try {
      const comparison = await compare({ ...options, signal: context.signal, onEvent });
      await writeComparison(comparison, out, command);
      progress.clear();
      if (json) stdout.write(`${JSON.stringify({ type: 'done', out })}\n`);
      else stdout.write(`\nWritten to ${out}: report.html, report.json, report.csv, layers.csv\n`);
      return comparison.failures.length > 0 ? 1 : 0;
    } catch (error) {
      onError();
      throw error;
    } finally {
      progress.clear();
    }
  },
};

/** The options of a comparison, as the library takes them. */
export function comparisonOf(model: string, values: Values) {
  const out = required(values, 'out', 'DIR, a folder for the report');
  const files = list(values, 'calibration');
  if (files.length === 0) throw new UsageError('Expected --calibration FILE');
  const patterns = string(values, 'pattern')
    ?.split(',')
    .map((text) => nmPattern(text, '--pattern'));
  const sparsities = numbers(values, 'sparsity') ?? (patterns ? [] : [0.5, 0.6, 0.7, 0.8]);
  const texts = list(values, 'text').map((text) => {
    const [, name, file] = /^(?:([^=/\\]+)=)?(.+)$/s.exec(text) ?? [];
    if (file === undefined) throw new UsageError(`Expected [NAME=]FILE for --text but received "${text}"`);
    return { name: name ?? basename(file).replace(/\.(gz|txt|jsonl|parquet|json)/g, ''), file };
  });
  if (texts.length === 0 && taskList(values).length === 0)
    throw new UsageError('Expected --text [NAME=]FILE or --tasks NAME=FILE');
  if (texts.length === 0) onlyWith(values, ['protocol', 'text-length', 'text-windows'], '--text');
  if (taskList(values).length === 0) onlyWith(values, ['limit'], '--tasks');
  const protocols = list(values, 'protocol').map((text) => {
    const at = text.indexOf('=');
    const name = at < 0 ? undefined : text.slice(0, at);
    if (name !== undefined && !texts.some((one) => one.name === name))
      throw new UsageError(`Expected the name of a --text before the = of --protocol but received "${text}"`);
    return { name, protocol: text.slice(at + 1) as PerplexityProtocol };
  });
  const protocolOf = (name: string) =>
    (protocols.findLast((one) => one.name === name) ?? protocols.findLast((one) => one.name === undefined))?.protocol;
  return {
    model,
    out,
    methods: (string(values, 'methods') ?? 'mp,wanda,dsnot,sparsegpt,alps').split(','),
    sparsities,
    ...(patterns ? { patterns } : {}),
    calibration: {
      text: files.length === 1 ? files[0]! : files,
      shares: numbers(values, 'shares'),
      field: string(values, 'field'),
      windows: number(values, 'windows'),
      ownWindows: number(values, 'own-windows'),
      length: number(values, 'length'),
      seed: number(values, 'seed'),
    },
    texts: texts.map(({ name, file }) => ({
      name,
      text: file,
      field: string(values, 'field'),
      protocol: protocolOf(name),
    })),
    names: {
      calibration: files,
      texts: Object.fromEntries(texts.map(({ name, file }) => [name, file])),
    },
    tasks: taskList(values),
    taskLimit: number(values, 'limit'),
    length: number(values, 'text-length'),
    windows: number(values, 'text-windows'),
    propagation: string(values, 'propagation') as Propagation | undefined,
    ...device(values),
  };
}

/**
 * Shows events: JSON lines, or a progress line with a row for each finished cell.
 * @param further parts of the work after the cells
 */
export function reporter(values: Values, context: CommandContext, further = 0) {
  const { stdout, stderr } = context;
  const { json, progress, writeEvent } = eventOutput(values, context);
  let [done, parts] = [0, 1];
  const onEvent = (event: CompareEvent) => {
    if (event.type === 'start') parts = 1 + event.cells + further; // the dense model is one
    if (event.type === 'generate') {
      writeEvent(event);
      progress.writing(event.share);
      return;
    }
    if (event.type === 'progress') {
      progress.update((done + event.share) / parts, event.doing);
      return;
    }
    progress.clear();
    if (event.type === 'dense') done = 1;
    if (event.type === 'cell' || event.type === 'failure') done = 1 + event.done;
    if (json) writeEvent(event);
    else if (event.type === 'dense') stdout.write(`${row('dense', '', event.perplexity)}\n`);
    else if (event.type === 'failure')
      stdout.write(`${`${event.method.padEnd(22)} ${event.pattern.padStart(5)}`}  no numbers: ${event.message}\n`);
    else if (event.type === 'cell') {
      const error = `error ${event.meanError.toPrecision(3)}`;
      stdout.write(
        `${row(event.method, event.pattern, event.perplexity)}  ${error}${event.stored ? '  (from an earlier run)' : ''}\n`,
      );
    }
  };
  /** Tells that finished cells are kept. */
  const onError = () => {
    progress.clear();
    if (done > 0)
      stderr.write('alps: finished parts are kept in cells/; the same command computes only what is missing\n');
  };
  return { onEvent, onError, json, progress };
}

function row(method: string, pattern: string, perplexity: Record<string, number>): string {
  const values = Object.entries(perplexity).map(([name, value]) => `${name} ${value.toFixed(2)}`);
  return `${method.padEnd(22)} ${pattern.padStart(5)}  ${values.join('  ')}`;
}
