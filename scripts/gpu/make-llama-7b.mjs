// node scripts/gpu/make-llama-7b.mjs FOLDER [--blocks 32] [--hidden 4096] [--intermediate 11008] [--heads 32] [--vocabulary 32000]
//   [--windows 128] [--length 2048] [--seed 1]
// A checkpoint of LLaMA2-7B's shapes with random weights (bfloat16, a file a block), and token windows for it (tokens.json). Weights are normal
// with standard deviation 0.02; the embedding's columns have uneven sizes and tokens come in Zipf's proportions with repeats, so that
// the Gram matrices are not multiples of the identity.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { writeSafetensors } from '../../lib/index.js';

export const defaults = {
  blocks: 32,
  hidden: 4096,
  intermediate: 11008,
  heads: 32,
  vocabulary: 32000,
  windows: 128,
  length: 2048,
  seed: 1,
};

/** xorshift32; a state of its own each. */
function generator(seed) {
  let state = Math.imul(seed, 0x9e3779b9) | 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}

function bfloat16(value) {
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0];
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** 2^16 equally likely values of a normal distribution, as bfloat16. Rows of random matrices are drawn from it. */
function normalTable(deviation) {
  const next = generator(12345);
  return Uint16Array.from({ length: 1 << 16 }, () => {
    const [u, v] = [(next() + 1) / 4294967297, next() / 4294967296];
    return bfloat16(deviation * Math.sqrt(-2 * Math.log(u)) * Math.cos(2 * Math.PI * v));
  });
}

export async function makeModel(folder, options = {}) {
  const { blocks, hidden, intermediate, heads, vocabulary, windows, length, seed } = { ...defaults, ...options };
  mkdirSync(folder, { recursive: true });
  const table = normalTable(0.02);
  const next = generator(seed);
  const random = (name, rows, columns) => {
    const values = new Uint16Array(rows * columns);
    for (let i = 0; i + 1 < values.length; i += 2) {
      const bits = next();
      values[i] = table[bits & 0xffff];
      values[i + 1] = table[bits >>> 16];
    }
    return { name, dtype: 'BF16', shape: [rows, columns], bytes: new Uint8Array(values.buffer) };
  };
  const ones = (name) => {
    const values = new Uint16Array(hidden).fill(bfloat16(1));
    return { name, dtype: 'BF16', shape: [hidden], bytes: new Uint8Array(values.buffer) };
  };
  const files = {};
  let total = 0;
  const write = async (file, tensors) => {
    await writeSafetensors(join(folder, file), tensors);
    for (const { name, bytes } of tensors) {
      files[name] = file;
      total += bytes.length;
    }
  };

  for (let block = 0; block < blocks; block++) {
    const name = (part) => `model.layers.${block}.${part}.weight`;
    await write(`block-${block}.safetensors`, [
      ...['q', 'k', 'v', 'o'].map((part) => random(name(`self_attn.${part}_proj`), hidden, hidden)),
      random(name('mlp.gate_proj'), intermediate, hidden),
      random(name('mlp.up_proj'), intermediate, hidden),
      random(name('mlp.down_proj'), hidden, intermediate),
      ones(name('input_layernorm')),
      ones(name('post_attention_layernorm')),
    ]);
  }
  const embedding = random('model.embed_tokens.weight', vocabulary, hidden);
  // Some features are larger than others, by up to 2^5: an exponent's worth of bits.
  const values = new Uint16Array(embedding.bytes.buffer);
  const louder = Uint16Array.from({ length: hidden }, () => (next() % 16 === 0 ? 2 + (next() % 4) : next() % 2));
  for (let i = 0; i < values.length; i++) if ((values[i] & 0x7fff) !== 0) values[i] += louder[i % hidden] << 7;
  await write('rest.safetensors', [embedding, random('lm_head.weight', vocabulary, hidden), ones('model.norm.weight')]);

  const config = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_size: hidden,
    intermediate_size: intermediate,
    num_attention_heads: heads,
    num_key_value_heads: heads,
    num_hidden_layers: blocks,
    vocab_size: vocabulary,
    max_position_embeddings: Math.max(length, 2048),
    hidden_act: 'silu',
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    tie_word_embeddings: false,
    torch_dtype: 'bfloat16',
  };
  writeFileSync(join(folder, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
  const index = { metadata: { total_size: total }, weight_map: files };
  writeFileSync(join(folder, 'model.safetensors.index.json'), `${JSON.stringify(index)}\n`);
  writeFileSync(
    join(folder, 'tokens.json'),
    JSON.stringify({ calibration: tokens({ windows, length, vocabulary, next }) }),
  );
  return { folder, bytes: total };
}

/** Ids in Zipf's proportions; one in four follows from the id before it, one in four is one of the sixteen before it. */
function tokens({ windows, length, vocabulary, next }) {
  const zipf = () => Math.min(vocabulary - 1, Math.floor(vocabulary ** (next() / 4294967296)) - 1);
  return Array.from({ length: windows }, () => {
    const ids = [zipf()];
    while (ids.length < length) {
      const kind = next() & 3;
      if (kind === 0) ids.push((ids.at(-1) * 31 + 7) % vocabulary);
      else if (kind === 1) ids.push(ids.at(-1 - (next() % Math.min(16, ids.length))));
      else ids.push(zipf());
    }
    return ids;
  });
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: Object.fromEntries(Object.keys(defaults).map((name) => [name, { type: 'string' }])),
  });
  if (positionals.length !== 1) throw new Error('node scripts/gpu/make-llama-7b.mjs FOLDER');
  const began = performance.now();
  const numbers = Object.fromEntries(Object.entries(values).map(([name, value]) => [name, Number(value)]));
  const { bytes } = await makeModel(positionals[0], numbers);
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  process.stdout.write(`${positionals[0]}: ${(bytes / 1e9).toFixed(2)} GB in ${seconds} s\n`);
}
