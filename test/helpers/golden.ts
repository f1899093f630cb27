import { fileURLToPath } from 'node:url';
import { SafetensorsFile } from '../../src/checkpoint/safetensors.js';
import { fromBf16 } from './numbers.js';

/** Layers of SmolLM2-135M with the Gram matrices of real text; made by scripts/make_golden.py. */
export const goldenFolder = fileURLToPath(new URL('../fixtures/golden/', import.meta.url));

/** A layer's weights and Gram matrix. */
export async function readGoldenLayer(file: string) {
  const tensors = await SafetensorsFile.open(goldenFolder + file);
  const bytes = await tensors.read('weight');
  const info = tensors.tensors.get('weight')!;
  const weight =
    info.dtype === 'BF16'
      ? fromBf16(new Uint16Array(bytes.buffer as ArrayBuffer))
      : new Float32Array(bytes.buffer as ArrayBuffer);
  const upper = new Float32Array((await tensors.read('gram_upper')).buffer as ArrayBuffer);
  await tensors.close();
  const [m, n] = info.shape as [number, number];
  const gram = new Float32Array(n * n);
  for (let i = 0, at = 0; i < n; i++) for (let j = i; j < n; j++) gram[i * n + j] = gram[j * n + i] = upper[at++]!;
  return { weight, gram, shape: [m, n] as [number, number] };
}
