import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { type NewTensor, writeSafetensors } from '../src/checkpoint/safetensors.js';
import { evaluatePerplexity } from '../src/evaluate.js';
import { prune } from '../src/prune.js';
import { failure, temporaryFolder } from './helpers/safetensors-files.js';

// One tensor under two names, as checkpoints have it where a model ties two of its parts and the writer stored both.

const fixture = (name: string) => fileURLToPath(new URL(`fixtures/models/${name}`, import.meta.url));
const tokenIds = Array.from({ length: 2 }, (_, w) => Array.from({ length: 12 }, (_, i) => 5 * w + 3 * i));

/** A copy of a model in which some tensors stand a second time. */
async function doubled(
  name: string,
  alias: (name: string) => string | undefined,
  config: object = {},
): Promise<string> {
  const folder = join(await temporaryFolder(), 'model');
  await cp(fixture(name), folder, { recursive: true });
  const source = await Checkpoint.open(fixture(name));
  const tensors: NewTensor[] = [];
  for (const { name, dtype, shape } of source.tensors.values()) {
    const bytes = await source.read(name);
    const second = alias(name);
    tensors.push({ name, dtype, shape, bytes });
    if (second !== undefined) tensors.push({ name: second, dtype, shape, bytes });
  }
  await source.close();
  await writeSafetensors(join(folder, 'model.safetensors'), tensors);
  const path = join(folder, 'config.json');
  await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, 'utf8')), ...config }));
  return folder;
}

const pruned = async (model: string) => {
  const out = `${model}-pruned`;
  await prune({ model, out, sparsity: 0.5, method: 'wanda', calibration: { tokenIds } });
  return out;
};

async function bytesOf(folder: string): Promise<Map<string, string>> {
  const checkpoint = await Checkpoint.open(folder);
  const all = new Map<string, string>();
  for (const name of checkpoint.tensors.keys())
    all.set(name, Buffer.from(await checkpoint.read(name)).toString('base64'));
  await checkpoint.close();
  return all;
}

test.each([
  ['llama-plain', 'model.embed_tokens.weight', 'lm_head.weight', true],
  ['qwen2-bias', 'model.embed_tokens.weight', 'lm_head.weight', false],
  ['gpt2', 'transformer.wte.weight', 'lm_head.weight', false],
  ['opt-pre', 'model.decoder.embed_tokens.weight', 'lm_head.weight', false],
])(
  '%s: tied embeddings stored as %s and %s: both are kept to the byte, all else as without',
  async (name, table, head, hasHead) => {
    const config = { tie_word_embeddings: true };
    const alias = (tensor: string) => (tensor === table ? head : undefined);
    const once = await doubled(name, () => undefined, config);
    const twice = hasHead ? once : await doubled(name, alias, config);
    const [before, after] = [await bytesOf(twice), await bytesOf(await pruned(twice))];
    expect(after.get(table)).toBe(before.get(table));
    expect(after.get(head)).toBe(before.get(head));
    expect([...after.keys()]).toEqual([...before.keys()]);
    if (hasHead) return;
    expect(after.get(head)).toBe(after.get(table));
    const single = await bytesOf(await pruned(once));
    for (const [tensor, bytes] of single) expect(after.get(tensor)).toBe(bytes);
    const text = `${once}-ids.json`;
    await writeFile(text, JSON.stringify(tokenIds));
    const [one, two] = [
      await evaluatePerplexity({ model: once, text }),
      await evaluatePerplexity({ model: twice, text }),
    ];
    expect(two.perplexity).toBe(one.perplexity);
  },
);

test('a head of its own counts, whatever config.json says of ties', async () => {
  const folder = await doubled('llama-plain', () => undefined, { tie_word_embeddings: true });
  const text = `${folder}-ids.json`;
  await writeFile(text, JSON.stringify(tokenIds));
  const [told, plain] = await Promise.all(
    [folder, fixture('llama-plain')].map((model) => evaluatePerplexity({ model, text })),
  );
  expect(told!.perplexity).toBe(plain!.perplexity);
});

test.each([
  ['gpt2', /^transformer\./, ''],
  ['opt-pre', /^model\.decoder\./, 'decoder.'],
])('%s: all tensors under two names are refused, as only one of them would be pruned', async (name, prefix, other) => {
  const folder = await doubled(name, (tensor) => (prefix.test(tensor) ? tensor.replace(prefix, other) : undefined));
  expect(await failure(pruned(folder))).toMatchObject({
    code: 'INVALID_CHECKPOINT',
    message: expect.stringContaining('under two names'),
  });
});

test('a copy of a matrix under a name that the model does not have is kept as it is', async () => {
  const matrix = 'model.layers.0.mlp.up_proj.weight';
  const folder = await doubled('llama-plain', (name) => (name === matrix ? 'teacher.up_proj.weight' : undefined));
  const [before, after] = [await bytesOf(folder), await bytesOf(await pruned(folder))];
  expect(after.get('teacher.up_proj.weight')).toBe(before.get(matrix));
  expect(after.get(matrix)).not.toBe(before.get(matrix));
});
