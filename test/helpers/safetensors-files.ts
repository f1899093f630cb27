import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, readdir, readFile, realpath, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type NewTensor, writeSafetensors } from '../../src/checkpoint/safetensors.js';
import { AlpsError } from '../../src/errors.js';

const folders: string[] = [];

/** A new empty folder that is removed after the test file. */
export async function temporaryFolder(): Promise<string> {
  const folder = await realpath(await mkdtemp(join(tmpdir(), 'alps-test-')));
  folders.push(folder);
  return folder;
}

afterAll(async () => {
  for (const folder of folders) await rm(folder, { recursive: true, force: true });
});

/** The bytes of a safetensors file from whatever parts a test wants: nothing is checked. */
export function rawFile(header: string | Uint8Array, dataBytes = 0, length?: bigint): Uint8Array {
  const json = typeof header === 'string' ? new TextEncoder().encode(header) : header;
  const out = Buffer.alloc(8 + json.length + dataBytes);
  out.writeBigUInt64LE(length ?? BigInt(json.length));
  out.set(json, 8);
  return out;
}

/** An entry of a header, as text. */
export function entry(dtype: string, shape: unknown, start: unknown, end: unknown): string {
  return JSON.stringify({ dtype, shape, data_offsets: [start, end] });
}

/** A tensor with random bytes. */
export function randomTensor(name: string, dtype: NewTensor['dtype'], shape: number[], byteLength: number): NewTensor {
  return { name, dtype, shape, bytes: new Uint8Array(randomBytes(byteLength)) };
}

export interface ModelParts {
  /** File name → tensors; default one `model.safetensors` with a, b and c. */
  shards?: Record<string, NewTensor[]>;
  /** File name → content, beside or in place of config.json and the index. */
  files?: Record<string, string | Uint8Array>;
  /** Whether an index is written; default when there is more than one shard. */
  index?: boolean;
}

export const twoShards = (): Record<string, NewTensor[]> => ({
  'model-00001-of-00002.safetensors': [randomTensor('a', 'F32', [2, 3], 24), randomTensor('b', 'BF16', [5], 10)],
  'model-00002-of-00002.safetensors': [randomTensor('c', 'F16', [3], 6)],
});

/** Makes a model folder and returns its path. */
export async function modelFolder(parts: ModelParts = {}): Promise<string> {
  const folder = join(await temporaryFolder(), 'model');
  await mkdir(folder);
  const shards = parts.shards ?? { 'model.safetensors': Object.values(twoShards()).flat() };
  const weightMap: Record<string, string> = {};
  for (const [file, tensors] of Object.entries(shards)) {
    await writeSafetensors(join(folder, file), tensors);
    for (const { name } of tensors) weightMap[name] = file;
  }
  const files: Record<string, string | Uint8Array> = { 'config.json': '{"model_type":"llama"}' };
  if (parts.index ?? Object.keys(shards).length > 1) {
    files['model.safetensors.index.json'] = JSON.stringify({ metadata: { total_size: 40 }, weight_map: weightMap });
  }
  for (const [name, content] of Object.entries({ ...files, ...parts.files })) {
    await writeFile(join(folder, name), content);
  }
  return folder;
}

/** The error of a call that must fail: its code and message, with `folder` taken out of the message. */
export async function failure(promise: Promise<unknown>, folder = ''): Promise<{ code: string; message: string }> {
  try {
    await promise;
  } catch (error) {
    if (!(error instanceof AlpsError)) throw error;
    return { code: error.code, message: folder ? error.message.replaceAll(folder, '') : error.message };
  }
  throw new Error('Expected the call to fail');
}

/** All files of a folder with their bytes in base64. */
export async function contents(folder: string): Promise<Record<string, string>> {
  const out: Record<string, string> = {};
  for (const name of (await readdir(folder)).sort()) out[name] = await readFile(join(folder, name), 'base64');
  return out;
}
