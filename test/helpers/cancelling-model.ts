import { cp } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Checkpoint } from '../../src/checkpoint/folder.js';
import { writeSafetensors } from '../../src/checkpoint/safetensors.js';

const model = fileURLToPath(new URL('../../models/union-4m', import.meta.url));

/** The bundled model with one pair of huge weights that cancel for as long as both are there. */
export async function cancellingModel(folder: string): Promise<void> {
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
  for (let token = 0; token < vocabulary; token++) embedding[token * hidden + 1] = embedding[token * hidden]!;
  const attention = bits('model.layers.0.self_attn.o_proj.weight');
  attention.copyWithin(hidden, 0, hidden);
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
