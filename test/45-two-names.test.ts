import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { type NewTensor, writeSafetensors } from '../src/checkpoint/safetensors.js';
import { evaluatePerplexity } from '../src/evaluate.js';
import { prune } from '../src/prune.js';
import { failure, temporaryFolder } from './helpers/safetensors-files.js';

// One tensor under two names, as checkpoints have it where a model ties two of its parts and the writer stored both; or under another.

const fixture = (name: string) => fileURLToPath(new URL(`fixtures/models/${name}`, import.meta.url));
const tokenIds = Array.from({ length: 2 }, (_, w) => Array.from({ length: 12 }, (_, i) => 5 * w + 3 * i));

/** A copy of a model in which each tensor stands under the names that `namesOf` gives it. */
async function renamed(name: string, namesOf: (name: string) => string[], config: object = {}): Promise<string> {
  const folder = join(await temporaryFolder(), 'model');
  await cp(fixture(name), folder, { recursive: true });
  const source = await Checkpoint.open(fixture(name));
  const tensors: NewTensor[] = [];
  for (const info of source.tensors.values()) {
    const { dtype, shape } = info;
    const bytes = await source.read(info.name);
    for (const name of namesOf(info.name)) tensors.push({ name, dtype, shape, bytes });
  }
  await source.close();
  await writeSafetensors(join(folder, 'model.safetensors'), tensors);
  const path = join(folder, 'config.json');
  await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, 'utf8')), ...config }));
  return folder;
}

/** A copy of a model in which some tensors stand a second time. */
const doubled = (name: string, alias: (name: string) => string | undefined, config: object = {}) =>
  renamed(name, (tensor) => [tensor, alias(tensor)].filter((one) => one !== undefined), config);

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
  ['llama-plain', /^model\./, ''],
  ['mixtral', /^model\./, ''],
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

test.each(['llama-plain', 'phi3-fused', 'gemma3', 'mixtral', 'qwen3-moe-window'])(
  '%s without "model.": the same model, whose names stay',
  async (name) => {
    const inner = (tensor: string) => tensor.replace(/^model\./, '');
    const folder = await renamed(name, (tensor) => [inner(tensor)]);
    const [plain, after] = [await renamed(name, (tensor) => [tensor]), await bytesOf(await pruned(folder))];
    for (const [tensor, bytes] of await bytesOf(await pruned(plain))) {
      expect(after.get(inner(tensor))).toBe(bytes);
      expect(after.has(tensor)).toBe(tensor === inner(tensor));
    }
  },
);

test.each([
  ['qwen2-bias', 'model.embed_tokens.weight'],
  ['gpt2', 'transformer.wte.weight'],
  ['opt-post', 'model.decoder.embed_tokens.weight'],
])('%s: tied embeddings stored as a head alone are the table, and stay under that name', async (name, table) => {
  const folder = await renamed(name, (tensor) => [tensor === table ? 'lm_head.weight' : tensor]);
  const text = `${folder}-ids.json`;
  await writeFile(text, JSON.stringify(tokenIds));
  const [alone, plain] = await Promise.all([folder, fixture(name)].map((model) => evaluatePerplexity({ model, text })));
  expect(alone!.perplexity).toBe(plain!.perplexity);
  const [before, after] = [await bytesOf(folder), await bytesOf(await pruned(folder))];
  expect([...after.keys()]).toEqual([...before.keys()]);
  expect(after.get('lm_head.weight')).toBe(before.get('lm_head.weight'));
});

test('a head alone that is not tied is no table', async () => {
  const folder = await renamed('llama-plain', (tensor) => (tensor === 'model.embed_tokens.weight' ? [] : [tensor]));
  expect(await failure(pruned(folder))).toMatchObject({
    code: 'INVALID_CHECKPOINT',
    message: expect.stringContaining('lacks the tensor model.embed_tokens.weight'),
  });
});
