import type { DecoderConfig } from '../config.js';

/** Names of one block's linear layers, in the order of a decoder's dataflow. */
export type LinearRole = 'q' | 'k' | 'v' | 'o' | 'gate' | 'up' | 'down';

/** What a model family needs to say about itself; see docs/architecture.md, "A new family". */
export interface Family {
  /** Values of config.json's `model_type`. */
  modelTypes: readonly string[];
  readConfig(config: Readonly<Record<string, unknown>>): DecoderConfig;
  /** Tensor names without ".weight" and ".bias". */
  names: {
    embedding: string;
    finalNorm: string;
    head: string;
    attentionNorm(layer: number): string;
    mlpNorm(layer: number): string;
    queryNorm(layer: number): string;
    keyNorm(layer: number): string;
    linear(layer: number, role: LinearRole): string;
  };
}
