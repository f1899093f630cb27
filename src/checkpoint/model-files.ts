import { readdir, realpath, stat } from 'node:fs/promises';
import { dirname, join, sep } from 'node:path';
import { AlpsError, describe, isCode } from '../errors.js';
import { openError, readWhole } from './file-io.js';
import { isObject, parseJsonStrictly } from './json.js';

export const singleFile = 'model.safetensors';
export const indexFile = 'model.safetensors.index.json';

const templatesFolder = 'additional_chat_templates';

const maxConfigBytes = 16 << 20;
const maxIndexBytes = 256 << 20;
const pickleName = /\.(bin|pt|pth|ckpt|pkl|pickle)$/;
const otherWeights = /\.(safetensors|gguf|onnx|h5|msgpack|tflite|ot)$|\.index\.json$/;

/** The names in a model folder. */
export async function listFolder(folder: string): Promise<Set<string>> {
  try {
    return new Set(await readdir(folder));
  } catch (cause) {
    if (isCode(cause, 'ENOENT')) {
      throw new AlpsError(
        'FILE_SYSTEM',
        `The model folder ${folder} does not exist: expected a local folder, download the model first`,
        { cause },
      );
    }
    if (isCode(cause, 'ENOTDIR')) {
      throw new AlpsError('INVALID_CHECKPOINT', `Expected a model folder but ${folder} is a file`, { cause });
    }
    throw openError(folder, cause);
  }
}

/**
 * Names of the files that belong to a model beside its weights: config.json, tokenizer and so on, sorted. Hidden files, indexes, weights of
 * any format and subfolders, but for the named chat templates, are not among them. They are copied to the output, so a link among them may
 * lead only into the folder, or to a folder in which config.json or a shard lies in truth, as in the caches that are made of links.
 * @throws AlpsError `INVALID_CHECKPOINT` for a link that leads elsewhere
 */
export async function otherFiles(
  folder: string,
  names: ReadonlySet<string>,
  shardNames: readonly string[],
): Promise<string[]> {
  const files: string[] = [];
  const home = await realpath(folder).catch((cause) => {
    throw openError(folder, cause);
  });
  let homes: Set<string> | undefined;
  for (const name of [...names, ...(await namedTemplates(folder, names))].sort()) {
    if (name.startsWith('.') || pickleName.test(name) || otherWeights.test(name)) continue;
    const path = join(folder, name);
    try {
      if (!(await stat(path)).isFile()) continue;
      files.push(name);
      const target = await realpath(path);
      if (target.startsWith(`${home}${sep}`)) continue;
      homes ??= new Set(await Promise.all(['config.json', ...shardNames].map((file) => homeOf(join(folder, file)))));
      if (homes.has(dirname(target))) continue;
      throw new AlpsError(
        'INVALID_CHECKPOINT',
        `${path} is a symbolic link to ${target}, which lies neither in the model folder nor beside config.json or the weights; ` +
          'put the file itself there if it belongs to the model, else remove the link',
      );
    } catch (cause) {
      if (isCode(cause, 'ENOENT', 'ELOOP')) continue; // a link to nothing, or to itself
      // Left out in silence, it would be missing in the output.
      throw cause instanceof AlpsError ? cause : openError(path, cause);
    }
  }
  return files;
}

/** Chat templates beside the usual one, each a file, as transformers saves them. */
async function namedTemplates(folder: string, names: ReadonlySet<string>): Promise<string[]> {
  if (!names.has(templatesFolder)) return [];
  try {
    const templates = await readdir(join(folder, templatesFolder));
    return templates.filter((name) => name.endsWith('.jinja')).map((name) => `${templatesFolder}/${name}`);
  } catch (cause) {
    if (isCode(cause, 'ENOTDIR', 'ENOENT', 'ELOOP')) return []; // not a folder
    throw openError(join(folder, templatesFolder), cause);
  }
}

/** The folder in which a file lies in truth. */
async function homeOf(path: string): Promise<string> {
  return dirname(await realpath(path));
}

export function readConfig(folder: string, names: ReadonlySet<string>): Promise<Record<string, unknown>> {
  return readJson(folder, 'config.json', names, maxConfigBytes);
}

/** The `weight_map` of the index: tensor name → shard's file name. */
export async function readIndex(folder: string, names: ReadonlySet<string>): Promise<Map<string, string>> {
  if (!names.has(indexFile)) throw refusal(folder, names);
  const path = join(folder, indexFile);
  const { weight_map: map } = await readJson(folder, indexFile, names, maxIndexBytes);
  if (!isObject(map)) throw new AlpsError('INVALID_CHECKPOINT', `${path} has no weight_map`);
  const entries = Object.entries(map);
  if (entries.length === 0) throw new AlpsError('INVALID_CHECKPOINT', `${path} has an empty weight_map`);
  for (const [tensor, shard] of entries) {
    if (!isShardName(shard)) {
      throw new AlpsError(
        'INVALID_CHECKPOINT',
        `${path} puts tensor ${describe(tensor)} into ${describe(shard)}: expected the name of a .safetensors file in the same folder`,
      );
    }
  }
  return new Map(entries as [string, string][]);
}

/** Whether the name stays in its folder: no path, drive, URL or parent can be written without these characters. */
function isShardName(value: unknown): value is string {
  return typeof value === 'string' && /^[^/\\\0:]+\.safetensors$/.test(value) && Buffer.byteLength(value) <= 255;
}

async function readJson(
  folder: string,
  name: string,
  names: ReadonlySet<string>,
  maxBytes: number,
): Promise<Record<string, unknown>> {
  const path = join(folder, name);
  if (!names.has(name)) {
    throw new AlpsError('INVALID_CHECKPOINT', `${folder} has no ${name}: expected a Hugging Face model folder`);
  }
  const bytes = await readWhole(path, maxBytes);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new AlpsError('INVALID_CHECKPOINT', `${path} is not UTF-8`, { cause });
  }
  const value = parseJsonStrictly(text, path);
  if (!isObject(value)) throw new AlpsError('INVALID_CHECKPOINT', `${path} is not a JSON object`);
  return value;
}

/** Why a folder without safetensors is not read. */
function refusal(folder: string, names: ReadonlySet<string>): AlpsError {
  const all = [...names].sort();
  const pickle = all.find((name) => pickleName.test(name));
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
      `${join(folder, gguf)} is a GGUF file, which is not read: its weights are usually quantised; prune the original safetensors`,
    );
  }
  return new AlpsError('INVALID_CHECKPOINT', `${folder} has neither ${singleFile} nor ${indexFile}`);
}
