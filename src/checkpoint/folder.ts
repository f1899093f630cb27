import { join } from 'node:path';
import { optionalSignal } from '../abort.js';
import { AlpsError, describe, invalidArgument, optionsObject, throwIfAborted } from '../errors.js';
import { isQuantizedDtype } from './dtype.js';
import type { TensorInfo } from './header.js';
import { isObject } from './json.js';
import { indexFile, listFolder, otherFiles, readConfig, readIndex, singleFile } from './model-files.js';
import { SafetensorsFile } from './safetensors.js';

/** A tensor of a checkpoint and the shard that holds it. */
export interface CheckpointTensor extends TensorInfo {
  shard: string;
}

/** A Hugging Face model folder, open for reading: config.json and safetensors, in one file or in shards. If both exist, the single file counts. */
export class Checkpoint {
  /** Path as given. */
  readonly folder: string;
  /** Content of config.json. */
  readonly config: Readonly<Record<string, unknown>>;
  /** All tensors by name, shard by shard, in the order of their bytes. */
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  readonly shards: readonly SafetensorsFile[];
  /** File names of the shards, in the order of `shards`. */
  readonly shardNames: readonly string[];
  /** Whether the shards were listed in `model.safetensors.index.json`. */
  readonly indexed: boolean;
  /** Names of the other files that belong to the model: config.json, tokenizer, generation_config.json and so on. */
  readonly files: readonly string[];
  readonly #shardOf: ReadonlyMap<string, SafetensorsFile>;

  private constructor(
    folder: string,
    config: Record<string, unknown>,
    shardNames: string[],
    shards: SafetensorsFile[],
    indexed: boolean,
    files: string[],
  ) {
    this.folder = folder;
    this.config = config;
    this.shards = shards;
    this.shardNames = shardNames;
    this.indexed = indexed;
    this.files = files;
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
   * Opens a folder and checks all headers, the index against the shards, and config.json. Close it with {@link close} or `await using`.
   *
   * @throws AlpsError `FILE_SYSTEM`, `INVALID_CHECKPOINT`, or `UNSUPPORTED_MODEL` for pickle and GGUF files; `INVALID_ARGUMENT`,
   * `ABORTED`
   */
  static async open(folder: string, options: { signal?: AbortSignal } = {}): Promise<Checkpoint> {
    if (typeof folder !== 'string' || folder === '' || folder.includes('\0')) {
      throw invalidArgument('folder', 'the path of a model folder', folder);
    }
    optionsObject(options, { signal: true });
    optionalSignal(options.signal);
    throwIfAborted(options.signal);
    const names = await listFolder(folder);
    const config = await readConfig(folder, names);
    const weightMap = names.has(singleFile) ? undefined : await readIndex(folder, names);
    const shardNames = weightMap ? [...new Set(weightMap.values())].sort() : [singleFile];
    const shards: SafetensorsFile[] = [];
    try {
      for (const name of shardNames) {
        if (!names.has(name)) {
          throw new AlpsError(
            'INVALID_CHECKPOINT',
            `${join(folder, indexFile)} names the shard ${name}, which is missing: download it again`,
          );
        }
        shards.push(await SafetensorsFile.open(join(folder, name), options));
      }
      const files = await otherFiles(folder, names, shardNames);
      const checkpoint = new Checkpoint(folder, config, shardNames, shards, weightMap !== undefined, files);
      if (weightMap) checkIndex(checkpoint, weightMap);
      return checkpoint;
    } catch (error) {
      await Promise.all(shards.map((shard) => shard.close()));
      throw error;
    }
  }

  /**
   * Reads a tensor's bytes (little-endian, row-major) into a new array.
   *
   * @throws AlpsError as {@link SafetensorsFile.read}
   */
  async read(name: string, options: { signal?: AbortSignal } = {}): Promise<Uint8Array<ArrayBuffer>> {
    const shard = this.#shardOf.get(name);
    if (!shard) throw new AlpsError('INVALID_CHECKPOINT', `${this.folder} has no tensor ${describe(name)}`);
    return shard.read(name, options);
  }

  /**
   * Fills `out` with a tensor's bytes, starting at byte `offset` (default 0) of the tensor.
   *
   * @throws AlpsError as {@link SafetensorsFile.readInto}
   */
  async readInto(
    name: string,
    out: Uint8Array,
    options: { offset?: number; signal?: AbortSignal } = {},
  ): Promise<void> {
    const shard = this.#shardOf.get(name);
    if (!shard) throw new AlpsError('INVALID_CHECKPOINT', `${this.folder} has no tensor ${describe(name)}`);
    await shard.readInto(name, out, options);
  }

  /** Closes all shards. A second call has no effect. */
  async close(): Promise<void> {
    await Promise.all(this.shards.map((shard) => shard.close()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
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

const quantizedName =
  /(\.(qweight|qzeros|weight_packed|weight_scale|weight_scale_inv|SCB|absmax|quant_map|quant_state\..*|W_q)|_(blocks|scales))$/;

/**
 * What quantises a checkpoint, in words, with a tensor's name where one shows it; else undefined. Such weights are not pruned.
 * Known are GPTQ, AWQ, bitsandbytes, HQQ, compressed-tensors, MXFP4 and FP8 by their tensors, all others by `quantization_config`.
 */
export function quantizationOf(checkpoint: Checkpoint): string | undefined {
  for (const [name, { dtype, shape }] of checkpoint.tensors) {
    if (quantizedName.test(name)) return `tensor ${describe(name)}`;
    const integerMatrix = (dtype === 'I8' || dtype === 'U8') && shape.length > 1 && name.endsWith('.weight');
    if (isQuantizedDtype(dtype) || integerMatrix) return `tensor ${describe(name)} of dtype ${dtype}`;
  }
  const { quantization_config: config } = checkpoint.config;
  return isObject(config) ? `quantization_config ${describe(config.quant_method ?? config)}` : undefined;
}
