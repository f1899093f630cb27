// The part `model` of npm run bench: prune() of a whole model, with the device's time by phase.
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { profile } from '../lib/device/profile.js';
import { prune } from '../lib/index.js';
import { gapsOf, phasesOf } from './phases.mjs';
import { watchWaiting } from './waiting.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const bundled = { model: join(root, 'models/union-4m'), text: join(root, 'models/union-4m/calibration.txt.gz') };
const smollm2 = { model: join(root, 'models/smollm2-135m'), text: join(root, 'sotu/calibration.jsonl') };

/** The model and text to measure: those given, else SmolLM2 where it was fetched, else the bundled model. */
export function modelOf({ model, text }, isQuick) {
  const found = [smollm2, bundled].find((one) => existsSync(one.model) && existsSync(one.text));
  const usual = isQuick ? bundled : found;
  if ((model === undefined) !== (text === undefined)) throw new Error('--model and --text: both or none');
  return model ? { model, text } : usual;
}

/** One run of prune(): wall-clock by its own phases, and the device's time by phase. */
export async function pruned(device, rates, options) {
  const scratch = mkdtempSync(join(tmpdir(), 'alps-bench-'));
  const wall = { read: 0, forward: 0, solve: 0, write: 0 };
  const bytes = { read: 0, written: 0 };
  try {
    const waiting = watchWaiting();
    profile(device, true);
    device.resetPeak();
    const report = await prune({
      ...options,
      out: join(scratch, 'pruned'),
      device,
      onEvent: (event) => {
        if (event.type === 'block') for (const name of Object.keys(wall)) wall[name] += event.phases[name];
      },
    });
    const entries = profile(device, false);
    for (const {
      phase,
      op,
      arguments: [tensor],
      milliseconds: _,
      calls,
    } of entries) {
      const size = calls * tensorBytes(tensor);
      if (op === 'upload' && phase === 'read') bytes.read += size;
      if (op === 'download' && phase === 'write') bytes.written += size;
    }
    const { total, calibration, write } = report.milliseconds;
    return {
      total,
      waiting: waiting(),
      wall: { calibration, ...wall, finish: write },
      phases: phasesOf(entries, rates),
      gaps: gapsOf(entries, rates, 12),
      files: bytes,
      memoryPeak: device.info().memoryPeak,
      report,
    };
  } finally {
    profile(device, false);
    rmSync(scratch, { recursive: true, force: true });
  }
}

function tensorBytes(text) {
  const [, dtype, list] = /^(\w+) \[(.*)\]$/.exec(text);
  const size = { float64: 8, float32: 4, uint32: 4, bfloat16: 2, float16: 2, uint8: 1 }[dtype];
  return list.split(', ').reduce((product, d) => product * Number(d), size);
}

export async function measureModel(device, rates, { isQuick, say, add, windows, length, ...given }) {
  const { model, text } = modelOf(given, isQuick);
  const usual = isQuick ? [4, 64] : [32, 1024];
  const calibration = { text, windows: Number(windows ?? usual[0]), length: Number(length ?? usual[1]) };
  const run = await pruned(device, rates, { model, calibration, sparsity: 0.7 });
  const { phases, report } = run;
  const sum = (name) => Object.values(phases).reduce((total, phase) => total + phase[name], 0);
  const name = model.split(/[\\/]/).filter(Boolean).at(-1);
  const result = {
    id: `model ${name} ${report.calibration.windows}x${report.calibration.length} 0.7`,
    part: 'model',
    model: name,
    windows: report.calibration.windows,
    length: report.calibration.length,
    precision: report.options.precision,
    median: run.total,
    best: run.total,
    repeats: 1,
    waiting: run.waiting,
    flops: sum('flops'),
    bytes: sum('bytes'),
    share: sum('atCeiling') / run.total,
    error: report.meanError,
    onDevice: sum('milliseconds'),
    wall: run.wall,
    phases,
    gaps: run.gaps,
    files: run.files,
    memoryPeak: run.memoryPeak,
  };
  say(`${result.id}: ${(run.total / 1000).toFixed(1)} s, ${(100 * result.share).toFixed(0)} % of the ceiling`);
  add(result);
}
