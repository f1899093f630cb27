import { ConfigReader } from '../config.js';
import type { Family } from './family.js';
import { llamaBlock, llamaNames, readLlamaConfig } from './llama.js';

/** Phi-3: Llama with q, k and v in one matrix, and gate and up in one. */
export const phi3Family: Family = {
  modelTypes: ['phi3'],

  read(raw, has) {
    const config = readLlamaConfig(new ConfigReader(raw));
    const { at, ...names } = llamaNames(has);
    return {
      config,
      ...names,
      block(layer) {
        const block = llamaBlock(at(layer), config);
        return {
          ...block,
          attention: [[{ name: `${at(layer)}.self_attn.qkv_proj`, parts: ['q', 'k', 'v'] }], block.attention[1]],
          mlp: [[[{ name: `${at(layer)}.mlp.gate_up_proj`, parts: ['gate', 'up'] }], block.mlp[0]![1]]],
        };
      },
    };
  },
};
