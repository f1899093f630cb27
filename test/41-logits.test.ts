import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { SafetensorsFile } from '../src/checkpoint/safetensors.js';
import { Device } from '../src/device/device.js';
import { evaluatePerplexity } from '../src/evaluate.js';
import { perplexity } from '../src/evaluation/perplexity.js';
import { Activations } from '../src/model/block-run.js';
import { DecoderModel, type Precision } from '../src/model/decoder.js';
import { eachLogits } from '../src/model/head.js';
import { instructionSets, threadCounts } from './helpers/numbers.js';

// Tiny random models of each type and the logits of transformers in float32; made by scripts/make_model_fixtures.py.
const models = fileURLToPath(new URL('fixtures/models/', import.meta.url));

async function expectation(name: string) {
  const file = await SafetensorsFile.open(join(models, name, 'expected.safetensors'));
  const [tokens, logits, value] = await Promise.all(
    ['tokens', 'logits', 'perplexity'].map((tensor) => file.read(tensor)),
  );
  const [windows, length] = file.tensors.get('tokens')!.shape as [number, number];
  await file.close();
  return {
    input: { tokens: new Uint32Array(tokens!.buffer as ArrayBuffer), windows, length },
    logits: new Float32Array(logits!.buffer as ArrayBuffer),
    perplexity: new Float64Array(value!.buffer as ArrayBuffer)[0]!,
  };
}

/** All logits of a model, and its perplexity. */
async function outputs(name: string, device: Device, precision: Precision = 'float32') {
  const { input } = await expectation(name);
  const checkpoint = await Checkpoint.open(join(models, name));
  using stream = device.stream();
  const model = DecoderModel.open(checkpoint, stream, precision);
  using activations = await Activations.create(model, input);
  for (let layer = 0; layer < model.config.layers; layer++) {
    const block = await model.loadBlock(layer);
    await activations.run(block);
    block.dispose();
  }
  const logits = new Float32Array(input.tokens.length * model.config.vocabulary);
  await eachLogits(model, activations, async (piece, first) => {
    logits.set(await stream.read(piece), first * model.config.vocabulary);
  });
  const result = await perplexity(model, input);
  await checkpoint.close();
  return { logits, perplexity: result.perplexity };
}

function largestDifference(actual: Float32Array, expected: Float32Array): number {
  let [worst, largest] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    if (!Number.isFinite(actual[i])) return Number.NaN;
    worst = Math.max(worst, Math.abs(actual[i]! - expected[i]!));
    largest = Math.max(largest, Math.abs(expected[i]!));
  }
  return worst / largest;
}

describe('logits against transformers', () => {
  const names = readdirSync(models);

  test('every type is there', () => {
    expect(names).toEqual(
      expect.arrayContaining(['llama-plain', 'llama3-rope', 'mistral-window', 'qwen2-bias', 'qwen3-qknorm']),
    );
  });

  describe.each(instructionSets())('%s', (isa) => {
    test.each(names)('%s: within 1e-4 of the largest, perplexity within 1e-4', async (name) => {
      const expected = await expectation(name);
      const actual = await outputs(name, Device.open('cpu', { isa }));
      expect(largestDifference(actual.logits, expected.logits)).toBeLessThan(1e-4);
      expect(Math.abs(actual.perplexity / expected.perplexity - 1)).toBeLessThan(1e-4);
    });
  });

  // With experts, rounding sends a few tokens to others than in float32: nine of ten must be near.
  test.each(names)('%s in bfloat16: within 0.1 of the largest', async (name) => {
    const { logits } = await outputs(name, Device.open('cpu'), 'bfloat16');
    const { logits: expected, input } = await expectation(name);
    if (!/moe|mixtral/.test(name)) {
      expect(largestDifference(logits, expected)).toBeLessThan(0.1);
      return;
    }
    const vocabulary = logits.length / input.tokens.length;
    const largest = expected.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    let near = 0;
    for (let start = 0; start < logits.length; start += vocabulary) {
      let worst = 0;
      for (let i = start; i < start + vocabulary; i++) worst = Math.max(worst, Math.abs(logits[i]! - expected[i]!));
      near += Number(worst < 0.1 * largest);
    }
    expect(near).toBeGreaterThan((0.9 * logits.length) / vocabulary);
  });

  test('equal bits for any number of threads', async () => {
    const runs = await Promise.all(
      threadCounts.map((threads) => outputs('llama-plain', Device.open('cpu', { threads }))),
    );
    for (const run of runs)
      expect(Buffer.compare(Buffer.from(run.logits.buffer), Buffer.from(runs[0]!.logits.buffer))).toBe(0);
  });
});

const bundled = fileURLToPath(new URL('../models/union-4m/', import.meta.url));

/** Made by scripts/train_bundled_model.py with transformers, in float32, from the checkpoint that is bundled. */
interface Reference {
  token_ids: number[];
  last_logits: number[];
  held_out: { seqlen: number; tokens: number; windows: number; scored_tokens: number; perplexity: number };
}

describe('the bundled model against transformers', () => {
  const reference = JSON.parse(readFileSync(join(bundled, 'reference.json'), 'utf8')) as Reference;

  test('the logits after 64 tokens, within 1e-4 of the largest', async () => {
    const checkpoint = await Checkpoint.open(bundled);
    using stream = Device.open('cpu').stream();
    const model = DecoderModel.open(checkpoint, stream);
    const tokens = Uint32Array.from(reference.token_ids);
    using activations = await Activations.create(model, { tokens, windows: 1, length: tokens.length });
    for (let layer = 0; layer < model.config.layers; layer++) {
      const block = await model.loadBlock(layer);
      await activations.run(block);
      block.dispose();
    }
    let last = new Float32Array();
    await eachLogits(model, activations, async (piece) => {
      last = (await stream.read(piece)).slice(-model.config.vocabulary);
    });
    await checkpoint.close();
    expect(largestDifference(last, Float32Array.from(reference.last_logits))).toBeLessThan(1e-4);
  });

  test('the perplexity of the held-out speeches, within 1e-4: tokenizer, windows and model together', async () => {
    const expected = reference.held_out;
    const text = join(bundled, 'held-out.txt.gz');
    const result = await evaluatePerplexity({ model: bundled, text, length: expected.seqlen });
    expect(result).toMatchObject({
      windows: expected.windows,
      length: expected.seqlen,
      scoredTokens: expected.scored_tokens,
    });
    expect(Math.abs(result.perplexity / expected.perplexity - 1)).toBeLessThan(1e-4);
  });
});
