import type { LayerSparsities } from '../allocation/allocation.js';
import { readAllocation } from '../allocation/allocation-file.js';
import { meanErrorOf, type PruneEvent, type PruneReport, prune } from '../prune.js';
import { list, parse, required, string, type Values } from './arguments.js';
import type { Command } from './command.js';
import { eventOutput } from './event-output.js';
import { duration, table } from './format.js';
import { pruningOptions, pruningOptionsOf } from './pruning-options.js';

const help = `alps prune - prune a Hugging Face model folder into another folder

Usage: alps prune MODEL --out DIR (--sparsity S | --pattern N:M) [--calibration FILE] [options]

What to remove (exactly one):
  --sparsity S           share of each matrix that becomes zero, such as 0.7
  --pattern N:M          keep N of every M consecutive inputs, such as 2:4

Calibration text (not needed with --method magnitude):
  --calibration FILE     .txt or .jsonl (each also .gz), .parquet, or .json with token ids, as alps generate writes it;
                         may be given more than once
  --shares A,B,...       relative numbers of windows to take from each file (default: all files are one text)
  --field NAME           text field of .jsonl and .parquet files (default text)
  --windows N            token windows (default 128), drawn from the whole text, at most its first 67 million characters;
                         of token ids the first N (default: all)
  --own-windows N        N extra windows written by the model, each continuing the start of a calibration window
                         (default 0; needs memory for the whole model)
  --length N             tokens per window (default 2048, at most the model's maximum); token ids keep theirs
  --seed N               selects the windows and seeds the text that the model writes (default 0)

Method:
  --preset paper         ALPS as published: --method alps --schedule alps --metric diagonal --propagation block
                         --dense-target none --row-weights off --final-norm off
  --preset balanced      a faster solve: --method alps --schedule short --refine-iterations 4 --mixed-precision on
                         (off with --precision float32). Options given explicitly override a preset
  --method M             alps (default), sparsegpt, wanda, dsnot, or magnitude (also called mp)
  --refit R              how the kept weights are refitted: pcg (conjugate gradients; default of alps), backsolve (exact)
                         or none (default of the other methods)
  --comparison-group G   magnitude, wanda: weights compete within the layer (default of magnitude) or the row (default of
                         wanda)
  --dsnot-initial M      dsnot: method of the initial mask: wanda (default), magnitude or sparsegpt
  --dsnot-skip WHAT      dsnot: layers that keep the initial mask: none (default), mlp or attention
  --dsnot-cycles N       dsnot: most swaps per row (default 50)
  --dsnot-threshold T    dsnot: a row is done when the expected change of its output is at most T (default 0.1)
  --schedule S           alps: how rho, the penalty of ADMM, grows: ladder (default), short (faster), alps (as published)
                         or fixed
  --rho R                alps: rho of the fixed schedule, first rho of the published one (default 0.1)
  --max-iterations N     alps: most iterations of the fixed and the published schedule (default 300)
  --metric M             alps: obs (default with the ladders, which are ladder and short) or diagonal (as published)
  --relaxation W         alps: over-relaxation; 1 is none. Default with the ladders, unstructured:
                         max(1, 1.8 - 2 x share kept); else 1
  --mixed-precision on|off
                         alps: low-precision products (8-bit integers or bfloat16, if the device has them in hardware)
                         where only corrections go through them; default on for bfloat16 runs with a ladder
  --propagation P        inputs of a layer: sequential (default; from the pruned layers before it) or block (from the
                         still dense block, as published)
  --dense-target A,B,K   alps, sparsegpt, refits: let layers reproduce the dense model's activations in part.
                         A: share of the dense model's activations to reproduce. B: share of the residual difference to
                         undo. K: weight of errors already in the inputs (default 1). none: as published. Default A and B
                         of alps: 0.5 from 70 %, 0.25 up to 50 % and for 2:4, linear between; the others: none. B and K
                         may be omitted
  --row-weights on|off   alps, sparsegpt: weigh errors of each output by their effect in the block (default of alps: on)
  --final-norm on|off    with a dense target: refit the final norm to the dense model's outputs (default on)
  --allocation FILE      .json, {"layers": {NAME: SPARSITY, ...}}: sparsities per layer, rescaled to meet the total: if
                         they are too sparse, all fall by the same amount; if too dense, each keeps the same fraction of
                         its kept weights
  --ridge R              ridge (SparseGPT's damping) as a share of the mean diagonal of the Gram matrix (default 0.01)
  --refine-iterations N  conjugate gradient iterations of --refit pcg (default 10)
  --errors on|off        compute the errors of the layers' outputs (default on); with off, magnitude, wanda and dsnot
                         without a refit need no Gram matrices (except with --dsnot-initial sparsegpt)

Device:
  --precision P          auto (default: bfloat16 if the model is stored so and the device has it in hardware), float32 or
                         bfloat16
  --device D             auto (default: a GPU if one works, else the processor), cpu, cuda or cuda:N;
                         several devices share the work: cuda:0,cuda:1
  --threads N            threads of the processor (default: all cores)
  --memory-limit SIZE    most memory for tensors on each device, such as 12G (default: 90 % of the machine's or the GPU's
                         memory)

Output:
  --out DIR              folder to create; it appears only when it is complete
  --overwrite            replace DIR if it exists
  --restart              start over instead of resuming an unfinished run
  --json                 one JSON line per event on standard output (default if standard output is not a terminal)

If a run is interrupted, killed or fails, the same command resumes it after the last finished block. Until then, the
finished part is kept beside DIR under hidden names (.NAME.unfinished).

Examples:
  alps prune ./SmolLM2-135M --out ./pruned --sparsity 0.7 --calibration speeches.jsonl
  alps prune ./SmolLM2-135M --out ./pruned --sparsity 0.7 --calibration speeches.jsonl --windows 64 --own-windows 64
  alps prune ./SmolLM2-135M --out ./pruned --pattern 2:4 --calibration a.txt.gz --windows 32 --length 1024
  alps prune ./SmolLM2-135M --out ./paper --sparsity 0.7 --calibration speeches.jsonl --preset paper
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
  summary: 'Prune a model folder into another folder',
  whenInterrupted: "nothing was written under the output's name",
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
          stdout.write(`Resuming after block ${event.finished} of ${event.blocks}, finished by an earlier run.\n`);
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
      if (blocks > 0)
        stderr.write(
          `alps: finished blocks are kept beside the output (.NAME.unfinished); the same command resumes after block ${blocks}, --restart starts over\n`,
        );
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

/** The result for people: mean error by kind of layer, over the layers that have one (experts that no token reached have none). */
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
  const own = calibration && calibration.ownWindows > 0 ? ` (${calibration.ownWindows} self-generated)` : '';
  const read = calibration ? `${calibration.windows} windows${own} of ${calibration.length} tokens` : 'no calibration';
  return `${table(['layer', 'count', 'mean relative error'], rows)}

${report.method}, ${report.description}: ${(report.sparsity * 100).toFixed(2)} % of the blocks' weights are zero; ${read}.
${report.calibration?.note ? `Note: ${report.calibration.note}\n` : ''}Written to ${out} in ${duration(milliseconds.total)} (details in pruning.json).
`;
}
