import { ConfigReader, type DecoderConfig, usualConfig } from '../config.js';
import { type Family, onePrefix } from './family.js';

/** OPT: learned positions, LayerNorm, biases, ReLU; norms before (most) or after (350M), whose embeddings are narrower. */
export const optFamily: Family = {
  modelTypes: ['opt'],

  read(raw, has) {
    const reader = new ConfigReader(raw);
    const config = readConfig(reader);
    const prefix = onePrefix(has, '.embed_tokens.weight', ['model.decoder', 'decoder']);
    const projects = config.embeddingSize !== config.hidden;
    const lastNorm = config.normPlacement === 'pre' && !reader.flag('_remove_final_layer_norm', false);
    const bias = reader.flag('enable_bias', true);
    return {
      config,
      embedding: `${prefix}.embed_tokens`,
      positions: { name: `${prefix}.embed_positions`, offset: 2, rows: config.maxPositions + 2 },
      ...(projects ? { projectIn: `${prefix}.project_in`, projectOut: `${prefix}.project_out` } : {}),
      ...(lastNorm ? { finalNorm: `${prefix}.final_layer_norm` } : {}),
      head: 'lm_head',
      block(layer) {
        const at = (name: string) => `${prefix}.layers.${layer}.${name}`;
        return {
          attentionNorm: at('self_attn_layer_norm'),
          mlpNorm: at('final_layer_norm'),
          attention: [
            [
              { name: at('self_attn.q_proj'), parts: ['q'], bias },
              { name: at('self_attn.k_proj'), parts: ['k'], bias },
              { name: at('self_attn.v_proj'), parts: ['v'], bias },
            ],
            { name: at('self_attn.out_proj'), parts: ['o'], bias },
          ],
          mlp: [[[{ name: at('fc1'), parts: ['up'], bias }], { name: at('fc2'), parts: ['down'], bias }]],
        };
      },
    };
  },
};

function readConfig(reader: ConfigReader): DecoderConfig {
  const hidden = reader.size('hidden_size');
  const heads = reader.size('num_attention_heads');
  const layers = reader.count('num_hidden_layers');
  return {
    ...usualConfig,
    modelType: 'opt',
    hidden,
    layers,
    heads,
    kvHeads: heads,
    headDim: Math.floor(hidden / heads),
    intermediate: reader.size('ffn_dim'),
    vocabulary: reader.size('vocab_size'),
    maxPositions: reader.size('max_position_embeddings', 2048),
    norm: 'layer',
    normEps: 1e-5,
    normPlacement: reader.flag('do_layer_norm_before', true) ? 'pre' : 'post',
    mlp: 'plain',
    activation: reader.activation('activation_function', 'relu'),
    ropes: [],
    ropeOf: [],
    attentionScale: new Array(layers).fill(1 / Math.sqrt(Math.floor(hidden / heads))),
    slidingWindow: new Array(layers).fill(0),
    embeddingSize: reader.size('word_embed_proj_dim', hidden),
    tiedEmbeddings: reader.flag('tie_word_embeddings', true),
  };
}
