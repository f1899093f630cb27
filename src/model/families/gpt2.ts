import { ConfigReader, usualConfig } from '../config.js';
import { type Family, onePrefix } from './family.js';

/** GPT-2: learned positions, LayerNorm, biases, GELU; its matrices are stored [inputs, outputs], q, k and v in one. */
export const gpt2Family: Family = {
  modelTypes: ['gpt2'],

  read(raw, has) {
    const reader = new ConfigReader(raw);
    const either = (alias: string, key: string) => (raw[alias] == null ? key : alias);
    const hidden = reader.size(either('hidden_size', 'n_embd'), 768);
    const heads = reader.size(either('num_attention_heads', 'n_head'), 12);
    const layers = reader.count(either('num_hidden_layers', 'n_layer'), 12);
    const maxPositions = reader.size(either('max_position_embeddings', 'n_positions'), 1024);
    const headDim = Math.floor(hidden / heads);
    const scale = reader.flag('scale_attn_weights', true) ? 1 / Math.sqrt(headDim) : 1;
    const byLayer = reader.flag('scale_attn_by_inverse_layer_idx', false);
    // The published checkpoint was saved without the outer module.
    const prefix = onePrefix(has, 'wte.weight', ['transformer.', '']);
    const linear = { bias: true, transposed: true };
    return {
      config: {
        ...usualConfig,
        modelType: 'gpt2',
        hidden,
        layers,
        heads,
        kvHeads: heads,
        headDim,
        maxPositions,
        intermediate: reader.size('n_inner', 4 * hidden),
        vocabulary: reader.size('vocab_size', 50257),
        norm: 'layer',
        normEps: reader.positive('layer_norm_epsilon', 1e-5),
        mlp: 'plain',
        activation: reader.activation('activation_function', 'gelu_new'),
        ropes: [],
        ropeOf: [],
        attentionScale: Array.from({ length: layers }, (_, layer) => scale / (byLayer ? layer + 1 : 1)),
        slidingWindow: new Array(layers).fill(0),
        embeddingSize: hidden,
        tiedEmbeddings: reader.flag('tie_word_embeddings', true),
      },
      embedding: `${prefix}wte`,
      positions: { name: `${prefix}wpe`, offset: 0, rows: maxPositions },
      finalNorm: `${prefix}ln_f`,
      head: 'lm_head',
      block(layer) {
        const at = (name: string) => `${prefix}h.${layer}.${name}`;
        return {
          attentionNorm: at('ln_1'),
          mlpNorm: at('ln_2'),
          attention: [
            [{ name: at('attn.c_attn'), parts: ['q', 'k', 'v'], ...linear }],
            { name: at('attn.c_proj'), parts: ['o'], ...linear },
          ],
          mlp: [
            [
              [{ name: at('mlp.c_fc'), parts: ['up'], ...linear }],
              { name: at('mlp.c_proj'), parts: ['down'], ...linear },
            ],
          ],
        };
      },
    };
  },
};
