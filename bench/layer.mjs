// Synthetic layers for the benchmarks.

/** Inputs with correlations, so that the Gram matrix is not a multiple of the identity. */
export function layer(outputs, inputs) {
  let state = 12345;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32 - 0.5;
  };
  const tokens = 2 * inputs;
  const activations = new Float32Array(tokens * inputs);
  for (let t = 0; t < tokens; t++) {
    let carried = 0;
    for (let j = 0; j < inputs; j++) {
      carried = 0.7 * carried + random();
      activations[t * inputs + j] = carried * (1 + (j % 5));
    }
  }
  return { weight: Float32Array.from({ length: outputs * inputs }, random), shape: [outputs, inputs], activations };
}
