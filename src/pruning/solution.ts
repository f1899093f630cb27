import type { Device } from '../device/device.js';
import type { Tensor } from '../device/tensor.js';

/** One check of the support during ADMM. */
export interface TracePoint {
  /** ADMM iterations done. */
  iteration: number;
  /** ρ of the iterations since the last check. */
  rho: number;
  /** Number of entries of the support that differ from the last check, over all layers that are solved together. */
  changed: number;
  /** With `traceErrors`: relative error (with ridge) of stopping here, before a refit, over all these layers. */
  error?: number;
}

/** What a method makes of a group of layers. */
export interface Solution {
  /** The pruned weights, float32 [m, n], in the layers' own units. The caller disposes both. */
  weight: Tensor<'float32'>;
  /** 1 where a weight stays, uint8 [m, n]. */
  mask: Tensor<'uint8'>;
  /** ADMM iterations; 0 for methods without. */
  iterations: number;
  refineIterations: number;
  trace: TracePoint[];
  /** Whether the iteration cap was reached before the support settled. */
  capped: boolean;
  /** Milliseconds; phases overlap with nothing. `admm` is the whole search of the methods without ADMM. */
  time: { factorise: number; admm: number; refine: number };
}

/** Memory for the pruned weights and their mask: both, or an error and none. The caller disposes both. */
export function solutionTensors(device: Device, shape: readonly number[]): Pick<Solution, 'weight' | 'mask'> {
  const weight = device.empty('float32', shape, 'the pruned weights');
  try {
    return { weight, mask: device.empty('uint8', shape, 'the support') };
  } catch (error) {
    weight.dispose();
    throw error;
  }
}
