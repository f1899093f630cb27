// The part `growth` of npm run bench: prune() of models with 2, 4 and 8 times as many windows, as wide, and with as many layers; each in a
// process of its own, whose peak memory is taken. Time is compared with the operations counted; the orders are those of the largest terms:
// windows · width², width³, layers.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { Device } from '../lib/index.js';
import { makeModel } from '../scripts/gpu/make-llama-7b.mjs';
import { pruned } from './model.mjs';

const full = { blocks: 2, hidden: 128, windows: 8, length: 128, times: [1, 2, 4, 8] };
const quick = { blocks: 1, hidden: 32, windows: 2, length: 32, times: [1, 2] };
/** Which of a point's numbers an axis multiplies, and the exponent that its time has in the limit. */
const axes = {
  windows: { field: 'windows', order: 1 },
  width: { field: 'hidden', order: 3 },
  layers: { field: 'blocks', order: 1 },
};

/** In the child: makes the model, prunes it, and prints what was measured. */
async function point({ folder, rates, deviceName, ...shape }) {
  const intermediate = 4 * Math.round((shape.hidden * 2.6875) / 4);
  const heads = Math.max(1, shape.hidden / 32);
  await makeModel(folder, { ...shape, intermediate, heads, vocabulary: 512 });
  const tokenIds = JSON.parse(readFileSync(join(folder, 'tokens.json'), 'utf8')).calibration;
  const device = Device.open(deviceName);
  const options = { model: folder, calibration: { tokenIds }, sparsity: 0.7, precision: 'float32' };
  const startPeak = process.resourceUsage().maxRSS * 1024;
  const runs = [await pruned(device, rates, options), await pruned(device, rates, options)];
  const run = runs.reduce((a, b) => (b.total < a.total ? b : a));
  const residentPeak = process.resourceUsage().maxRSS * 1024;
  const { total, waiting, phases, memoryPeak } = run;
  process.stdout.write(JSON.stringify({ total, waiting, phases, memoryPeak, startPeak, residentPeak }));
}

export async function measureGrowth(device, rates, { isQuick, say, add }) {
  const { times, ...base } = isQuick ? quick : full;
  const scratch = mkdtempSync(join(tmpdir(), 'alps-growth-'));
  try {
    for (const [axis, { field, order }] of Object.entries(axes)) {
      for (const factor of times) {
        const shape = { ...base, [field]: factor * base[field] };
        const folder = join(scratch, `${axis}-${factor}`);
        const argument = JSON.stringify({ ...shape, folder, rates, deviceName: device.name });
        const child = spawnSync(process.execPath, [fileURLToPath(import.meta.url), argument], { encoding: 'utf8' });
        rmSync(folder, { recursive: true, force: true });
        if (child.status !== 0) throw new Error(`growth: ${axis} × ${factor}: ${child.stderr}`);
        const { total, waiting, phases, memoryPeak, startPeak, residentPeak } = JSON.parse(child.stdout);
        const sum = (name) => Object.values(phases).reduce((all, phase) => all + phase[name], 0);
        const result = {
          id: `growth ${axis} x${factor}`,
          part: 'growth',
          axis,
          factor,
          order,
          shape,
          median: total,
          best: total,
          repeats: 2,
          waiting,
          flops: sum('flops'),
          bytes: sum('bytes'),
          share: sum('atCeiling') / total,
          phases,
          memoryPeak,
          startPeak,
          residentPeak,
        };
        add(result);
        say(`${result.id}: ${total.toFixed(0)} ms, ${(residentPeak / 2 ** 20).toFixed(0)} MiB`);
      }
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await point(JSON.parse(process.argv[2]));
