// The part `layer` of npm run bench: pruneLayer on synthetic layers, by method and pattern, with the device's time by phase.
import { profile } from '../lib/device/profile.js';
import { pruneLayer } from '../lib/index.js';
import { patternOf, problemOf } from './layer.mjs';
import { phasesOf } from './phases.mjs';
import { watchWaiting } from './waiting.mjs';

export const methods = ['alps', 'sparsegpt', 'wanda', 'dsnot', 'magnitude'];
const full = {
  shapes: ['576x576', '576x1536', '1536x576', '1024x1024', '2048x2048', '4096x1024'],
  patterns: ['0.5', '0.7', '0.9', '2:4'],
  repeats: 3,
  seconds: 6,
};
const quick = { shapes: ['128x96', '256x256'], patterns: ['0.7', '2:4'], repeats: 2, seconds: 1 };

/** At most `repeats` runs after one that is not counted, in about `seconds`; at least one. */
async function runsOf(run, { repeats, seconds }) {
  await run();
  const runs = [];
  for (const began = performance.now(); runs.length < repeats; ) {
    if (runs.length > 0 && performance.now() - began > 1000 * seconds) break;
    runs.push(await run());
  }
  return runs.sort((a, b) => a.milliseconds - b.milliseconds);
}

export async function measureLayers(device, rates, { isQuick, say, add, shapes }) {
  const settings = isQuick ? quick : full;
  for (const shape of shapes?.split(',') ?? settings.shapes) {
    const [outputs, inputs] = shape.split('x').map(Number);
    const { problem } = await problemOf(device, outputs, inputs);
    for (const method of methods) {
      for (const pattern of settings.patterns) {
        const options = { ...problem, ...patternOf(pattern), method, device };
        const runs = await runsOf(async () => {
          const waiting = watchWaiting();
          profile(device, true);
          const began = performance.now();
          const { error, iterations } = await pruneLayer(options);
          const milliseconds = performance.now() - began;
          return {
            milliseconds,
            error,
            iterations,
            waiting: waiting(),
            phases: phasesOf(profile(device, false), rates),
          };
        }, settings);
        const { milliseconds: best, error, iterations, waiting, phases } = runs[0];
        const total = (name) => Object.values(phases).reduce((sum, phase) => sum + phase[name], 0);
        const result = {
          id: `layer ${shape} ${method} ${pattern}`,
          part: 'layer',
          shape,
          method,
          pattern,
          median: runs[Math.floor((runs.length - 1) / 2)].milliseconds,
          best,
          repeats: runs.length,
          waiting,
          flops: total('flops'),
          bytes: total('bytes'),
          share: total('atCeiling') / best,
          error,
          iterations,
          phases,
        };
        add(result);
        say(`${result.id}: ${best.toFixed(1)} ms, ${(100 * result.share).toFixed(0)} % of the ceiling`);
      }
    }
  }
}
