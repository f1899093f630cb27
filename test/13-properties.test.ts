import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { dtypeBits, type SafetensorsDtype } from '../src/checkpoint/dtype.js';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { SafetensorsFile, writeSafetensors } from '../src/checkpoint/safetensors.js';
import { readArchitecture } from '../src/model/decoder.js';
import { expectedTensors, linearShape, linearsOf } from '../src/model/shapes.js';
import { loadTokenizer } from '../src/model/tokenizer.js';
import { check, codeOf, mutatedJson } from './helpers/properties.js';
import { modelFolder, temporaryFolder } from './helpers/safetensors-files.js';
import { tinyTokenizer, trickyText, writeTokenizer } from './helpers/tokenizers.js';

// Properties of what is read from model folders, on random and damaged inputs. ALPS_FUZZ_RUNS multiplies the number of runs.

const models = fileURLToPath(new URL('fixtures/models/', import.meta.url));
const names = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 12 }),
  fc.string({ unit: 'grapheme', maxLength: 8 }),
  fc.constantFrom('', '0', '1', '__proto__', 'constructor', 'a.b/c', '\u0000', '"', '\u2028'),
);

/** Tensors that the format allows, with bytes. */
const tensor = fc
  .record({
    name: names.filter((name) => name !== '__metadata__'),
    dtype: fc.constantFrom(...(Object.keys(dtypeBits) as SafetensorsDtype[])),
    shape: fc.array(fc.oneof({ arbitrary: fc.integer({ min: 1, max: 5 }), weight: 8 }, fc.constant(0)), {
      maxLength: 4,
    }),
    fill: fc.nat(255),
  })
  .filter(({ dtype, shape }) => (shape.reduce((a, b) => a * b, 1) * dtypeBits[dtype]) % 8 === 0)
  .map(({ fill, ...rest }) => {
    const length = (rest.shape.reduce((a, b) => a * b, 1) * dtypeBits[rest.dtype]) / 8;
    return { ...rest, bytes: Uint8Array.from({ length }, (_, i) => fill + 7 * i) };
  });
const tensors = fc.uniqueArray(tensor, { selector: ({ name }) => name, maxLength: 6 });
const metadata = fc
  .array(fc.tuple(names, names), { maxLength: 3 })
  .map((pairs) => Object.fromEntries(pairs.filter(([key]) => key !== '__proto__')));

let folder: string;
beforeAll(async () => {
  folder = await temporaryFolder();
});

test('safetensors: what is written is read, whatever the names, dtypes, shapes and metadata', async () => {
  const path = join(folder, 'round.safetensors');
  const input = fc.record({ tensors, metadata });
  await check('safetensors round trip', { runs: 120, input }, async ({ tensors, metadata }) => {
    await writeSafetensors(path, tensors, metadata);
    const file = await SafetensorsFile.open(path);
    try {
      expect(file.metadata).toEqual(metadata);
      expect([...file.tensors.keys()].sort()).toEqual(tensors.map(({ name }) => name).sort());
      for (const { name, dtype, shape, bytes } of tensors) {
        expect(file.tensors.get(name)).toMatchObject({ dtype, shape, byteLength: bytes.length });
        expect(await file.read(name)).toEqual(bytes);
      }
    } finally {
      await file.close();
    }
  });
});

type Damage = { how: 'flip' | 'cut' | 'insert' | 'copy' | 'digit'; at: number; value: number };

/** A file with some of its bytes changed. */
function damaged(bytes: Uint8Array, damages: readonly Damage[]): Uint8Array {
  let out = Buffer.from(bytes);
  for (const { how, at, value } of damages) {
    if (out.length === 0) break;
    const place = at % out.length;
    if (how === 'flip') out[place]! ^= 1 << (value % 8);
    else if (how === 'cut') out = out.subarray(0, place);
    else if (how === 'insert') out = Buffer.concat([out.subarray(0, place), Buffer.of(value), out.subarray(place)]);
    else if (how === 'copy') out = Buffer.concat([out.subarray(0, place), out.subarray(value % out.length)]);
    else {
      // A number of the header becomes another.
      const digits = [...out.subarray(0, 4096)].flatMap((byte, i) => (byte >= 48 && byte < 58 ? [i] : []));
      if (digits.length > 0) out[digits[at % digits.length]!] = 48 + (value % 10);
    }
  }
  return out;
}

test('safetensors: a damaged file is read within its bounds, or refused by an AlpsError', async () => {
  const path = join(folder, 'damaged.safetensors');
  const damage: fc.Arbitrary<Damage> = fc.record({
    how: fc.constantFrom('flip', 'flip', 'cut', 'insert', 'copy', 'digit', 'digit'),
    at: fc.oneof(fc.nat(8), fc.nat()),
    value: fc.nat(),
  });
  const input = fc.record({ tensors, metadata, damages: fc.array(damage, { minLength: 1, maxLength: 3 }) });
  await check('safetensors damaged', { runs: 250, input }, async ({ tensors, metadata, damages }) => {
    await writeSafetensors(path, tensors, metadata);
    const bytes = damaged(await readFile(path), damages);
    await writeFile(path, bytes);
    await codeOf(async () => {
      const file = await SafetensorsFile.open(path);
      try {
        for (const { name, byteOffset, byteLength } of file.tensors.values()) {
          expect(byteOffset + byteLength).toBeLessThanOrEqual(bytes.length);
          expect(Buffer.compare(await file.read(name), bytes.subarray(byteOffset, byteOffset + byteLength))).toBe(0);
        }
      } finally {
        await file.close();
      }
    });
  });
});

describe('JSON files with parts replaced, left out or moved: read, or refused by an AlpsError', () => {
  const families = ['llama-plain', 'phi3-longrope', 'gemma3', 'qwen3-moe-fused', 'mixtral', 'opt-post', 'gpt2'];

  test.each(families)('config.json of %s', async (name) => {
    const base = JSON.parse(await readFile(join(models, name, 'config.json'), 'utf8'));
    const checkpoint = await Checkpoint.open(join(models, name));
    await check(`config ${name}`, { runs: 60, input: mutatedJson(base) }, async (config) => {
      await codeOf(() => {
        const other = Object.create(checkpoint, { config: { value: config } }) as Checkpoint;
        const architecture = readArchitecture(other);
        // As when a model is opened: the first tensor that is not there ends it.
        for (const [tensor] of expectedTensors(architecture)) if (!checkpoint.tensors.has(tensor)) return;
        for (const spec of linearsOf(architecture)) linearShape(architecture.config, spec);
      });
    });
    await checkpoint.close();
  });

  test('the index of the shards', async () => {
    const weights = { a: 'model-1.safetensors', b: 'model-1.safetensors', c: 'model-2.safetensors' };
    const bytes = (name: string) => ({ name, dtype: 'U8' as const, shape: [2], bytes: new Uint8Array(2) });
    const at = await modelFolder({
      shards: { 'model-1.safetensors': [bytes('a'), bytes('b')], 'model-2.safetensors': [bytes('c')] },
    });
    const index = { metadata: { total_size: 6 }, weight_map: weights };
    await check('index', { runs: 150, input: mutatedJson(index) }, async (value) => {
      await writeFile(join(at, 'model.safetensors.index.json'), JSON.stringify(value));
      await codeOf(async () => (await Checkpoint.open(at)).close());
    });
  });

  test.each(['gpt2', 'llama3', 'llama2', 'metaspaceSplit', 'punctuation', 'prefix', 'smollm'])(
    'tokenizer.json of the kind %s',
    async (kind) => {
      const base = {
        ...tinyTokenizer(kind),
        post_processor: {
          type: 'TemplateProcessing',
          single: [{ SpecialToken: { id: '<|end|>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
          pair: [],
          special_tokens: { '<|end|>': { id: '<|end|>', ids: [0], tokens: ['<|end|>'] } },
        },
      };
      const input = fc.record({ tokenizer: mutatedJson(base), config: mutatedJson({ bos_token: '<|end|>' }, 2) });
      await check(`tokenizer ${kind}`, { runs: 60, input }, async ({ tokenizer, config }) => {
        await writeTokenizer(folder, tokenizer, config as Record<string, unknown>);
        await codeOf(async () => {
          const loaded = await loadTokenizer(folder);
          const ids = await loaded.encodeAsync(trickyText);
          for (const id of ids) expect(id).toBeLessThan(loaded.vocabSize);
          loaded.decode(ids);
        });
      });
    },
  );

  test('the bytes of a tokenizer.json', async () => {
    const bytes = new TextEncoder().encode(JSON.stringify(tinyTokenizer('llama3')));
    const input = fc.record({ at: fc.nat(), bit: fc.nat(7), length: fc.nat() });
    await check('tokenizer bytes', { runs: 60, input }, async ({ at, bit, length }) => {
      const out = Uint8Array.from(bytes);
      out[at % out.length]! ^= 1 << bit;
      await writeTokenizer(folder, '{}');
      await writeFile(join(folder, 'tokenizer.json'), length % 4 ? out : out.subarray(0, length % out.length));
      await codeOf(async () => (await loadTokenizer(folder)).encode('the end, 1912'));
    });
  });
});
