// node scripts/gpu/llama-7b.mjs --folder FOLDER [--device cuda] [--blocks 3] [--sparsity 0.7] [--profile] [--out FILE] and the sizes of
// make-llama-7b.mjs
// Makes a model of LLaMA2-7B's shapes and prunes it end to end. What all blocks (--of, 32) take is stated as the time of one (the median of those after
// the first) times their number, plus what comes before and after the blocks. --profile prunes once more, waiting for every op, and says where time goes.
import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { profile } from '../../lib/device/profile.js';
import { Device, prune } from '../../lib/index.js';
import { defaults, makeModel } from './make-llama-7b.mjs';

const { values: options } = parseArgs({
  options: {
    folder: { type: 'string' },
    device: { type: 'string', default: 'cuda' },
    sparsity: { type: 'string', default: '0.7' },
    of: { type: 'string', default: '32' },
    profile: { type: 'boolean', default: false },
    out: { type: 'string' },
    ...Object.fromEntries(Object.keys(defaults).map((name) => [name, { type: 'string' }])),
  },
});
if (!options.folder) throw new Error('--folder: where the model is made');
const of = Number(options.of);
const given = Object.keys(defaults).filter((name) => options[name] !== undefined);
const shape = { ...defaults, blocks: 3, ...Object.fromEntries(given.map((name) => [name, Number(options[name])])) };
const name = options.device === 'cuda' ? 'cuda:0' : options.device;
const model = join(options.folder, `blocks-${shape.blocks}`);
const out = join(options.folder, 'pruned');
const say = (text) => process.stdout.write(`${text}\n`);
const median = (numbers) => [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)];

const device = Device.open(name);
const began = performance.now();
if (!existsSync(join(model, 'tokens.json'))) {
  const { bytes } = await makeModel(model, shape);
  say(`made ${(bytes / 1e9).toFixed(2)} GB in ${((performance.now() - began) / 1000).toFixed(1)} s`);
}
const blocks = [];
const report = { shape, of, device: device.info().details, sparsity: Number(options.sparsity), blocks };
const save = () => {
  const after = blocks.length > 1 ? blocks.slice(1) : blocks;
  if (blocks.length > 0) report.millisecondsPerBlock = median(after.map(({ milliseconds }) => milliseconds));
  report.memoryPeak = device.info().memoryPeak;
  if (options.out) writeFileSync(options.out, `${JSON.stringify(report, null, 1)}\n`);
};
device.resetPeak();
const settings = {
  model,
  out,
  sparsity: report.sparsity,
  device: name,
  overwrite: true,
  calibration: { text: join(model, 'tokens.json'), windows: shape.windows, length: shape.length },
};
const result = await prune({
  ...settings,
  onEvent: (event) => {
    if (event.type === 'start') report.precision = event.precision;
    if (event.type === 'calibration') report.tokens = event.tokens;
    if (event.type !== 'block') return;
    blocks.push({ block: event.block, milliseconds: event.milliseconds, phases: event.phases });
    const phases = Object.entries(event.phases).map(([phase, ms]) => `${phase} ${(ms / 1000).toFixed(2)} s`);
    say(`block ${event.block}: ${(event.milliseconds / 1000).toFixed(2)} s (${phases.join(', ')})`);
    save();
  },
});
save();
const blockTime = blocks.reduce((sum, { milliseconds }) => sum + milliseconds, 0);
report.milliseconds = result.milliseconds;
report.meanError = result.meanError;
report.achievedSparsity = result.sparsity;
report.allBlocksSeconds = (report.millisecondsPerBlock * of + result.milliseconds.total - blockTime) / 1000;
save();
say(
  `${report.millisecondsPerBlock.toFixed(0)} ms a block with ${report.tokens} tokens; ${of} blocks would take ` +
    `${report.allBlocksSeconds.toFixed(0)} s; peak of the device's memory ${(report.memoryPeak / 2 ** 30).toFixed(1)} GiB`,
);
if (options.profile) {
  profile(device, true);
  await prune(settings);
  const entries = profile(device, false).sort((a, b) => b.milliseconds - a.milliseconds);
  const phases = new Map(entries.map(({ phase }) => [phase, entries.filter((entry) => entry.phase === phase)]));
  const sum = (list) => list.reduce((total, { milliseconds }) => total + milliseconds, 0);
  report.profile = entries;
  save();
  say(`${sum(entries).toFixed(0)} ms in all, one op at a time`);
  for (const [phase, list] of phases) say(`${phase}: ${sum(list).toFixed(0)} ms`);
  for (const { phase, op, calls, milliseconds, arguments: args } of entries.slice(0, 60))
    say(`${milliseconds.toFixed(1)} ms, ${calls} × ${phase} ${op} ${args.join(' ')}`);
}
rmSync(out, { recursive: true, force: true });
