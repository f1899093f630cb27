// node examples/server/make-layer.mjs FILE [OUTPUTS INPUTS]: a layer to try the server with.
import { writeSafetensors } from 'alps-prune';

const [file = 'layer.safetensors', outputs = 256, inputs = 192] = process.argv.slice(2);
const [m, n] = [Number(outputs), Number(inputs)];
const random = () => Math.random() - 0.5;
const matrix = (name, rows) => {
  const values = Float32Array.from({ length: rows * n }, random);
  return { name, dtype: 'F32', shape: [rows, n], bytes: new Uint8Array(values.buffer) };
};
await writeSafetensors(file, [matrix('weight', m), matrix('activations', 2 * n)]);
