import { ConfigReader, type ExpertsConfig } from '../config.js';
import type { BlockSpec, Family } from './family.js';
import { llamaBlock, llamaNames, readLlamaConfig } from './llama.js';

/** Mixtral and Qwen3-MoE: Llama with a mixture of experts for an MLP; one tensor an expert, or all experts in one. */
export const expertsFamily: Family = {
  modelTypes: ['mixtral', 'qwen3_moe'],

  read(raw, has) {
    const reader = new ConfigReader(raw);
    const mixtral = raw.model_type === 'mixtral';
    const config = readLlamaConfig(reader);
    const experts = mixtral ? mixtralExperts(reader, config.layers) : qwenExperts(reader, config.layers);
    const bias = !mixtral && reader.flag('attention_bias', false);
    const { at, ...names } = llamaNames(has);
    return {
      config: { ...config, experts },
      ...names,
      block(layer) {
        const block = llamaBlock(at(layer), config, { qkv: bias, o: bias });
        if (!experts.layers[layer]) return block;
        const old = `${at(layer)}.block_sparse_moe`;
        const moe = mixtral && has(`${old}.gate.weight`) ? old : `${at(layer)}.mlp`;
        return { ...block, router: `${moe}.gate`, mlp: expertSpecs(moe, experts.count, has) };
      },
    };
  },
};

function mixtralExperts(reader: ConfigReader, layers: number): ExpertsConfig {
  return {
    count: reader.count(reader.config.num_experts == null ? 'num_local_experts' : 'num_experts', 8),
    perToken: reader.size('num_experts_per_tok', 2),
    intermediate: reader.size('intermediate_size'),
    normalise: true,
    layers: new Array(layers).fill(true),
  };
}

function qwenExperts(reader: ConfigReader, layers: number): ExpertsConfig {
  const step = reader.size('decoder_sparse_step', 1);
  const dense = new Set(reader.layerNumbers('mlp_only_layers'));
  return {
    count: reader.count(reader.config.num_experts === undefined ? 'num_local_experts' : 'num_experts', 128),
    perToken: reader.size('num_experts_per_tok', 8),
    intermediate: reader.size('moe_intermediate_size', 768),
    normalise: reader.flag('norm_topk_prob', false),
    layers: Array.from({ length: layers }, (_, layer) => !dense.has(layer) && (layer + 1) % step === 0),
  };
}

function expertSpecs(at: string, count: number, has: (tensor: string) => boolean): BlockSpec['mlp'] {
  const fused = has(`${at}.experts.gate_up_proj`);
  // Mixtral calls them w1 (gate), w3 (up) and w2 (down).
  const [gate, up, down] = has(`${at}.experts.0.w1.weight`)
    ? ['w1', 'w3', 'w2']
    : ['gate_proj', 'up_proj', 'down_proj'];
  return Array.from({ length: count }, (_, index) => {
    if (fused) {
      const expert = { index, count };
      return [
        [{ name: `${at}.experts.gate_up_proj`, parts: ['gate', 'up'], expert }],
        { name: `${at}.experts.down_proj`, parts: ['down'], expert },
      ];
    }
    const name = (layer: string | undefined) => `${at}.experts.${index}.${layer}`;
    return [
      [
        { name: name(gate), parts: ['gate'] },
        { name: name(up), parts: ['up'] },
      ],
      { name: name(down), parts: ['down'] },
    ];
  });
}
