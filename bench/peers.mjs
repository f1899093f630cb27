// npm run bench:peers -- [--alps FOLDER] [--sparsegpt FOLDER] [--wanda FOLDER] [--dsnot FOLDER] [--shapes 576x576,...] [--patterns 0.5,0.7,0.9,2:4]
//   [--model FOLDER --text FOLDER [--blocks N] [--windows 32] [--length 1024] [--model-patterns 0.7]
//   [--dtype float32]]
//   [--quick] [--out peers.json] [--write docs/benchmarks.md] [--python python3] [--environment .bench] [--seconds 600]
//
// The published PyTorch code on the processor against this package, in one run, on the same layers with as many threads: time and error by
// shape and pattern. The folders are checkouts of mazumder-lab/ALPS, IST-DASLab/sparsegpt, locuslab/wanda (also for magnitude) and
// zyxxmu/DSnoT, any of them; they are read and not changed. With --model the whole pipelines too (bench/peers/whole_model.py), on windows of
// the text folder's calibration.jsonl and held-out.jsonl (scripts/sotu-split.mjs); --blocks prunes the first blocks only and leaves out
// the perplexity; --dtype is what the published code's model runs in, float32 or bfloat16 (ours chooses as `alps prune` does). What they need
// of Python goes into a virtual environment in the folder .bench, from PyPI.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Device } from '../lib/index.js';
import { patternOf } from './layer.mjs';
import { againstPeers, ours } from './layer-peers.mjs';
import { machineOf } from './machine.mjs';
import { quietCeilings } from './ops.mjs';
import { reportOf, written } from './report.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const { values: options } = parseArgs({
  options: {
    alps: { type: 'string' },
    sparsegpt: { type: 'string' },
    wanda: { type: 'string' },
    dsnot: { type: 'string' },
    shapes: { type: 'string' },
    patterns: { type: 'string' },
    model: { type: 'string' },
    text: { type: 'string' },
    blocks: { type: 'string' },
    windows: { type: 'string', default: '32' },
    length: { type: 'string', default: '1024' },
    dtype: { type: 'string', default: 'float32' },
    'model-patterns': { type: 'string', default: '0.7' },
    quick: { type: 'boolean', default: false },
    out: { type: 'string' },
    write: { type: 'string' },
    python: { type: 'string', default: 'python3' },
    environment: { type: 'string', default: join(root, '.bench') },
    seconds: { type: 'string', default: '600' },
  },
});
const say = (line) => process.stderr.write(`bench: ${line}\n`);
const { alps, sparsegpt, wanda, dsnot } = options;
const peers = Object.fromEntries(Object.entries({ alps, sparsegpt, wanda, dsnot }).filter(([, path]) => path));
const folders = Object.entries({ ...peers, model: options.model, text: options.text });
if (Object.keys(peers).length === 0)
  throw new Error('--alps, --sparsegpt, --wanda, --dsnot: checkouts of the published code');
for (const [name, path] of folders) if (path && !existsSync(path)) throw new Error(`--${name}: ${path} does not exist`);
if (!['float32', 'bfloat16'].includes(options.dtype)) throw new Error('--dtype: float32 or bfloat16');
if (options.model && !options.text)
  throw new Error('--model needs --text, a folder with calibration.jsonl and held-out.jsonl');

function run(command, args, { output = 'inherit' } = {}) {
  const { status, error, stdout } = spawnSync(command, args, {
    encoding: 'utf8',
    stdio: ['ignore', output, 'inherit'],
    maxBuffer: 2 ** 26,
  });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? `exit code ${status}`}`);
  return stdout;
}

/** Python with what the peers need. */
function environment() {
  const python = join(options.environment, 'bin', 'python');
  if (!existsSync(python)) run(options.python, ['-m', 'venv', options.environment], { output: 2 });
  const needed = ['torch', 'numpy', ...(options.model ? ['transformers', 'safetensors', 'tokenizers'] : [])];
  const has = (name) =>
    spawnSync(python, ['-c', `import importlib.util as u; exit(u.find_spec("${name}") is None)`]).status === 0;
  const missing = needed.filter((name) => !has(name));
  if (missing.length > 0) run(python, ['-m', 'pip', 'install', ...missing], { output: 2 });
  return python;
}

const python = environment();
const device = Device.open('cpu');
const bench = { machine: machineOf(device), quick: options.quick, results: [] };
const { rates, waiting } = options.quick
  ? await quietCeilings(device, { sizes: [512], bytes: 2 ** 24 }, 1)
  : await quietCeilings(device);
bench.ceilings = { ...rates, waiting };
const scratch = mkdtempSync(join(tmpdir(), 'alps-peers-'));
const save = () => options.out && writeFileSync(options.out, `${JSON.stringify(bench, null, 1)}\n`);

function layerResults({ shape, sparsity, ours: own, peers: published }) {
  return Object.entries(own).flatMap(([name, mine]) => {
    const theirs = published[ours[name].against];
    if (!theirs) return [];
    const title = shape.join('x');
    return {
      id: `peers ${title} ${name} ${sparsity}`,
      part: 'peers',
      shape: title,
      pattern: sparsity,
      ours: name,
      peer: ours[name].against,
      median: 1000 * mine.seconds,
      best: 1000 * mine.seconds,
      seconds: mine.seconds,
      solveSeconds: mine.solveSeconds,
      waiting: Math.max(mine.waiting, theirs.waiting ?? 0),
      error: mine.error,
      failure: theirs.failure,
      peerSeconds: theirs.seconds,
      peerError: theirs.error,
      sparsity: mine.sparsity,
      peerSparsity: theirs.sparsity,
    };
  });
}

async function layers() {
  const entries = [];
  const shapes =
    options.shapes ?? (options.quick ? '128x128' : '576x576,576x1536,1536x576,1024x1024,2048x2048,4096x1024');
  const patterns = (options.patterns ?? (options.quick ? '0.7' : '0.5,0.7,0.9,2:4')).split(',');
  const names = Object.keys(ours).filter(
    (name) =>
      peers[ours[name].checkout ?? ours[name].against] &&
      (!/bf16/.test(name) || device.info().bf16Products) &&
      (!/mixed/.test(name) || device.info().bf16Products || device.info().int8Products),
  );
  const methods = [...new Set(names.map((name) => ours[name].against))];
  const onEntry = (entry) => {
    if (!entries.includes(entry)) entries.push(entry);
    bench.results = entries.flatMap(layerResults);
    save();
  };
  const settings = { python, seconds: Number(options.seconds), peers };
  for (const shape of shapes.split(',').filter(Boolean))
    await againstPeers(device, settings, { shape, patterns, names, methods, scratch, onEntry });
}

/** ALPS is also set against the cheapest pipeline there is: with all defaults, as published, and asking layers for their own outputs as the published code does. */
const againstWanda = {
  wanda: { method: 'wanda' },
  alps: {},
  'alps-paper': { preset: 'paper' },
  'alps-own-targets': { denseTarget: false },
  'alps-balanced-own-targets': { preset: 'balanced', denseTarget: false },
};

/** Ours on the same token windows, in a process of its own: seconds of the whole command, or of the first blocks, peak memory, the perplexity. */
function ourModel(settings, pattern, tokens, blocks) {
  const argument = { model: options.model, tokens, blocks, options: { ...settings, ...patternOf(pattern) } };
  return JSON.parse(
    run(process.execPath, [join(root, 'bench/whole-model.mjs'), JSON.stringify(argument)], { output: 'pipe' }),
  );
}

async function models() {
  const tokens = join(scratch, 'tokens.json');
  const { model, text, windows, length } = options;
  const blocks = options.blocks && Number(options.blocks);
  const tokenizer = join(model, 'tokenizer.json');
  const made = ['--tokenizer', tokenizer, '--text', text, '--out', tokens, '--windows', windows, '--length', length];
  run(python, [join(root, 'bench/peers/make_tokens.py'), ...made], { output: 2 });
  for (const pattern of options['model-patterns'].split(',')) {
    for (const method of Object.keys(peers).filter((name) => name !== 'dsnot')) {
      const ours = [];
      for (const [own, settings] of Object.entries(method === 'wanda' ? againstWanda : { [method]: { method } })) {
        const mine = ourModel(settings, pattern, tokens, blocks);
        say(`${basename(model)}, ${own}, ${pattern}: ${JSON.stringify(mine)}`);
        ours.push({ own, ...mine });
      }
      const args = [
        ...['--method', method, `--${method}`, peers[method], '--model', model, '--tokens', tokens, '--skip-dense'],
        ...[pattern.includes(':') ? '--pattern' : '--sparsity', pattern, '--threads', String(device.info().threads)],
        ...['--dtype', options.dtype],
        ...(blocks ? ['--blocks', String(blocks), '--evaluation-windows', '0'] : []),
      ];
      const theirs = JSON.parse(run(python, [join(root, 'bench/peers/whole_model.py'), ...args], { output: 'pipe' }));
      // What both do for the blocks alone, or from the start to the end of pruning.
      const { statistics, prune: solve, propagate } = theirs.seconds;
      const part = blocks ? `, first ${blocks} blocks` : '';
      for (const { own, seconds, peakBytes, perplexity } of ours) {
        bench.results.push({
          id: `peers ${basename(model)}${part} ${own} ${method} ${pattern} ${options.dtype}`,
          part: 'peers',
          model: `${basename(model)}${part}, ${windows} × ${length} tokens, published code in ${options.dtype}`,
          pattern,
          ours: own,
          peer: method,
          median: 1000 * seconds,
          best: 1000 * seconds,
          seconds,
          peakBytes,
          perplexity,
          peerSeconds: blocks ? statistics + solve + propagate : theirs.secondsToPrune - (theirs.seconds.load ?? 0),
          peerPeakBytes: theirs.peakBytes.prune,
          peerPerplexity: theirs.prunedPerplexity,
        });
      }
      save();
    }
  }
}

try {
  await layers();
  if (options.model) await models();
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
process.stdout.write(reportOf(bench));
if (options.write) writeFileSync(options.write, written(readFileSync(options.write, 'utf8'), bench));
