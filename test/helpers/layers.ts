import { normal, product } from './numbers.js';

/** What `pruneLayer` takes of a layer, and its sizes, which an object made of it by `...` has not. */
export class TestLayer {
  readonly weight: Float32Array<ArrayBuffer>;
  readonly gram: Float32Array<ArrayBuffer>;
  readonly activations: Float32Array<ArrayBuffer>;
  readonly shape: [outputs: number, inputs: number];

  constructor(given: Pick<TestLayer, 'weight' | 'gram' | 'activations' | 'shape'>) {
    this.weight = given.weight;
    this.gram = given.gram;
    this.activations = given.activations;
    this.shape = given.shape;
  }

  /** Outputs. */
  get m(): number {
    return this.shape[0];
  }

  /** Inputs. */
  get n(): number {
    return this.shape[1];
  }
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
  return new TestLayer({ weight, gram, activations, shape: [m, n] });
}
