// node bench/whole-model.mjs '{"model": ..., "tokens": "tokens.json", "blocks": 4, "options": {...}}'
//
// One run of prune() in a process of its own, for bench/peers.mjs: seconds, peak memory, and the perplexity of a whole model, as JSON.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Device, evaluatePerplexity, prune } from '../lib/index.js';

const { model, tokens, blocks, options } = JSON.parse(process.argv[2]);
const scratch = mkdtempSync(join(tmpdir(), 'alps-whole-model-'));
try {
  const controller = new AbortController();
  const out = join(scratch, 'pruned');
  const calibration = { tokenIds: JSON.parse(readFileSync(tokens, 'utf8')).calibration };
  let ofBlocks = 0;
  const began = performance.now();
  await prune({
    model,
    out,
    calibration,
    ...options,
    device: Device.open('cpu'),
    signal: controller.signal,
    onEvent: (event) => {
      if (event.type !== 'block') return;
      ofBlocks += event.milliseconds;
      if (event.block + 1 === blocks) controller.abort();
    },
  }).catch((error) => {
    if (error.code !== 'ABORTED') throw error;
  });
  // Of the whole command, or of the first blocks.
  const seconds = (blocks ? ofBlocks : performance.now() - began) / 1000;
  const peakBytes = process.resourceUsage().maxRSS * 1024;
  const evaluated = blocks ? {} : await evaluatePerplexity({ model: out, text: tokens, device: 'cpu' });
  process.stdout.write(JSON.stringify({ seconds, peakBytes, perplexity: evaluated.perplexity }));
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
