import type { DecoderConfig } from './config.js';

/**
 * Angles of rotary positions, in float32 steps as transformers computes them.
 * @returns cosine and sine, row-major [positions, headDim / 2]
 */
export function ropeTables(config: DecoderConfig, positions: number) {
  const half = Math.floor(config.headDim / 2);
  const frequencies = Float32Array.from({ length: half }, (_, i) => {
    const exponent = Math.fround((2 * i) / config.headDim);
    return scaled(1 / Math.fround(config.ropeTheta ** exponent), config);
  });
  const cosine = new Float32Array(positions * half);
  const sine = new Float32Array(positions * half);
  for (let t = 0; t < positions; t++) {
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(t * frequencies[i]!);
      cosine[t * half + i] = Math.cos(angle);
      sine[t * half + i] = Math.sin(angle);
    }
  }
  return { cosine, sine, half };
}

/** A frequency after the model's rope scaling. */
function scaled(frequency: number, { ropeScaling: scaling }: DecoderConfig): number {
  if (scaling.type === 'none') return frequency;
  if (scaling.type === 'linear') return frequency / scaling.factor;
  // Llama 3: long wavelengths are stretched, short ones stay, those between are blended.
  const wavelength = (2 * Math.PI) / frequency;
  const { factor, lowFrequency, highFrequency, originalPositions } = scaling;
  if (wavelength < originalPositions / highFrequency) return frequency;
  if (wavelength > originalPositions / lowFrequency) return frequency / factor;
  const smooth = (originalPositions / wavelength - lowFrequency) / (highFrequency - lowFrequency);
  return ((1 - smooth) * frequency) / factor + smooth * frequency;
}
