import { cp } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Checkpoint } from '../../src/checkpoint/folder.js';
import { writeSafetensors } from '../../src/checkpoint/safetensors.js';

const model = fileURLToPath(new URL('../../models/union-4m', import.meta.url));

/**
 * The bundled model with a pair of huge weights in two layers that cancel for as long as both are there.
 * @param harmless token ids below this do not reach them
 */
export async function cancellingModel(folder: string, harmless = 0): Promise<void> {
  await cp(model, folder, { recursive: true });
  const source = await Checkpoint.open(model);
  const tensors = await Promise.all(
    [...source.tensors.values()].map(async ({ name, dtype, shape }) => {
      const bytes = await source.read(name);
      return { name, dtype, shape, bytes };
    }),
  );
  await source.close();
  const bits = (name: string) => new Uint16Array(tensors.find((tensor) => tensor.name === name)!.bytes.buffer);
  const [hidden, vocabulary] = [256, 3072];
  const embedding = bits('model.embed_tokens.weight');
  for (let token = 0; token < vocabulary; token++) {
    if (token < harmless) embedding[token * hidden] = 0;
    embedding[token * hidden + 1] = embedding[token * hidden]!;
  }
  const attention = bits('model.layers.0.self_attn.o_proj.weight');
  attention.fill(0, 0, 2 * hidden);
  const norm = bits('model.layers.0.post_attention_layernorm.weight');
  norm[1] = norm[0]!;
  for (const name of ['gate', 'up']) {
    const row = bits(`model.layers.0.mlp.${name}_proj.weight`).subarray(5 * hidden, 6 * hidden);
    row.fill(0);
    row[0] = 0x6280; // 2^70, whose products are exact
    row[1] = 0xe280;
  }
  await writeSafetensors(join(folder, 'model.safetensors'), tensors);
}
