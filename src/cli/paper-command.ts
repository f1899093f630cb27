import { reproducePaper } from '../compare/paper.js';
import { writePaperReport } from '../report/paper-report.js';
import { number, numbers, parse, string } from './arguments.js';
import type { Command } from './command.js';
import { comparisonOf, comparisonOptions, reporter } from './compare-command.js';
import { commandLine } from './format.js';

const help = `alps paper - reproduce the figures and tables of the ALPS paper on any model

Usage: alps paper MODEL --out DIR --calibration FILE --text FILE [options]

One report with what the paper shows:
  (a) layer errors against sparsity, all methods
  (b) share of the support that changes in each iteration, and error: published schedule, ladder, fixed rho of 0.3 and 3
  (c) conjugate gradients against an exact solve on the support of magnitude pruning: time, error, speed-up
  (d) perplexities
  (e) zero-shot tasks, with --tasks

  --methods LIST         default mp,wanda,dsnot,sparsegpt,alps,alps-published
  --sparsity LIST        default 0.4,0.5,0.6,0.7,0.8,0.9
  --support-layer NAME   layer of (b) (default: the first block's k projection)
  --support-sparsity S   sparsity of (b), which must keep some weights of the layer and prune some (default 0.7)
  --refit-layer NAME     layer of (c) (default: the widest of the first block)
  and all options of alps compare (see alps compare --help)

  --out DIR              folder for report.html, report.json, report.csv, layers.csv, support.csv and refit.csv; finished
                         parts are kept in cells/
  --json                 one JSON line per event, except progress, on standard output (default if standard output is not
                         a terminal)

If a run is interrupted, the same command computes only what is missing. Methods that fail are treated as by alps compare.

Example:
  alps paper ./SmolLM2-135M --out ./paper --calibration speeches.jsonl --windows 32 --length 1024 \\
      --text held-out.jsonl --text-length 1024
`;

const options = {
  ...comparisonOptions,
  'support-layer': { type: 'string' },
  'support-sparsity': { type: 'string' },
  'refit-layer': { type: 'string' },
} as const;

export const paperCommand: Command = {
  summary: 'Reproduce the figures and tables of the ALPS paper',
  whenInterrupted: 'no report was written',
  async run(args, context) {
    const { values, positional } = parse(args, options, ['MODEL']);
    const { stdout, signal } = context;
    if (values.help) {
      stdout.write(help);
      return 0;
    }
    const command = commandLine('paper', args);
    const asked = comparisonOf(positional[0]!, values);
    const { onEvent, onError, json, progress } = reporter(values, context, 1);
    try {
      const report = await reproducePaper({
        ...asked,
        methods: string(values, 'methods')?.split(',') ?? [
          'mp',
          'wanda',
          'dsnot',
          'sparsegpt',
          'alps',
          'alps-published',
        ],
        sparsities: numbers(values, 'sparsity') ?? [0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        supportLayer: string(values, 'support-layer'),
        supportSparsity: number(values, 'support-sparsity'),
        refitLayer: string(values, 'refit-layer'),
        signal,
        onEvent,
      });
      await writePaperReport(report, asked.out, command);
      progress.clear();
      if (json) stdout.write(`${JSON.stringify({ type: 'done', out: asked.out })}\n`);
      else stdout.write(`\nWritten to ${asked.out}: report.html, report.json and .csv files\n`);
      return report.comparison.failures.length > 0 ? 1 : 0;
    } catch (error) {
      onError();
      throw error;
    } finally {
      progress.clear();
    }
  },
};
