import type { LayerSparsities } from '../allocation/allocation.js';
import { readAllocation } from '../allocation/allocation-file.js';
import { meanErrorOf, type PruneEvent, type PruneReport, prune } from '../prune.js';
import { list, parse, required, string, type Values } from './arguments.js';
import type { Command } from './command.js';
import { eventOutput } from './event-output.js';
import { duration, table } from './format.js';
import { pruningOptions, pruningOptionsOf } from './pruning-options.js';

const help = `alps prune - prune a Hugging Face model folder into another

Usage: alps prune MODEL --out DIR (--sparsity S | --pattern N:M) --calibration FILE [options]

What to remove (one of the two):
  --sparsity S           share of each matrix that becomes zero, such as 0.7
  --pattern N:M          keep N of every M consecutive inputs, such as 2:4

What the model reads meanwhile:
  --calibration FILE     .txt, .jsonl, .json (token ids, also of alps generate), .parquet, also .gz; may be given more than once
  --shares A,B,...       how many of the windows each of these files gives, relative to the others (default: all are one text)
  --field NAME           the text field of .jsonl and .parquet (default text)
  --windows N            token windows (default 128), drawn from all of the text, up to its first 67 million characters
  --own-windows N        so many more that the model writes itself, each going on from the beginning of one of those: what it knows beyond
                         the text is kept better (default 0; takes memory for the whole model)
  --length N             tokens of a window (default 2048, at most what the model takes)
  --seed N               which windows, and what the model writes itself (default 0)

How:
  --preset paper         ALPS as published: --schedule alps --metric diagonal --propagation block --dense-target none
                         --row-weights off --final-norm off; options beside it go before its own
  --preset balanced      a faster solve: --schedule short --refine-iterations 4 --mixed-precision on
  --method M             alps (default), sparsegpt, wanda, dsnot or magnitude (mp)
  --refit R              what is done to the kept weights: pcg (default of alps), backsolve (exact) or none (default of the others)
  --comparison-group G   magnitude, wanda: layer (default of magnitude) or row (default of wanda)
  --dsnot-initial M      the mask that dsnot starts from: wanda (default), magnitude or sparsegpt
  --dsnot-skip WHAT      layers that dsnot leaves with that mask: none (default), mlp or attention
  --dsnot-cycles N       swaps of a row at most (default 50)
  --dsnot-threshold T    a row stops below this expected change of its output (default 0.1)
  --schedule S           alps: ladder (default), short (faster), alps (the published schedule of rho) or fixed
  --rho R                alps: the fixed rho, or the one that the published schedule begins with (default 0.1)
  --max-iterations N     alps: iterations of the fixed and the published schedule at most (default 300)
  --metric M             alps: obs (default with the ladders) or diagonal, the published one
  --relaxation W         alps: over-relaxation of ADMM, 1 for none (default with the ladders and no groups up to 1.8, the sparser the more)
  --mixed-precision M    alps: on: products of the search, of up to 5 steps of the refit, and of dense targets with the inputs' differences, in 8-bit integers or bfloat16 where the device multiplies them in hardware (default: on in a bfloat16 run with a ladder, else off)
  --propagation P        sequential (default) or block, the published one
  --dense-target A,B,K   alps, sparsegpt, refits: the share of the dense model's activations that layers reproduce, and of the residual
                         stream's difference that they undo (default of alps 0.5,0.5 from 70 % on, 0.25,0.25 up to 50 % and for 2:4,
                         linear between; of the others none); none: as published. K: how often the errors that inputs have already
                         count beside them (default 1). B and K that are not given have their defaults, whatever A is
  --row-weights on|off   alps, sparsegpt: whether an error in an output counts by what the block makes of it (default of alps on)
  --final-norm on|off    with a dense target: whether the norm in front of the head is refitted to the dense model's outputs (default on)
  --allocation FILE      .json, {"layers": {NAME: SPARSITY, ...}}: how sparse each layer becomes relative to the others; all are moved
                         until together they have exactly --sparsity, or keep at most --pattern: to fewer zeros by one
                         amount, to more by keeping the same fraction of what is asked of each
  --ridge R              ridge (SparseGPT's damping) as a share of the mean diagonal of XtX (default 0.01)
  --refine-iterations N  conjugate gradient iterations (default 10)
  --errors on|off        whether the errors of the layers' outputs are computed (default on); off saves magnitude, wanda and dsnot the
                         Gram matrices
  --precision P          auto (default), float32 or bfloat16
  --device D             auto (default: a GPU where one works, else the processor), cpu, cuda or cuda:N;
                         several share the work: cuda:0,cuda:1
  --threads N            threads that compute (default: all)
  --memory-limit SIZE    of each device, such as 12G (default: 90 % of the machine's memory)

Output:
  --out DIR              folder to make; it appears only when it is complete
  --overwrite            replace it if it exists
  --restart              begin anew where a run that was stopped would be gone on with
  --json                 one JSON line an event on standard output (the default when it is not a terminal)

A run that was stopped, killed or failed goes on behind its last finished block when the same command is given again; until then what is
finished lies beside DIR, under hidden names (.NAME.unfinished).

Examples:
  alps prune ./SmolLM2-135M --out ./pruned --sparsity 0.7 --calibration speeches.jsonl
  alps prune ./SmolLM2-135M --out ./pruned --sparsity 0.7 --calibration speeches.jsonl --windows 64 --own-windows 64
  alps prune ./SmolLM2-135M --out ./pruned --pattern 2:4 --calibration a.txt.gz --windows 32 --length 1024
  alps prune ./SmolLM2-135M --out ./paper --sparsity 0.7 --calibration speeches.jsonl \\
      --preset paper
  alps prune ./SmolLM2-135M --out ./mp --sparsity 0.5 --method magnitude
  alps prune ./SmolLM2-135M --out ./wanda --pattern 2:4 --method wanda --refit pcg --calibration speeches.jsonl
`;

const options = {
  out: { type: 'string' },
  ...pruningOptions,
  allocation: { type: 'string' },
  overwrite: { type: 'boolean' },
  restart: { type: 'boolean' },
} as const;

export const pruneCommand: Command = {
  summary: 'Prune a model folder into another',
  async run(args, context) {
    const { signal, stdout, stderr } = context;
    const { values, positional } = parse(args, options, ['MODEL']);
    if (values.help) {
      stdout.write(help);
      return 0;
    }
    const out = required(values, 'out', 'DIR, the folder to make');
    const { json, progress, writeEvent } = eventOutput(values, context);
    const calibrated = list(values, 'calibration').length > 0;
    let layers = 0;
    let done = 0;
    let blocks = 0;
    const onEvent = (event: PruneEvent) => {
      writeEvent(event);
      if (event.type === 'start') layers = event.layers;
      if (event.type === 'block') blocks++;
      if (event.type === 'resume') {
        blocks = event.finished;
        progress.clear();
        if (!json)
          stdout.write(`Going on behind block ${event.finished} of ${event.blocks}, which an earlier run finished.\n`);
      }
      if (event.type === 'start') progress.update(0, calibrated ? 'reading the calibration text' : 'reading the model');
      if (event.type === 'generate') progress.writing(event.share);
      if (event.type === 'layer')
        progress.update(++done / layers, `block ${event.block}, ${event.name.split('.').pop()}`);
    };
    try {
      const report = await prune({
        model: positional[0]!,
        out,
        ...pruningOptionsOf(values),
        allocation: await allocationOption(values),
        overwrite: values.overwrite === true,
        resume: true,
        restart: values.restart === true,
        signal,
        onEvent,
      });
      progress.clear();
      if (!json) stdout.write(summary(report, out));
      return 0;
    } catch (error) {
      progress.clear();
      if (blocks > 0) stderr.write(`alps: the same command goes on behind block ${blocks}; --restart begins anew\n`);
      throw error;
    } finally {
      progress.clear();
    }
  },
};

async function allocationOption(values: Values): Promise<LayerSparsities | undefined> {
  const path = string(values, 'allocation');
  return path === undefined ? undefined : readAllocation(path);
}

/** The result for people: mean error by kind of layer, of those that have one (experts that no token reached do not). */
export function summary(report: PruneReport, out: string): string {
  const kinds = new Map<string, PruneReport['layers']>();
  for (const layer of report.layers) {
    const kind = layer.name.split('.').pop()!;
    kinds.set(kind, [...(kinds.get(kind) ?? []), layer]);
  }
  const rows = [...kinds].map(([kind, layers]) => [
    kind,
    String(layers.length),
    layers.every(({ error }) => error === null) ? '-' : meanErrorOf(layers).toFixed(4),
  ]);
  const { milliseconds, calibration } = report;
  const own = calibration && calibration.ownWindows > 0 ? ` (${calibration.ownWindows} of its own)` : '';
  const read = calibration ? `${calibration.windows} windows${own} of ${calibration.length} tokens` : 'no calibration';
  return `${table(['layer', 'count', 'mean relative error'], rows)}

${report.method}, ${report.description}: ${(report.sparsity * 100).toFixed(2)} % of the blocks' weights are zero; ${read}.
${report.calibration?.note ? `Note: ${report.calibration.note}\n` : ''}Written to ${out} in ${duration(milliseconds.total)} (details in pruning.json).
`;
}
