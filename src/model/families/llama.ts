import { ConfigReader, type DecoderConfig } from '../config.js';
import type { Family, LinearRole } from './family.js';

/** Llama 1-3, SmolLM2, Mistral, Qwen2, Qwen3: RMSNorm, rotary positions, grouped queries, gated MLP. */
export const llamaFamily: Family = {
  modelTypes: ['llama', 'mistral', 'qwen2', 'qwen3'],

  readConfig(config): DecoderConfig {
    const reader = new ConfigReader(config);
    const modelType = String(config.model_type);
    const hidden = reader.size('hidden_size');
    const layers = reader.size('num_hidden_layers');
    const heads = reader.size('num_attention_heads');
    const qwen3 = modelType === 'qwen3';
    const llama = modelType === 'llama';
    const llamaBias = (llama || qwen3) && reader.flag('attention_bias', false);
    return {
      modelType,
      hidden,
      layers,
      heads,
      intermediate: reader.size('intermediate_size'),
      kvHeads: reader.size('num_key_value_heads', heads),
      headDim: reader.size('head_dim', qwen3 ? 128 : Math.floor(hidden / heads)),
      vocabulary: reader.size('vocab_size'),
      maxPositions: reader.size('max_position_embeddings', 2048),
      normEps: reader.positive('rms_norm_eps', 1e-6),
      activation: reader.activation('hidden_act', 'silu'),
      ...reader.rope(),
      attentionBias: modelType === 'qwen2' || llamaBias,
      attentionOutputBias: llamaBias,
      mlpBias: llama && reader.flag('mlp_bias', false),
      qkNorm: qwen3,
      slidingWindow: slidingWindows(reader, modelType, layers),
      tiedEmbeddings: reader.flag('tie_word_embeddings', false),
    };
  },

  names: {
    embedding: 'model.embed_tokens',
    finalNorm: 'model.norm',
    head: 'lm_head',
    attentionNorm: (layer) => `model.layers.${layer}.input_layernorm`,
    mlpNorm: (layer) => `model.layers.${layer}.post_attention_layernorm`,
    queryNorm: (layer) => `model.layers.${layer}.self_attn.q_norm`,
    keyNorm: (layer) => `model.layers.${layer}.self_attn.k_norm`,
    linear: (layer, role) => `model.layers.${layer}.${linears[role]}`,
  },
};

const linears: Record<LinearRole, string> = {
  q: 'self_attn.q_proj',
  k: 'self_attn.k_proj',
  v: 'self_attn.v_proj',
  o: 'self_attn.o_proj',
  gate: 'mlp.gate_proj',
  up: 'mlp.up_proj',
  down: 'mlp.down_proj',
};

/** Mistral: every layer. Qwen: the layers from `max_window_layers` on, or those that `layer_types` names. Llama: none. */
function slidingWindows(reader: ConfigReader, modelType: string, layers: number): number[] {
  const { sliding_window: window, layer_types: types, use_sliding_window: used } = reader.config;
  if (modelType === 'llama' || typeof window !== 'number' || (modelType !== 'mistral' && used !== true)) {
    return new Array(layers).fill(0);
  }
  const size = reader.size('sliding_window');
  if (Array.isArray(types))
    return Array.from({ length: layers }, (_, i) => (types[i] === 'sliding_attention' ? size : 0));
  const first = modelType === 'mistral' ? 0 : Number(reader.config.max_window_layers ?? 28);
  return Array.from({ length: layers }, (_, i) => (i >= first ? size : 0));
}
