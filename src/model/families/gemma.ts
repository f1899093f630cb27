import { AlpsError } from '../../errors.js';
import { ConfigReader, type DecoderConfig, type Rope, usualConfig } from '../config.js';
import type { Family } from './family.js';
import { llamaBlock, llamaNames } from './llama.js';

/** Gemma 2 and 3 (text): norms before and after, their weights offset by 1, soft caps, sliding windows on most layers. */
export const gemmaFamily: Family = {
  modelTypes: ['gemma2', 'gemma3_text'],

  read(raw, has) {
    const reader = new ConfigReader(raw);
    const config = readConfig(reader);
    const bias = reader.flag('attention_bias', false);
    const { at, ...names } = llamaNames(has);
    return {
      config,
      ...names,
      block(layer) {
        return {
          ...llamaBlock(at(layer), config, { qkv: bias, o: bias }),
          attentionOutNorm: `${at(layer)}.post_attention_layernorm`,
          mlpNorm: `${at(layer)}.pre_feedforward_layernorm`,
          mlpOutNorm: `${at(layer)}.post_feedforward_layernorm`,
        };
      },
    };
  },
};

function readConfig(reader: ConfigReader): DecoderConfig {
  const modelType = String(reader.config.model_type);
  const third = modelType === 'gemma3_text';
  if (reader.flag('use_bidirectional_attention', false))
    throw new AlpsError('UNSUPPORTED_MODEL', 'config.json: use_bidirectional_attention is not supported');
  const hidden = reader.size('hidden_size');
  const layers = reader.count('num_hidden_layers');
  const headDim = reader.size('head_dim', 256);
  const heads = reader.size('num_attention_heads');
  const maxPositions = reader.size('max_position_embeddings', third ? 131072 : 8192);
  const every = third ? reader.size('sliding_window_pattern', 6) : 2;
  const slidingWindow = reader.slidingWindows(layers, (layer) => (layer + 1) % every !== 0, {
    usual: 4096,
    types: reader.names('layer_types'),
  });
  const cap = (key: string, usual: number | null) =>
    (reader.config[key] === undefined ? usual : reader.config[key]) === null ? 0 : reader.positive(key, usual ?? 0);
  return {
    ...usualConfig,
    modelType,
    hidden,
    layers,
    heads,
    headDim,
    intermediate: reader.size('intermediate_size'),
    kvHeads: reader.size('num_key_value_heads', heads),
    vocabulary: reader.size('vocab_size'),
    maxPositions,
    normEps: reader.positive('rms_norm_eps', 1e-6),
    normOffset: 1,
    normPlacement: 'sandwich',
    activation: reader.activation('hidden_activation', 'gelu_pytorch_tanh'),
    ropes: third ? ropesOfThird(reader, headDim, maxPositions) : [reader.rope(headDim, { maxPositions })],
    ropeOf: slidingWindow.map((window) => (third && window > 0 ? 1 : 0)),
    attentionScale: new Array(layers).fill(1 / Math.sqrt(reader.positive('query_pre_attn_scalar', 256))),
    attentionSoftCap: third ? 0 : cap('attn_logit_softcapping', 50),
    logitSoftCap: cap('final_logit_softcapping', third ? null : 30),
    qkNorm: third,
    slidingWindow,
    embeddingScale: Math.sqrt(hidden),
    embeddingSize: hidden,
    tiedEmbeddings: reader.flag('tie_word_embeddings', true),
  };
}

/** Gemma 3: one for the layers that see all tokens, and one that turns faster for those with a sliding window. */
function ropesOfThird(reader: ConfigReader, headDim: number, maxPositions: number): Rope[] {
  const kinds = reader.object('rope_parameters');
  const global = { ...reader.object('full_attention', kinds), ...reader.object('rope_scaling') };
  const local = reader.object('sliding_attention', kinds);
  return [
    reader.rope(headDim, { maxPositions, theta: 1e6, parameters: global }),
    reader.rope(headDim, { maxPositions, theta: 1e4, thetaKey: 'rope_local_base_freq', parameters: local }),
  ];
}
