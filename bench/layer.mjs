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

/** XᵀX of the activations, by the device, in pieces of tokens. */
export async function gramOf(device, activations, n) {
  const stream = device.stream();
  const gram = device.tensor('float32', [n, n]);
  const piece = 4096;
  for (let at = 0; at < activations.length / n; at += piece) {
    const rows = Math.min(piece, activations.length / n - at);
    const x = stream.upload('float32', [rows, n], activations.subarray(at * n, (at + rows) * n));
    stream.gramAccumulate(x, gram);
    await stream.sync();
    x.dispose();
  }
  stream.symmetrize(gram);
  const numbers = await stream.read(gram);
  gram.dispose();
  stream.dispose();
  return numbers;
}

/** What DSnoT needs: mean and variance of each input, all tokens taken as one window. */
export function momentsOf(activations, n) {
  const tokens = activations.length / n;
  const [sum, squares] = [new Float64Array(n), new Float64Array(n)];
  for (let i = 0; i < activations.length; i++) {
    sum[i % n] += activations[i];
    squares[i % n] += activations[i] ** 2;
  }
  return {
    inputMean: Float32Array.from(sum, (value) => value / tokens),
    inputVariance: Float32Array.from(squares, (value, j) => value / tokens - (sum[j] / tokens) ** 2),
    windowLength: tokens,
  };
}

/** A synthetic layer as pruneLayer takes it, with the moments for DSnoT. */
export async function problemOf(device, outputs, inputs) {
  const { weight, shape, activations } = layer(outputs, inputs);
  return {
    activations,
    problem: { weight, shape, gram: await gramOf(device, activations, inputs), ...momentsOf(activations, inputs) },
  };
}

/** "0.5" or "2:4" as options of pruneLayer. */
export function patternOf(text) {
  const [keep, of] = text.split(':').map(Number);
  return of ? { pattern: { keep, of } } : { sparsity: Number(text) };
}
export const titleOf = (text) => (text.includes(':') ? text : `${Math.round(100 * Number(text))} %`);
