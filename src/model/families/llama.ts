import { ConfigReader, type DecoderConfig, usualConfig } from '../config.js';
import type { BlockSpec, Family } from './family.js';

/** Llama 1-3, SmolLM2, Mistral, Qwen2, Qwen3: RMSNorm, rotary positions, grouped queries, gated MLP. */
export const llamaFamily: Family = {
  modelTypes: ['llama', 'mistral', 'qwen2', 'qwen3'],

  read(raw) {
    const reader = new ConfigReader(raw);
    const config = readLlamaConfig(reader);
    const { modelType } = config;
    const bias = (modelType === 'llama' || modelType === 'qwen3') && reader.flag('attention_bias', false);
    const mlpBias = modelType === 'llama' && reader.flag('mlp_bias', false);
    return {
      config,
      ...llamaNames,
      block: (layer) => llamaBlock(layer, config, { qkv: modelType === 'qwen2' || bias, o: bias, mlp: mlpBias }),
    };
  },
};

/** The names outside the blocks. */
export const llamaNames = { embedding: 'model.embed_tokens', finalNorm: 'model.norm', head: 'lm_head' } as const;

interface Defaults {
  maxPositions?: number;
  kvHeads?: number;
  normEps?: number;
  theta?: number;
  /** Of the sliding window, where one is used. */
  window?: number;
}

const qwen: Defaults = { maxPositions: 32768, window: 4096 };
/** What transformers takes for a missing key, where that is not what it takes for Llama. */
const defaultsOf: Partial<Record<string, Defaults>> = {
  mistral: { maxPositions: 131072, kvHeads: 8, window: 4096 },
  mixtral: { maxPositions: 131072, kvHeads: 8, normEps: 1e-5, theta: 1e6 },
  qwen2: qwen,
  qwen3: qwen,
  qwen3_moe: qwen,
  phi3: { maxPositions: 4096, normEps: 1e-5 },
};

/** What decoders in the manner of Llama have in their config.json. */
export function readLlamaConfig(reader: ConfigReader): DecoderConfig {
  const modelType = String(reader.config.model_type);
  const hidden = reader.size('hidden_size');
  const layers = reader.count('num_hidden_layers');
  const heads = reader.size('num_attention_heads');
  const { maxPositions = 2048, kvHeads = heads, normEps = 1e-6, theta = 1e4, window } = defaultsOf[modelType] ?? {};
  const qwen3 = modelType.startsWith('qwen3');
  const headDim = reader.size('head_dim', qwen3 ? 128 : Math.floor(hidden / heads));
  return {
    ...usualConfig,
    modelType,
    hidden,
    layers,
    heads,
    headDim,
    intermediate: reader.size('intermediate_size'),
    kvHeads: reader.size('num_key_value_heads', kvHeads),
    vocabulary: reader.size('vocab_size'),
    maxPositions: reader.size('max_position_embeddings', maxPositions),
    normEps: reader.positive('rms_norm_eps', normEps),
    activation: reader.activation('hidden_act', 'silu'),
    ropes: [reader.rope(headDim, { theta })],
    ropeOf: new Array(layers).fill(0),
    attentionScale: new Array(layers).fill(1 / Math.sqrt(headDim)),
    qkNorm: qwen3,
    slidingWindow: slidingWindows(reader, modelType, layers, window),
    embeddingSize: hidden,
    tiedEmbeddings: reader.flag('tie_word_embeddings', false),
  };
}

/** The tensors of a block in the manner of Llama. */
export function llamaBlock(
  layer: number,
  { qkNorm }: DecoderConfig,
  bias: { qkv?: boolean; o?: boolean; mlp?: boolean } = {},
): BlockSpec {
  const at = (name: string) => `model.layers.${layer}.${name}`;
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

/** Mistral, Mixtral: every layer. Qwen: the layers from `max_window_layers` on, or those that `layer_types` names. Llama: none. */
function slidingWindows(reader: ConfigReader, modelType: string, layers: number, usual: number | undefined): number[] {
  const everywhere = modelType === 'mistral' || modelType === 'mixtral' || modelType === 'phi3';
  const used = everywhere || (modelType.startsWith('qwen') && reader.config.use_sliding_window === true);
  if (!used) return new Array(layers).fill(0);
  const first = everywhere ? 0 : Number(reader.config.max_window_layers ?? 28);
  return reader.slidingWindows(layers, (layer) => layer >= first, usual);
}
