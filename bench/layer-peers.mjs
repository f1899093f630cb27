// node bench/layer-peers.mjs --alps ALPS --sparsegpt SPARSEGPT [--device cpu|cuda] [--shapes 4096x4096,...] [--sparsity 0.7] [--python python3]
//   [--seconds N] [--out FILE] [--scratch FOLDER]
// pruneLayer against the published PyTorch code (bench/peers/layer.py) on the same layers and the same device, one after the other. The
// inputs are synthetic (bench/layer.mjs), twice as many tokens as inputs. --seconds is the most that the published code may take for one shape;
// what it has not finished by then is left out.
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Device, pruneLayer } from '../lib/index.js';
import { layer } from './layer.mjs';

const { values: options } = parseArgs({
  options: {
    alps: { type: 'string' },
    sparsegpt: { type: 'string' },
    device: { type: 'string', default: 'cpu' },
    shapes: { type: 'string', default: '4096x4096,11008x4096,4096x11008' },
    sparsity: { type: 'string', default: '0.7' },
    python: { type: 'string', default: 'python3' },
    seconds: { type: 'string', default: '600' },
    out: { type: 'string' },
    scratch: { type: 'string' },
  },
});
if (!options.alps || !options.sparsegpt) throw new Error('--alps and --sparsegpt: checkouts of the published code');
const device = Device.open(options.device === 'cuda' ? 'cuda:0' : options.device);
const sparsity = Number(options.sparsity);
const script = join(dirname(fileURLToPath(import.meta.url)), 'peers', 'layer.py');

/** Ours, and which of the peers each is compared with. */
const ours = {
  'alps-ladder': { against: 'alps', options: {} },
  'alps-ladder-bf16': { against: 'alps', options: { precision: 'bfloat16' } },
  'alps-published': { against: 'alps', options: { schedule: 'alps', metric: 'diagonal' } },
  sparsegpt: { against: 'sparsegpt', options: { method: 'sparsegpt' } },
};

/** XᵀX of the activations, by the device, in pieces of tokens. */
async function gramOf(activations, n) {
  const stream = device.stream();
  const gram = device.tensor('float32', [n, n]);
  const piece = 4096;
  for (let at = 0; at < activations.length / n; at += piece) {
    const rows = Math.min(piece, activations.length / n - at);
    const x = stream.upload('float32', [rows, n], activations.subarray(at * n, (at + rows) * n));
    stream.gramAccumulate(x, gram);
    await stream.sync();
    x.dispose();
  }
  stream.symmetrize(gram);
  const numbers = await stream.read(gram);
  gram.dispose();
  stream.dispose();
  return numbers;
}

/** The fastest of three runs after one that is not counted. */
async function runOurs(problem, settings) {
  let best;
  for (let i = 0; i < 4; i++) {
    const began = performance.now();
    const result = await pruneLayer({ ...problem, sparsity, device, ...settings });
    const seconds = (performance.now() - began) / 1000;
    const { factorise, admm, refine } = result.time;
    if (i > 0 && (!best || seconds < best.seconds)) {
      best = { seconds, solveSeconds: (factorise + admm + refine) / 1000, result };
    }
    if (i > 0 && seconds > 20) break;
  }
  return best;
}

/** What bench/peers/layer.py prints, line by line, until it ends or its time is up. */
async function runPeers(folder, shape, tokens, onResult) {
  const child = spawn(
    options.python,
    [
      script,
      ...['--device', options.device === 'cuda' ? 'cuda:0' : options.device, '--shape', shape, '--folder', folder],
      ...['--sparsity', String(sparsity), '--tokens', String(tokens)],
      ...['--alps', options.alps, '--sparsegpt', options.sparsegpt],
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const timer = setTimeout(() => child.kill('SIGKILL'), 1000 * Number(options.seconds));
  const ended = new Promise((resolve, reject) => child.once('close', resolve).once('error', reject));
  for await (const line of createInterface({ input: child.stdout })) {
    onResult(JSON.parse(line));
    process.stderr.write(`layer-peers: ${shape} ${line}\n`);
  }
  await ended;
  clearTimeout(timer);
}

const scratch = options.scratch ?? mkdtempSync(join(tmpdir(), 'alps-layers-'));
// Other shapes that an earlier call measured stay in its file.
const earlier = options.out && existsSync(options.out) ? JSON.parse(readFileSync(options.out, 'utf8')) : undefined;
const results =
  earlier?.device === device.info().details && earlier.sparsity === sparsity
    ? earlier.results.filter(({ shape }) => !options.shapes.split(',').includes(shape.join('x')))
    : [];
const save = () => {
  const report = { date: new Date().toISOString(), device: device.info().details, sparsity, results };
  if (options.out) writeFileSync(options.out, `${JSON.stringify(report, null, 1)}\n`);
};
try {
  for (const shape of options.shapes.split(',')) {
    const [outputs, inputs] = shape.split('x').map(Number);
    const folder = join(scratch, shape);
    mkdirSync(folder, { recursive: true });
    const { weight, activations } = layer(outputs, inputs);
    const gram = await gramOf(activations, inputs);
    const problem = { weight, gram, shape: [outputs, inputs] };
    writeFileSync(join(folder, 'weight.f32'), weight);
    writeFileSync(join(folder, 'gram.f32'), gram);
    const entry = { shape: [outputs, inputs], ours: {}, peers: {} };
    results.push(entry);
    for (const [name, { options: settings }] of Object.entries(ours)) {
      const { seconds, solveSeconds, result } = await runOurs(problem, settings);
      writeFileSync(join(folder, `ours-${name}.f32`), result.weight);
      const { time, iterations, kept, error } = result;
      entry.ours[name] = { seconds, solveSeconds, time, iterations, kept, ownError: error };
      save();
    }
    await runPeers(folder, shape, activations.length / inputs, ({ name, ...result }) => {
      if (name.startsWith('ours-')) Object.assign(entry.ours[name.slice('ours-'.length)], result);
      else entry.peers[name] = result;
      save();
    });
    rmSync(folder, { recursive: true, force: true });
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}

process.stdout.write(`${table(results)}\n`);

function table(entries) {
  const rows = [
    '| layer | ours | whole call | solve | published code | its time | speed, whole call | speed, solve | error | error / published |',
    '|---|---|---|---|---|---|---|---|---|---|',
  ];
  for (const { shape, ours: own, peers } of entries) {
    for (const [name, run] of Object.entries(own)) {
      for (const [peer, result] of Object.entries(peers)) {
        if (!peer.startsWith(ours[name].against) || !result.seconds) continue;
        const cells = [
          shape.join(' × '),
          name,
          `${run.seconds.toFixed(3)} s`,
          `${run.solveSeconds.toFixed(3)} s`,
          peer,
          `${result.seconds.toFixed(3)} s`,
          `${(result.seconds / run.seconds).toFixed(1)} ×`,
          `${(result.seconds / run.solveSeconds).toFixed(1)} ×`,
          run.error.toFixed(5),
          (run.error / result.error).toFixed(4),
        ];
        rows.push(`| ${cells.join(' | ')} |`);
      }
    }
  }
  return rows.join('\n');
}
