import { inspectModel } from '../inspect.js';
import { parse, pattern } from './arguments.js';
import type { Command } from './command.js';
import { count, size, table } from './format.js';

const help = `alps inspect - show what a model folder holds

Usage: alps inspect MODEL [--pattern N:M] [--json]

  --pattern N:M   check that every matrix of the blocks keeps at most N of every M inputs; exit code 1 if one does not
  --json          one JSON line instead of the table

Examples:
  alps inspect ./SmolLM2-135M
  alps inspect ./pruned --pattern 2:4
`;

export const inspectCommand: Command = {
  summary: 'Show tensors, sparsity and pattern of a model folder',
  async run(args, { signal, stdout }) {
    const { values, positional } = parse(args, { pattern: { type: 'string' } }, ['MODEL']);
    if (values.help) {
      stdout.write(help);
      return 0;
    }
    const asked = pattern(values);
    const result = await inspectModel(positional[0]!, { pattern: asked, signal });
    const broken = result.tensors.filter((tensor) => tensor.pattern === false);
    if (values.json) {
      stdout.write(`${JSON.stringify(result)}\n`);
      return broken.length > 0 ? 1 : 0;
    }
    const title = `keeps ${asked?.keep} of ${asked?.of}`;
    const rows = result.tensors.map((tensor) => [
      tensor.name,
      tensor.dtype,
      tensor.shape.join(' × '),
      tensor.sparsity === null ? '-' : `${(tensor.sparsity * 100).toFixed(2)} %`,
      ...(asked ? [tensor.pattern === undefined ? '-' : tensor.pattern ? 'yes' : 'no'] : []),
    ]);
    stdout.write(`${table(['tensor', 'dtype', 'shape', 'zeros', ...(asked ? [title] : [])], rows)}\n\n`);
    const support = result.quantization
      ? `quantised (${result.quantization}), not supported`
      : result.supported
        ? 'supported'
        : 'not supported';
    stdout.write(
      `model_type ${String(result.modelType)} (${support}), ${count(result.parameters)} parameters, ${size(result.bytes)} in ` +
        `${result.shards} file${result.shards === 1 ? '' : 's'}; ${(result.blockSparsity * 100).toFixed(2)} % of the weights in the blocks' matrices are zero\n`,
    );
    if (asked)
      stdout.write(
        broken.length > 0
          ? `${broken.length} matrices keep more, or their width is not divisible by ${asked.of}\n`
          : 'Every matrix of the blocks follows the pattern\n',
      );
    return broken.length > 0 ? 1 : 0;
  },
};
