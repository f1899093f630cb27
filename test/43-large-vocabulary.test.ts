import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { type NewTensor, writeSafetensors } from '../src/checkpoint/safetensors.js';
import { Device } from '../src/device/device.js';
import { evaluateWindows } from '../src/evaluate.js';
import { prune } from '../src/prune.js';
import { normal, random } from './helpers/numbers.js';
import { temporaryFolder } from './helpers/safetensors-files.js';

// A vocabulary of 256,000 tokens: the logits of all tokens at once would take far more memory than the model.

const [vocabulary, hidden, inner, windows, length] = [256_000, 16, 24, 2, 64];
const table = 4 * vocabulary * hidden;
const allLogits = 4 * vocabulary * windows * length;
const next = random(3);
const tokens = Uint32Array.from({ length: windows * length }, (_, i) =>
  i % 5 === 0 ? vocabulary - 1 - (i % 7) : Math.floor(next() * vocabulary),
);

/** @param adds whether attention and MLP add something to the residual stream */
async function makeModel(adds: boolean) {
  let seed = 10;
  const matrix = (name: string, rows: number, columns: number, scale: number): NewTensor & { values: Float32Array } => {
    const values = normal(seed++, rows * columns).map((x) => scale * x);
    return { name, dtype: 'F32', shape: [rows, columns], bytes: new Uint8Array(values.buffer), values };
  };
  const norm = (name: string): NewTensor => {
    const values = new Float32Array(hidden).fill(1);
    return { name, dtype: 'F32', shape: [hidden], bytes: new Uint8Array(values.buffer) };
  };
  const at = 'model.layers.0';
  const embedding = matrix('model.embed_tokens.weight', vocabulary, hidden, 1);
  const head = matrix('lm_head.weight', vocabulary, hidden, 0.5);
  const out = adds ? 0.2 : 0;
  const tensors = [
    embedding,
    head,
    norm('model.norm.weight'),
    norm(`${at}.input_layernorm.weight`),
    norm(`${at}.post_attention_layernorm.weight`),
    ...['q', 'k', 'v'].map((part) => matrix(`${at}.self_attn.${part}_proj.weight`, hidden, hidden, 0.2)),
    matrix(`${at}.self_attn.o_proj.weight`, hidden, hidden, out),
    matrix(`${at}.mlp.gate_proj.weight`, inner, hidden, 0.2),
    matrix(`${at}.mlp.up_proj.weight`, inner, hidden, 0.2),
    matrix(`${at}.mlp.down_proj.weight`, hidden, inner, out),
  ];
  const folder = join(await temporaryFolder(), 'model');
  await mkdir(folder);
  await writeSafetensors(
    join(folder, 'model.safetensors'),
    tensors.map(({ name, dtype, shape, bytes }) => ({ name, dtype, shape, bytes })),
  );
  const config = {
    model_type: 'llama',
    hidden_size: hidden,
    intermediate_size: inner,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    vocab_size: vocabulary,
    max_position_embeddings: length,
    rms_norm_eps: 1e-6,
  };
  await writeFile(join(folder, 'config.json'), JSON.stringify(config));
  return { folder, embedding: embedding.values, head: head.values };
}

/** Mean negative log-likelihood in float64 of the model whose blocks add nothing: embedding, norm, head, softmax. */
function referenceNll(embedding: Float32Array, head: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < tokens.length; i++) {
    if ((i + 1) % length === 0) continue;
    const x = Float64Array.from(embedding.subarray(tokens[i]! * hidden, (tokens[i]! + 1) * hidden));
    const scale = 1 / Math.sqrt(x.reduce((a, b) => a + b * b, 0) / hidden + 1e-6);
    let total = 0;
    let target = 0;
    for (let token = 0; token < vocabulary; token++) {
      let logit = 0;
      for (let j = 0; j < hidden; j++) logit += x[j]! * scale * head[token * hidden + j]!;
      total += Math.exp(logit);
      if (token === tokens[i + 1]) target = logit;
    }
    sum += Math.log(total) - target;
  }
  return sum / (windows * (length - 1));
}

const input = { tokens, windows, length, hash: '', given: true } as const;

test('perplexity is that of float64, in memory of the tables and a piece of the logits', async () => {
  const { folder, embedding, head } = await makeModel(false);
  const checkpoint = await Checkpoint.open(folder);
  const limit = 2 * table + (80 << 20);
  expect(allLogits).toBeGreaterThan(limit);
  const result = await evaluateWindows(checkpoint, input, { device: 'cpu', memoryLimit: limit });
  await checkpoint.close();
  expect(Math.abs(result.meanNll - referenceNll(embedding, head))).toBeLessThan(1e-5);
});

test('prune: the tables are copied, in memory of one table and the calibration', async () => {
  const { folder } = await makeModel(true);
  const out = `${folder}-pruned`;
  const tokenIds = Array.from({ length: windows }, (_, w) => tokens.slice(w * length, (w + 1) * length));
  const device = Device.open('cpu', { memoryLimit: table + (8 << 20) });
  const report = await prune({ model: folder, out, sparsity: 0.5, calibration: { tokenIds }, device });
  expect(report.layers).toHaveLength(7);
  expect(report.meanError).toBeLessThan(0.5);
  const [before, after] = [await Checkpoint.open(folder), await Checkpoint.open(out)];
  for (const name of ['model.embed_tokens.weight', 'lm_head.weight'])
    expect(Buffer.compare(await before.read(name), await after.read(name))).toBe(0);
  await Promise.all([before.close(), after.close()]);
});
