// From requests to the library's options: sizes are limited while bytes arrive, names never leave their folder.
import { createWriteStream } from 'node:fs';
import { realpath, stat } from 'node:fs/promises';
import { join, sep } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { AlpsError, SafetensorsFile } from 'alps-prune';
import { HttpError } from './errors.mjs';

const invalid = (message) => new AlpsError('INVALID_ARGUMENT', message);

export const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

/** The next piece of a body, which must come within so many seconds. */
async function nextOf(chunks, seconds) {
  let timer;
  const stalled = new Promise((_, reject) => {
    const error = new HttpError(408, 'STALLED', `Nothing of the body came for ${seconds} s`);
    timer = setTimeout(reject, seconds * 1000, error);
  });
  try {
    return await Promise.race([chunks.next(), stalled]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * The body's bytes; too many are refused before or while they are read, and a body of which nothing comes for so many seconds. The
 * connection lives on for the answer.
 */
async function* bodyOf(request, limit, stall) {
  const text = `The body may have at most ${limit} bytes`;
  const tooLarge = () => new HttpError(413, 'TOO_LARGE', text);
  if (Number(request.headers['content-length'] ?? 0) > limit) throw tooLarge();
  let bytes = 0;
  const chunks = request.iterator({ destroyOnReturn: false });
  for (let next = await nextOf(chunks, stall); !next.done; next = await nextOf(chunks, stall)) {
    bytes += next.value.length;
    if (bytes > limit) {
      await chunks.return(); // the request is free for being read past
      throw tooLarge();
    }
    yield next.value;
  }
}

/** The body as a file. */
export async function bodyToFile(request, path, limit, stall) {
  await pipeline(bodyOf(request, limit, stall), createWriteStream(path, { flags: 'wx' }));
}

/** The body as a JSON object. */
export async function bodyToJson(request, limit, stall) {
  const chunks = [];
  for await (const chunk of bodyOf(request, limit, stall)) chunks.push(chunk);
  let value;
  try {
    value = JSON.parse(Buffer.concat(chunks).toString('utf8'));
  } catch (error) {
    throw invalid(`The body is not JSON: ${error.message}`);
  }
  if (!isObject(value)) throw invalid('Expected a JSON object');
  return value;
}

/** A file or folder directly under `root`, by its name alone; a link in it must not lead out either. */
export async function underRoot(root, name, what) {
  if (typeof name !== 'string' || !/^[A-Za-z0-9_][A-Za-z0-9._-]{0,200}$/.test(name))
    throw invalid(`Expected the plain name of a ${what}, of letters, digits, ".", "_" and "-"`);
  const missing = new HttpError(404, 'NOT_FOUND', `There is no ${what} ${name}`);
  if (!root) throw missing;
  const base = await realpath(root);
  const path = await realpath(join(base, name)).catch(() => undefined);
  if (!path?.startsWith(base + sep)) throw missing;
  const info = await stat(path);
  if (what === 'model' ? !info.isDirectory() : !info.isFile()) throw missing;
  return path;
}

const known = new Set([
  'sparsity',
  'keep',
  'of',
  'method',
  'refit',
  'schedule',
  'precision',
  'priority',
  'key',
  'name',
]);

/** The options of a layer, from the query. What they may be is the library's business. */
export function queryOptions(query) {
  const options = {};
  for (const [name, text] of query) {
    if (!known.has(name)) throw invalid(`Unknown option ${JSON.stringify(name)}`);
    if (name in options) throw invalid(`The option ${name} was given twice`);
    options[name] = ['sparsity', 'keep', 'of', 'priority'].includes(name) && text !== '' ? Number(text) : text;
  }
  const { keep, of, priority, key, ...rest } = options;
  const pattern = keep === undefined && of === undefined ? {} : { pattern: { keep, of } };
  const job = { ...(priority === undefined ? {} : { priority }), ...(key === undefined ? {} : { key }) };
  return { layer: { ...rest, ...pattern }, job };
}

/**
 * An uploaded layer: `weight` [outputs, inputs], and `gram` [inputs, inputs] or `activations` [tokens, inputs], all F32. Its size is known
 * at once, its numbers are read when the job's turn comes.
 */
export async function openLayer(path) {
  const file = await openUpload(path);
  try {
    const { tensors } = file;
    const [weight, gram, activations] = ['weight', 'gram', 'activations'].map((name) => tensors.get(name));
    if (!weight) throw invalid('The file lacks the tensor "weight"');
    if ((gram === undefined) === (activations === undefined))
      throw invalid('Expected exactly one of the tensors "gram" and "activations" beside "weight"');
    for (const { name, dtype, shape } of [weight, gram ?? activations]) {
      if (dtype !== 'F32' || shape.length !== 2 || shape[1] !== weight.shape[1])
        throw invalid(
          `Expected F32 [rows, inputs], ${weight.shape[1]} inputs, for "${name}", but it is ${dtype} [${shape}]`,
        );
    }
    if (gram && gram.shape[0] !== gram.shape[1]) throw invalid(`"gram" is not square: [${gram.shape}]`);
    return { shape: weight.shape, ...(activations ? { tokens: activations.shape[0] } : {}) };
  } finally {
    await file.close();
  }
}

/** The numbers of an uploaded layer. */
export async function readLayer(path, signal) {
  const file = await openUpload(path, signal);
  try {
    const read = async (name) => new Float32Array((await file.read(name, { signal })).buffer);
    const other = file.tensors.has('gram') ? 'gram' : 'activations';
    return { shape: file.tensors.get('weight').shape, weight: await read('weight'), [other]: await read(other) };
  } finally {
    await file.close();
  }
}

/** The server's own path is of no use to a client. */
async function openUpload(path, signal) {
  try {
    return await SafetensorsFile.open(path, { signal });
  } catch (error) {
    if (!(error instanceof AlpsError)) throw error;
    throw new AlpsError(error.code, error.message.replaceAll(path, 'The body'), { cause: error });
  }
}
