import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { AlpsError, describe, fileSystemError, throwIfAborted } from '../errors.js';
import type { TensorInfo } from './header.js';
import { isObject, parseJsonStrictly } from './json.js';
import { SafetensorsFile } from './safetensors.js';

/** A tensor of a checkpoint and the shard that holds it. */
export interface CheckpointTensor extends TensorInfo {
  shard: string;
}

export const singleFile = 'model.safetensors';
export const indexFile = 'model.safetensors.index.json';
const maxJsonBytes = 256 << 20;

/** A Hugging Face model folder: config.json and safetensors, in one file or in shards. */
export class Checkpoint {
  readonly folder: string;
  readonly config: Readonly<Record<string, unknown>>;
  /** Every tensor, shard by shard, in the order of their bytes. */
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  readonly shards: readonly SafetensorsFile[];
  /** File names of the shards, as `shards` has them. */
  readonly shardNames: readonly string[];
  readonly #shardOf: ReadonlyMap<string, SafetensorsFile>;

  private constructor(
    folder: string,
    config: Record<string, unknown>,
    shardNames: string[],
    shards: SafetensorsFile[],
  ) {
    this.folder = folder;
    this.config = config;
    this.shards = shards;
    this.shardNames = shardNames;
    const tensors = new Map<string, CheckpointTensor>();
    const shardOf = new Map<string, SafetensorsFile>();
    shards.forEach((shard, i) => {
      for (const [name, tensor] of shard.tensors) {
        if (tensors.has(name)) {
          throw new AlpsError(
            'INVALID_CHECKPOINT',
            `Tensor ${describe(name)} is in two shards of ${folder}: ${tensors.get(name)!.shard} and ${shardNames[i]}`,
          );
        }
        tensors.set(name, { ...tensor, shard: shardNames[i]! });
        shardOf.set(name, shard);
      }
    });
    this.tensors = tensors;
    this.#shardOf = shardOf;
  }

  /**
   * Opens a folder and checks all headers, the index against the shards, and config.json.
   * @throws AlpsError `FILE_SYSTEM`, `INVALID_CHECKPOINT`, or `UNSUPPORTED_MODEL` for pickle and GGUF files
   */
  static async open(folder: string, options: { signal?: AbortSignal } = {}): Promise<Checkpoint> {
    throwIfAborted(options.signal);
    const names = await listFolder(folder);
    const config = await readJson(folder, 'config.json', names);
    const weightMap = names.has(singleFile) ? undefined : await readIndex(folder, names);
    const shardNames = weightMap ? [...new Set(weightMap.values())].sort() : [singleFile];
    const shards: SafetensorsFile[] = [];
    try {
      for (const name of shardNames) {
        if (!names.has(name))
          throw new AlpsError(
            'INVALID_CHECKPOINT',
            `${join(folder, indexFile)} names the shard ${name}, which is missing`,
          );
        shards.push(await SafetensorsFile.open(join(folder, name), options));
      }
      const checkpoint = new Checkpoint(folder, config, shardNames, shards);
      if (weightMap) checkIndex(checkpoint, weightMap);
      return checkpoint;
    } catch (error) {
      await Promise.all(shards.map((shard) => shard.close()));
      throw error;
    }
  }

  /** A tensor's bytes. */
  async read(name: string, options: { signal?: AbortSignal } = {}): Promise<Uint8Array<ArrayBuffer>> {
    const shard = this.#shardOf.get(name);
    if (!shard) throw new AlpsError('INVALID_CHECKPOINT', `${this.folder} has no tensor ${describe(name)}`);
    return shard.read(name, options);
  }

  async close(): Promise<void> {
    await Promise.all(this.shards.map((shard) => shard.close()));
  }
}

async function listFolder(folder: string): Promise<Set<string>> {
  try {
    return new Set(await readdir(folder));
  } catch (cause) {
    const code = (cause as { code?: string }).code;
    if (code === 'ENOENT') throw new AlpsError('FILE_SYSTEM', `The model folder ${folder} does not exist`, { cause });
    if (code === 'ENOTDIR')
      throw new AlpsError('INVALID_CHECKPOINT', `Expected a model folder but ${folder} is a file`, { cause });
    throw fileSystemError('read', folder, cause);
  }
}

async function readJson(folder: string, name: string, names: ReadonlySet<string>): Promise<Record<string, unknown>> {
  const path = join(folder, name);
  if (!names.has(name)) {
    throw new AlpsError('INVALID_CHECKPOINT', `${folder} has no ${name}: expected a Hugging Face model folder`);
  }
  let text: string;
  try {
    const info = await stat(path);
    if (!info.isFile()) throw new AlpsError('INVALID_CHECKPOINT', `${path} is not a regular file`);
    if (info.size > maxJsonBytes)
      throw new AlpsError('INVALID_CHECKPOINT', `${path} has ${info.size} bytes, too many for JSON`);
    text = await readFile(path, 'utf8');
  } catch (cause) {
    throw fileSystemError('read', path, cause);
  }
  const value = parseJsonStrictly(text, path);
  if (!isObject(value)) throw new AlpsError('INVALID_CHECKPOINT', `${path} is not a JSON object`);
  return value;
}

async function readIndex(folder: string, names: ReadonlySet<string>): Promise<Map<string, string>> {
  if (!names.has(indexFile)) throw refusal(folder, names);
  const path = join(folder, indexFile);
  const { weight_map: map } = await readJson(folder, indexFile, names);
  if (!isObject(map)) throw new AlpsError('INVALID_CHECKPOINT', `${path} has no weight_map`);
  const entries = Object.entries(map);
  if (entries.length === 0) throw new AlpsError('INVALID_CHECKPOINT', `${path} has an empty weight_map`);
  for (const [tensor, shard] of entries) {
    if (
      typeof shard !== 'string' ||
      !/^[^/\\\0:]{1,255}$/.test(shard) ||
      shard === '.' ||
      shard === '..' ||
      !shard.endsWith('.safetensors')
    ) {
      throw new AlpsError(
        'INVALID_CHECKPOINT',
        `${path} puts tensor ${describe(tensor)} into ${describe(shard)}: expected the name of a .safetensors file in the same folder`,
      );
    }
  }
  return new Map(entries as [string, string][]);
}

/** Why a folder without safetensors is not read. */
function refusal(folder: string, names: ReadonlySet<string>): AlpsError {
  const all = [...names];
  const pickle = all.find((name) => /\.(bin|pt|pth|ckpt|pkl)$/.test(name));
  if (pickle) {
    return new AlpsError(
      'UNSUPPORTED_MODEL',
      `${join(folder, pickle)} is a pickle file: reading one can run code, so only safetensors are read. Convert it with transformers: ` +
        'model.save_pretrained(folder, safe_serialization=True)',
    );
  }
  const gguf = all.find((name) => name.endsWith('.gguf'));
  if (gguf) {
    return new AlpsError(
      'UNSUPPORTED_MODEL',
      `${join(folder, gguf)} is a GGUF file: its weights are quantised; prune the original safetensors`,
    );
  }
  return new AlpsError('INVALID_CHECKPOINT', `${folder} has neither ${singleFile} nor ${indexFile}`);
}

function checkIndex(checkpoint: Checkpoint, weightMap: ReadonlyMap<string, string>): void {
  const path = join(checkpoint.folder, indexFile);
  for (const [name, shard] of weightMap) {
    const tensor = checkpoint.tensors.get(name);
    if (tensor?.shard !== shard) {
      throw new AlpsError('INVALID_CHECKPOINT', `${path} puts tensor ${describe(name)} into ${shard}, which lacks it`);
    }
  }
  for (const [name, { shard }] of checkpoint.tensors) {
    if (!weightMap.has(name))
      throw new AlpsError('INVALID_CHECKPOINT', `${path} does not name tensor ${describe(name)} of ${shard}`);
  }
}

/** What quantises a checkpoint, in words with a tensor's name, or undefined. Such weights are not pruned. */
export function quantizationOf(checkpoint: Checkpoint): string | undefined {
  const { quantization_config: config } = checkpoint.config;
  for (const [name, { dtype }] of checkpoint.tensors) {
    if (/\.(qweight|qzeros|weight_scale|weight_scale_inv|SCB|absmax|quant_state.*)$/.test(name))
      return `tensor ${describe(name)}`;
    if (dtype.startsWith('F8') || dtype.startsWith('F4') || dtype.startsWith('F6'))
      return `tensor ${describe(name)} of dtype ${dtype}`;
  }
  return isObject(config) ? `quantization_config ${describe(config.quant_method ?? config)}` : undefined;
}
