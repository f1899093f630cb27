// node bench/layer-peers.mjs --alps ALPS --sparsegpt SPARSEGPT [--wanda WANDA] [--dsnot DSNOT] [--device cpu|cuda] [--shapes 4096x4096,...]
//   [--sparsity 0.7] [--python python3] [--seconds N] [--out FILE] [--scratch FOLDER]
// pruneLayer against the published PyTorch code (bench/peers/layer.py) on the same layers and the same device, one after the other. The
// inputs are synthetic (bench/layer.mjs), twice as many tokens as inputs. --seconds is the most that the published code may take for one shape;
// what it has not finished by then is left out.
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { Device, pruneLayer } from '../lib/index.js';
import { patternOf, problemOf } from './layer.mjs';
import { watchWaiting } from './waiting.mjs';

const script = fileURLToPath(new URL('peers/layer.py', import.meta.url));

/** Ours, the peer each is compared with, and whose checkout that needs. */
export const ours = {
  'alps-ladder': { against: 'alps', options: {} },
  'alps-ladder-float32': { against: 'alps', options: { precision: 'float32' } },
  'alps-balanced': { against: 'alps', options: { preset: 'balanced', precision: 'float32' } },
  'alps-balanced-mixed': { against: 'alps', options: { preset: 'balanced' } },
  'alps-published': { against: 'alps', options: { schedule: 'alps', metric: 'diagonal' } },
  sparsegpt: { against: 'sparsegpt', options: { method: 'sparsegpt' } },
  wanda: { against: 'wanda', options: { method: 'wanda', errors: false } },
  dsnot: { against: 'dsnot', options: { method: 'dsnot', errors: false } },
  magnitude: { against: 'magnitude', checkout: 'wanda', options: { method: 'magnitude', errors: false } },
};

/** The fastest of three runs after one that is not counted. */
async function runOurs(problem, settings) {
  let best;
  for (let i = 0; i < 4; i++) {
    const waiting = watchWaiting();
    const began = performance.now();
    const result = await pruneLayer({ ...problem, ...settings });
    const seconds = (performance.now() - began) / 1000;
    const { factorise, admm, refine } = result.time;
    if (i > 0 && (!best || seconds < best.seconds)) {
      best = { seconds, solveSeconds: (factorise + admm + refine) / 1000, waiting: waiting(), result };
    }
    if (i > 0 && seconds > 20) break;
  }
  return best;
}

/** What bench/peers/layer.py prints, line by line, until it ends or its time is up. */
async function runPeers({ python, seconds, peers }, { device, folder, shape, sparsity, tokens, methods }, onResult) {
  const child = spawn(
    python,
    [
      script,
      ...['--device', device.name, '--shape', shape, '--folder', folder, '--sparsity', sparsity],
      ...['--tokens', String(tokens), ...(methods ? ['--methods', methods.join(',')] : [])],
      ...(device.name === 'cpu' ? ['--threads', String(device.info().threads)] : []),
      ...Object.entries(peers).flatMap(([name, path]) => [`--${name}`, path]),
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const timer = setTimeout(() => child.kill('SIGKILL'), 1000 * seconds);
  const ended = new Promise((resolve, reject) => child.once('close', resolve).once('error', reject));
  for await (const line of createInterface({ input: child.stdout })) {
    onResult(JSON.parse(line));
    process.stderr.write(`layer-peers: ${shape}, ${sparsity}: ${line}\n`);
  }
  await ended;
  clearTimeout(timer);
}

/**
 * One synthetic layer at several patterns ("0.7", "2:4"): ours, then the published code.
 * @param run python, seconds (see above), and peers: checkouts by name
 * @param names of {@link ours}; default: those whose peer is given
 * @param methods of the peers; default: all that layer.py has for them
 * @param onEntry called, again and again, with `{ shape, sparsity, ours, peers }` as it fills up
 */
export async function againstPeers(device, run, { shape, patterns, names, methods, scratch, onEntry }) {
  const [outputs, inputs] = shape.split('x').map(Number);
  const chosen = names ?? Object.keys(ours).filter((name) => run.peers[ours[name].checkout ?? ours[name].against]);
  const { problem, activations } = await problemOf(device, outputs, inputs);
  for (const sparsity of patterns) {
    const folder = join(scratch, `${shape}-${sparsity.replace(':', '-')}`);
    mkdirSync(folder, { recursive: true });
    for (const name of ['weight', 'gram']) writeFileSync(join(folder, `${name}.f32`), problem[name]);
    writeFileSync(join(folder, 'activations.f32'), activations);
    const entry = { shape: [outputs, inputs], sparsity, ours: {}, peers: {} };
    for (const name of chosen) {
      const settings = { ...patternOf(sparsity), ...ours[name].options, device };
      const { seconds, solveSeconds, waiting, result } = await runOurs(problem, settings);
      writeFileSync(join(folder, `ours-${name}.f32`), result.weight);
      const { time, iterations, kept, error } = result;
      entry.ours[name] = { seconds, solveSeconds, waiting, time, iterations, kept, ownError: error };
      onEntry(entry);
    }
    const tokens = activations.length / inputs;
    await runPeers(run, { device, folder, shape, sparsity, tokens, methods }, ({ name, ...result }) => {
      if (name.startsWith('ours-')) Object.assign(entry.ours[name.slice('ours-'.length)], result);
      else entry.peers[name] = result;
      onEntry(entry);
    });
    rmSync(folder, { recursive: true, force: true });
  }
}

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

async function main() {
  const { values: options } = parseArgs({
    options: {
      alps: { type: 'string' },
      sparsegpt: { type: 'string' },
      wanda: { type: 'string' },
      dsnot: { type: 'string' },
      device: { type: 'string', default: 'cpu' },
      shapes: { type: 'string', default: '4096x4096,11008x4096,4096x11008' },
      sparsity: { type: 'string', default: '0.7' },
      python: { type: 'string', default: 'python3' },
      seconds: { type: 'string', default: '600' },
      out: { type: 'string' },
      scratch: { type: 'string' },
    },
  });
  const { alps, sparsegpt, wanda, dsnot, python } = options;
  const peers = Object.fromEntries(Object.entries({ alps, sparsegpt, wanda, dsnot }).filter(([, path]) => path));
  if (!alps || !sparsegpt) throw new Error('--alps and --sparsegpt: checkouts of the published code');
  const device = Device.open(options.device === 'cuda' ? 'cuda:0' : options.device);
  const sparsity = Number(options.sparsity);
  const scratch = options.scratch ?? mkdtempSync(join(tmpdir(), 'alps-layers-'));
  // Other shapes that an earlier call measured stay in its file.
  const earlier = options.out && existsSync(options.out) ? JSON.parse(readFileSync(options.out, 'utf8')) : undefined;
  const results =
    earlier?.device === device.info().details && earlier.sparsity === sparsity
      ? earlier.results.filter(({ shape }) => !options.shapes.split(',').includes(shape.join('x')))
      : [];
  const onEntry = (entry) => {
    if (!results.includes(entry)) results.push(entry);
    const report = { date: new Date().toISOString(), device: device.info().details, sparsity, results };
    if (options.out) writeFileSync(options.out, `${JSON.stringify(report, null, 1)}\n`);
  };
  try {
    const run = { python, seconds: Number(options.seconds), peers };
    for (const shape of options.shapes.split(','))
      await againstPeers(device, run, { shape, patterns: [options.sparsity], scratch, onEntry });
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  process.stdout.write(`${table(results)}\n`);
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await main();
