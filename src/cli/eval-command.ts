import type { PerplexityProtocol } from '../calibration/protocols.js';
import { evaluatePerplexity } from '../evaluate.js';
import { evaluateTasks, readTasks, type TaskResult } from '../evaluate-tasks.js';
import { taskNames } from '../evaluation/tasks/definitions.js';
import { device, deviceOptions, list, number, onlyWith, parse, string, UsageError, type Values } from './arguments.js';
import type { Command, CommandContext } from './command.js';
import { count, duration, table } from './format.js';
import { Progress } from './progress.js';

const help = `alps eval - measure a model's perplexity on a text, and zero-shot tasks

Usage: alps eval MODEL --text FILE [options]
       alps eval MODEL --tasks NAME=FILE[,NAME=FILE] [options]

Perplexity:
  --text FILE            .txt or .jsonl (each also .gz) or .parquet; may be given more than once. Or a single .json with
                         token ids: a list of windows, or {"evaluation": list of windows}
  --field NAME           text field of .jsonl and .parquet files (default text; sentence with --protocol ptb)
  --protocol P           text (default), or the published protocol of a data set: wikitext2, ptb or c4
  --length N             tokens per window (default 2048, at most the model's maximum and the length of the text)
  --windows N            at most this many windows (default: all)

Tasks, from the data sets' own files (.jsonl, also .gz, or .parquet), scored as lm-evaluation-harness 0.4.13 does:
  --tasks LIST           ${taskNames.slice(0, 5).join(', ')},
                         ${taskNames.slice(5).join(', ')}
  --limit N              at most this many records of each task, from the start (default: all)
  --samples              with --json: also each item's likelihoods and choices

  --precision P          float32 (default), bfloat16 or auto
  --device D, --threads N, --memory-limit SIZE   as for alps prune, but a single device
  --json                 one JSON line (with --tasks one per task) instead of the table

With the protocol text, the documents are joined by a blank line, tokenised once and cut into windows that do not overlap.
In each window, all tokens except the first are scored.

Examples:
  alps eval ./SmolLM2-135M --text held-out.jsonl --length 1024
  alps eval ./pruned --text wiki.test.raw --protocol wikitext2
  alps eval ./pruned --tasks arc_easy=arc-easy-test.parquet,piqa=piqa-validation.parquet --limit 500
`;

const options = {
  text: { type: 'string', multiple: true },
  field: { type: 'string' },
  protocol: { type: 'string' },
  length: { type: 'string' },
  windows: { type: 'string' },
  tasks: { type: 'string', multiple: true },
  limit: { type: 'string' },
  samples: { type: 'boolean' },
  ...deviceOptions,
} as const;

export const evalCommand: Command = {
  summary: 'Measure perplexity and zero-shot tasks',
  async run(args, context) {
    const { values, positional } = parse(args, options, ['MODEL']);
    if (values.help) {
      context.stdout.write(help);
      return 0;
    }
    const text = list(values, 'text');
    const tasks = taskList(values);
    if (text.length === 0 && tasks.length === 0) throw new UsageError('Expected --text FILE or --tasks NAME=FILE');
    if (text.length === 0) onlyWith(values, ['field', 'protocol', 'length', 'windows'], '--text');
    if (tasks.length === 0) onlyWith(values, ['limit', 'samples'], '--tasks');
    if (!values.json) onlyWith(values, ['samples'], '--json');
    const progress = new Progress(context.stderr);
    try {
      // Errors in a task's file are reported before the perplexity is measured.
      if (text.length > 0 && tasks.length > 0)
        await readTasks({ tasks, limit: number(values, 'limit'), signal: context.signal });
      if (text.length > 0) await perplexityOf(positional[0]!, text, values, context, progress);
      if (tasks.length > 0) await tasksOf(positional[0]!, tasks, values, context, progress);
      return 0;
    } finally {
      progress.clear();
    }
  },
};

/** The tasks of an option's values: NAME=FILE, several with commas between them. */
export function taskList(values: Values): { task: string; file: string }[] {
  return list(values, 'tasks')
    .flatMap((text) => text.split(','))
    .map((text) => {
      const at = text.indexOf('=');
      if (at < 1 || at === text.length - 1)
        throw new UsageError(
          `Expected NAME=FILE for --tasks but received "${text}"; the names are ${taskNames.join(', ')}`,
        );
      return { task: text.slice(0, at), file: text.slice(at + 1) };
    });
}

async function perplexityOf(
  model: string,
  text: string[],
  values: Values,
  { signal, stdout }: CommandContext,
  progress: Progress,
): Promise<void> {
  const result = await evaluatePerplexity({
    model,
    text,
    field: string(values, 'field'),
    protocol: string(values, 'protocol') as PerplexityProtocol | undefined,
    length: number(values, 'length'),
    windows: number(values, 'windows'),
    ...device(values),
    signal,
    onProgress: (share) => progress.update(share, 'evaluating'),
  });
  progress.clear();
  if (values.json) {
    stdout.write(`${JSON.stringify({ model, text, ...result })}\n`);
    return;
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
}

async function tasksOf(
  model: string,
  tasks: { task: string; file: string }[],
  values: Values,
  { signal, stdout }: CommandContext,
  progress: Progress,
): Promise<void> {
  const results = await evaluateTasks({
    model,
    tasks,
    limit: number(values, 'limit'),
    samples: values.samples === true,
    ...device(values),
    signal,
    onProgress: (share, task) => progress.update(share, task),
  });
  progress.clear();
  if (values.json) {
    for (const result of results) stdout.write(`${JSON.stringify({ model, ...result })}\n`);
    return;
  }
  stdout.write(
    `${table(['task', 'items', 'acc', '±', 'acc_norm', '±', 'perplexity', 'time'], results.map(taskRow))}\n\n`,
  );
  for (const { protocol, file } of results) stdout.write(`${file}: ${protocol}\n`);
}

function taskRow(result: TaskResult): string[] {
  const share = (value: number | undefined) => (value === undefined ? '-' : value.toFixed(4));
  const { task, items, acc, accStandardError, accNorm, accNormStandardError, perplexity, milliseconds } = result;
  return [
    task,
    count(items),
    share(acc),
    share(accStandardError),
    share(accNorm),
    share(accNormStandardError),
    perplexity === undefined ? '-' : perplexity.toFixed(2),
    duration(milliseconds),
  ];
}
