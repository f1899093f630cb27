import type { Rope } from './config.js';

/**
 * Angles of rotary positions, in float32 steps as transformers computes them.
 * @param positions tokens of a window; `longrope` chooses its factors by it
 * @returns cosine and sine, row-major [positions, dimensions / 2]
 */
export function ropeTables(rope: Rope, positions: number) {
  const { theta, dimensions, scaling } = rope;
  const half = dimensions / 2;
  const frequencies = Float32Array.from({ length: half }, (_, i) => {
    const exponent = Math.fround((2 * i) / dimensions);
    return scaled(1 / Math.fround(theta ** exponent), i, rope, positions);
  });
  const amplitude = 'attentionFactor' in scaling ? scaling.attentionFactor : 1;
  const cosine = new Float32Array(positions * half);
  const sine = new Float32Array(positions * half);
  for (let t = 0; t < positions; t++) {
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(t * frequencies[i]!);
      cosine[t * half + i] = Math.cos(angle) * amplitude;
      sine[t * half + i] = Math.sin(angle) * amplitude;
    }
  }
  return { cosine, sine, half };
}

/** A frequency after the model's rope scaling. */
function scaled(frequency: number, index: number, { scaling }: Rope, positions: number): number {
  if (scaling.type === 'none') return frequency;
  if (scaling.type === 'linear') return frequency / scaling.factor;
  if (scaling.type === 'longrope') {
    const factors = positions > scaling.originalPositions ? scaling.long : scaling.short;
    return frequency / factors[index]!;
  }
  if (scaling.type === 'yarn') {
    const { factor, low, high } = scaling;
    const ramp = Math.min(Math.max((index - low) / (high - low), 0), 1);
    return (frequency / factor) * ramp + frequency * (1 - ramp);
  }
  // Llama 3: long wavelengths are stretched, short ones stay, those between are blended.
  const wavelength = (2 * Math.PI) / frequency;
  const { factor, lowFrequency, highFrequency, originalPositions } = scaling;
  if (wavelength > originalPositions / lowFrequency) return frequency / factor;
  if (wavelength < originalPositions / highFrequency) return frequency;
  const smooth = (originalPositions / wavelength - lowFrequency) / (highFrequency - lowFrequency);
  return ((1 - smooth) * frequency) / factor + smooth * frequency;
}
