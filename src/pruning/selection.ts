import type { Stream } from '../device/stream.js';
import type { Tensor } from '../device/tensor.js';

/** Where a method that finds a mask puts it, with the weights on it: float32 and uint8 [m, n]. */
export interface Selection {
  weight: Tensor<'float32'>;
  mask: Tensor<'uint8'>;
}

/** The dense weights on the mask, +0 off it. */
export function keepOnMask(stream: Stream, dense: Tensor<'float32'>, { weight, mask }: Selection): void {
  stream.copy(dense, weight);
  stream.applyMask(weight, mask);
}
