import { normal, product } from './numbers.js';

export interface TestLayer {
  weight: Float32Array<ArrayBuffer>;
  gram: Float32Array<ArrayBuffer>;
  activations: Float32Array<ArrayBuffer>;
  m: number;
  n: number;
  shape: [number, number];
}

/** A layer with correlated inputs of uneven size, as real ones have. */
export function syntheticLayer(m: number, n: number, options: { tokens?: number; seed?: number } = {}): TestLayer {
  const { tokens = 4 * n, seed = 1 } = options;
  const noise = normal(seed, tokens * n);
  const factors = normal(seed + 1, tokens * 4);
  const loadings = normal(seed + 2, 4 * n);
  const activations = new Float32Array(tokens * n);
  for (let t = 0; t < tokens; t++) {
    for (let j = 0; j < n; j++) {
      let value = noise[t * n + j]!;
      for (let f = 0; f < 4; f++) value += factors[t * 4 + f]! * loadings[f * n + j]!;
      activations[t * n + j] = value * (1 + (j % 7));
    }
  }
  const weight = normal(seed + 3, m * n);
  const gram = Float32Array.from(product(activations, activations, n, n, tokens, true));
  return { weight, gram, activations, m, n, shape: [m, n] };
}
