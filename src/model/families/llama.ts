import { ConfigReader, type DecoderConfig, type RopeOptions, usualConfig } from '../config.js';
import { type BlockSpec, type Family, onePrefix } from './family.js';

/** Llama 1-3, SmolLM2, Mistral, Qwen2, Qwen3: RMSNorm, rotary positions, grouped queries, gated MLP. */
export const llamaFamily: Family = {
  modelTypes: ['llama', 'mistral', 'qwen2', 'qwen3'],

  read(raw, has) {
    const reader = new ConfigReader(raw);
    const config = readLlamaConfig(reader);
    const { modelType } = config;
    const bias = (modelType === 'llama' || modelType === 'qwen3') && reader.flag('attention_bias', false);
    const mlpBias = modelType === 'llama' && reader.flag('mlp_bias', false);
    const { at, ...names } = llamaNames(has);
    return {
      config,
      ...names,
      block: (layer) => llamaBlock(at(layer), config, { qkv: modelType === 'qwen2' || bias, o: bias, mlp: mlpBias }),
    };
  },
};

/** The names outside the blocks, and what those in a block begin with; files of the inner module alone have no "model.". */
export function llamaNames(has: (tensor: string) => boolean) {
  const prefix = onePrefix(has, 'embed_tokens.weight', ['model.', '']);
  return {
    embedding: `${prefix}embed_tokens`,
    finalNorm: `${prefix}norm`,
    head: 'lm_head',
    at: (layer: number) => `${prefix}layers.${layer}`,
  };
}

interface Defaults {
  maxPositions?: number;
  kvHeads?: number;
  normEps?: number;
  theta?: number;
  /** Of the sliding window, where one is used. */
  window?: number;
  rope?: Partial<RopeOptions>;
}

const qwen: Defaults = { maxPositions: 32768, window: 4096 };
/** What transformers takes for a missing key, where that is not what it takes for Llama. */
const defaultsOf: Partial<Record<string, Defaults>> = {
  mistral: { maxPositions: 131072, kvHeads: 8, window: 4096 },
  mixtral: { maxPositions: 131072, kvHeads: 8, normEps: 1e-5, theta: 1e6 },
  qwen2: qwen,
  qwen3: qwen,
  qwen3_moe: qwen,
  phi3: {
    maxPositions: 4096,
    normEps: 1e-5,
    rope: { partial: true, originalPositions: 4096, yarnIsLongrope: true },
  },
};

/** What decoders in the manner of Llama have in their config.json. */
export function readLlamaConfig(reader: ConfigReader): DecoderConfig {
  const modelType = String(reader.config.model_type);
  const hidden = reader.size('hidden_size');
  const layers = reader.count('num_hidden_layers');
  const heads = reader.size('num_attention_heads');
  const usual = defaultsOf[modelType] ?? {};
  const maxPositions = reader.size('max_position_embeddings', usual.maxPositions ?? 2048);
  const headDim = reader.size('head_dim', modelType === 'qwen3' ? 128 : Math.floor(hidden / heads));
  return {
    ...usualConfig,
    modelType,
    hidden,
    layers,
    heads,
    headDim,
    intermediate: reader.size('intermediate_size'),
    kvHeads: reader.size('num_key_value_heads', usual.kvHeads ?? heads),
    vocabulary: reader.size('vocab_size'),
    maxPositions,
    normEps: reader.positive('rms_norm_eps', usual.normEps ?? 1e-6),
    activation: reader.activation('hidden_act', 'silu'),
    ropes: [reader.rope(headDim, { maxPositions, theta: usual.theta, ...usual.rope })],
    ropeOf: new Array(layers).fill(0),
    attentionScale: new Array(layers).fill(1 / Math.sqrt(headDim)),
    qkNorm: modelType.startsWith('qwen3'),
    slidingWindow: slidingWindows(reader, modelType, layers, usual.window),
    embeddingSize: hidden,
    tiedEmbeddings: reader.flag('tie_word_embeddings', false),
  };
}

/**
 * The tensors of a block in the manner of Llama.
 * @param prefix of their names
 */
export function llamaBlock(
  prefix: string,
  { qkNorm }: DecoderConfig,
  bias: { qkv?: boolean; o?: boolean; mlp?: boolean } = {},
): BlockSpec {
  const at = (name: string) => `${prefix}.${name}`;
  return {
    attentionNorm: at('input_layernorm'),
    mlpNorm: at('post_attention_layernorm'),
    ...(qkNorm ? { queryNorm: at('self_attn.q_norm'), keyNorm: at('self_attn.k_norm') } : {}),
    attention: [
      [
        { name: at('self_attn.q_proj'), parts: ['q'], bias: bias.qkv },
        { name: at('self_attn.k_proj'), parts: ['k'], bias: bias.qkv },
        { name: at('self_attn.v_proj'), parts: ['v'], bias: bias.qkv },
      ],
      { name: at('self_attn.o_proj'), parts: ['o'], bias: bias.o },
    ],
    mlp: [
      [
        [
          { name: at('mlp.gate_proj'), parts: ['gate'], bias: bias.mlp },
          { name: at('mlp.up_proj'), parts: ['up'], bias: bias.mlp },
        ],
        { name: at('mlp.down_proj'), parts: ['down'], bias: bias.mlp },
      ],
    ],
  };
}

/**
 * Mistral, Mixtral, Phi-3 and, where it uses windows, Qwen3-MoE: every layer. Qwen2, Qwen3: the layers from `max_window_layers` on.
 * Llama: none. In files of Mistral, Qwen2 and Qwen3 `layer_types` goes before that.
 */
function slidingWindows(reader: ConfigReader, modelType: string, layers: number, usual: number | undefined): number[] {
  const isQwen = modelType.startsWith('qwen');
  const used = isQwen ? reader.config.use_sliding_window === true : modelType !== 'llama';
  if (!used) return new Array(layers).fill(0);
  const first = isQwen && modelType !== 'qwen3_moe' ? Number(reader.config.max_window_layers ?? 28) : 0;
  const types = ['mistral', 'qwen2', 'qwen3'].includes(modelType) ? reader.names('layer_types') : undefined;
  return reader.slidingWindows(layers, (layer) => layer >= first, { usual, types });
}
