import { resolve } from 'node:path';
import { readTokenJson, windowsIn } from '../calibration/calibration.js';
import { windowsOfIds } from '../calibration/windows.js';
import { replaceFile } from '../checkpoint/output-folder.js';
import { AlpsError } from '../errors.js';
import { generateText } from '../generate.js';
import { quoted } from '../quoted.js';
import { device, deviceOptions, list, number, onlyWith, parse, required, string, UsageError } from './arguments.js';
import type { Command } from './command.js';
import { duration } from './format.js';
import { checkReplaceable } from './output-file.js';
import { Progress } from './progress.js';

const help = `alps generate - let a model write text to calibrate its pruning with

Usage: alps generate MODEL --out FILE.json [options]

  --out FILE             .json to write: {"calibration": [[ids of a window], ...]}; a file that alps generate wrote is
                         replaced
  --windows N            number of windows (default 16)
  --length N             tokens per window (default 2048, at most the model's maximum)
  --prompts FILE         text whose passages begin the windows, so that the model writes more of its kind; may be given
                         more than once (default: each window begins with a random token)
  --field NAME           text field of .jsonl and .parquet files (default text)
  --prompt-length N      tokens per passage (default: an eighth of a window)
  --seed N               the same seed gives the same tokens on the same kind of device (default 0)
  --temperature T        divides the logits before a token is drawn (default 1: the model's own distribution;
                         0: always the most likely token)
  --precision P          auto (default), float32 or bfloat16
  --device D, --threads N, --memory-limit SIZE   as for alps prune, but a single device
  --json                 one JSON line on standard output instead of text

The model's weights stay in memory while it writes. alps prune takes the file with --calibration, alone or with texts.

Example:
  alps generate ./SmolLM2-135M --out own.json --prompts speeches.jsonl --windows 16 --length 1024
  alps prune ./SmolLM2-135M --out ./pruned --sparsity 0.7 --calibration speeches.jsonl --calibration own.json \\
      --shares 1,1 --windows 32 --length 1024
`;

const options = {
  out: { type: 'string' },
  windows: { type: 'string' },
  length: { type: 'string' },
  prompts: { type: 'string', multiple: true },
  field: { type: 'string' },
  'prompt-length': { type: 'string' },
  seed: { type: 'string' },
  temperature: { type: 'string' },
  ...deviceOptions,
} as const;

export const generateCommand: Command = {
  summary: 'Let a model write text to calibrate with',
  whenInterrupted: 'no file was written',
  async run(args, { signal, stdout, stderr }) {
    const { values, positional } = parse(args, options, ['MODEL']);
    if (values.help) {
      stdout.write(help);
      return 0;
    }
    const out = required(values, 'out', 'FILE.json, the token ids to write');
    if (!out.endsWith('.json'))
      throw new UsageError(`Expected a name that ends with .json for --out but received "${out}"`);
    const prompts = list(values, 'prompts');
    if (prompts.length === 0) onlyWith(values, ['field', 'prompt-length'], '--prompts');
    await checkReplaceable(out, readGenerated);
    const progress = new Progress(stderr);
    try {
      const { tokenIds, ...rest } = await generateText({
        model: positional[0]!,
        windows: number(values, 'windows'),
        length: number(values, 'length'),
        ...(prompts.length > 0 ? { prompts: { text: prompts, field: string(values, 'field') } } : {}),
        promptLength: number(values, 'prompt-length'),
        seed: number(values, 'seed'),
        temperature: number(values, 'temperature'),
        ...device(values),
        signal,
        onProgress: (share) => progress.update(share, 'writing'),
      });
      await replaceFile(resolve(out), `${JSON.stringify({ calibration: tokenIds.map((ids) => [...ids]) })}\n`);
      progress.clear();
      const { length, milliseconds, note } = rest;
      const option = `--calibration${out.startsWith('-') ? '=' : ' '}${quoted(out)}`;
      const text = `${tokenIds.length} windows of ${length} tokens in ${duration(milliseconds)}, written to ${out}: alps prune takes them with ${option}.\n${note ? `Note: ${note}\n` : ''}`;
      stdout.write(values.json ? `${JSON.stringify({ out, windows: tokenIds.length, ...rest })}\n` : text);
      return 0;
    } finally {
      progress.clear();
    }
  },
};

/** @throws AlpsError if a file holds anything but what this command writes */
async function readGenerated(path: string): Promise<void> {
  const value = await readTokenJson(path);
  windowsOfIds(windowsIn(value, path, 'calibration'), 2 ** 32, path);
  if (Array.isArray(value) || Object.keys(value as object).length > 1)
    throw new AlpsError('INVALID_TEXT', `${path} holds more than alps generate writes; choose another file`);
}
