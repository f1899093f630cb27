import { evaluatePerplexity } from '../evaluate.js';
import { device, deviceOptions, list, number, parse, string, UsageError } from './arguments.js';
import type { Command } from './command.js';
import { count, duration, table } from './format.js';
import { Progress } from './progress.js';

const help = `alps eval - perplexity of a model on a text

Usage: alps eval MODEL --text FILE [options]

  --text FILE            .txt, .jsonl, .json (token ids), .parquet, also .gz; may be given more than once
  --field NAME           the text field of .jsonl and .parquet (default text)
  --length N             tokens of a window (default 2048, at most what the model and the text give)
  --windows N            at most this many windows (default: all)
  --precision P          float32 (default), bfloat16 or auto
  --device D, --threads N, --memory-limit SIZE   as for alps prune
  --json                 one JSON line instead of the table

The documents are joined by a blank line, tokenised once and cut into windows that do not overlap; all tokens of a window but the
first are scored.

Examples:
  alps eval ./SmolLM2-135M --text held-out.jsonl --length 1024
  alps eval ./pruned --text held-out.txt.gz --windows 40 --json
`;

const options = {
  text: { type: 'string', multiple: true },
  field: { type: 'string' },
  length: { type: 'string' },
  windows: { type: 'string' },
  ...deviceOptions,
} as const;

export const evalCommand: Command = {
  summary: 'Perplexity of a model on a text',
  async run(args, { signal, stdout, stderr }) {
    const { values, positional } = parse(args, options, ['MODEL']);
    if (values.help) {
      stdout.write(help);
      return 0;
    }
    const text = list(values, 'text');
    if (text.length === 0) throw new UsageError('Expected --text FILE');
    const progress = new Progress(stderr);
    try {
      const result = await evaluatePerplexity({
        model: positional[0]!,
        text,
        field: string(values, 'field'),
        length: number(values, 'length'),
        windows: number(values, 'windows'),
        ...device(values),
        signal,
        onProgress: (share) => progress.update(share, 'evaluating'),
      });
      progress.clear();
      if (values.json) {
        stdout.write(`${JSON.stringify({ model: positional[0], text, ...result })}\n`);
        return 0;
      }
      const rows = [
        ['perplexity', result.perplexity.toFixed(3)],
        ['windows', count(result.windows)],
        ['window length', `${count(result.length)} tokens`],
        ['scored tokens', count(result.scoredTokens)],
        ['precision', result.precision],
        ['time', duration(result.milliseconds)],
      ];
      stdout.write(`${table(['measure', 'value'], rows)}\n\n${text.join(', ')}: ${result.protocol}\n`);
      return 0;
    } finally {
      progress.clear();
    }
  },
};
