import { AlpsError, describe } from '../errors.js';
import { dtypeBits, type SafetensorsDtype } from './dtype.js';
import { fractionalNumber, isObject, parseJsonStrictly } from './json.js';

/** One tensor of a safetensors file. */
export interface TensorInfo {
  name: string;
  /** Such as `F32` or `BF16`. */
  dtype: SafetensorsDtype;
  shape: number[];
  /** Position of the first byte, from the start of the file. */
  byteOffset: number;
  byteLength: number;
}

export interface Header {
  /** In the order of their bytes in the file. */
  tensors: TensorInfo[];
  metadata: Record<string, string> | undefined;
}

/** The format's own limit for the header. */
export const maxHeaderBytes = 100_000_000;

/**
 * Reads the JSON header and checks every rule that the format states.
 *
 * @param bytes the header, without its 8 length bytes
 * @param fileSize bytes of the whole file
 * @param path for messages
 */
export function parseHeader(bytes: Uint8Array, fileSize: number, path: string): Header {
  const invalid = (text: string) => new AlpsError('INVALID_CHECKPOINT', `${path}: ${text}`);
  if (bytes[0] !== 0x7b) throw invalid('the header does not begin with "{"');
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw invalid('the header is not UTF-8');
  }
  const header = parseJsonStrictly(text, `${path}: the header`);
  if (!isObject(header)) throw invalid('the header is not a JSON object');
  const dataStart = 8 + bytes.length;
  const metadata = parseMetadata(header.__metadata__, path);
  const tensors: TensorInfo[] = [];
  for (const [name, entry] of Object.entries(header)) {
    if (name !== '__metadata__') tensors.push(parseEntry(name, entry, dataStart, path));
  }
  const fraction = fractionalNumber(text);
  if (fraction !== undefined)
    throw invalid(`the header has the number ${describe(fraction)}, which is not written as an integer`);
  tensors.sort((a, b) => a.byteOffset - b.byteOffset || a.byteLength - b.byteLength);
  let end = dataStart;
  for (const tensor of tensors) {
    if (tensor.byteOffset !== end) {
      const what = tensor.byteOffset < end ? 'overlaps the tensor before it' : 'leaves a hole before it';
      throw invalid(
        `tensor ${describe(tensor.name)} at byte ${tensor.byteOffset - dataStart} ${what}, which ends at ${end - dataStart}`,
      );
    }
    end += tensor.byteLength;
  }
  if (end > fileSize) {
    throw invalid(`the file is truncated: its tensors end at byte ${end}, the file at ${fileSize}`);
  }
  if (end < fileSize) throw invalid(`the file has ${fileSize - end} bytes after its last tensor`);
  return { tensors, metadata };
}

/** JSON can escape half a surrogate pair; no UTF-8 holds it, so such a name could not be written again. */
const loneSurrogate = /\p{Surrogate}/u;

function parseMetadata(value: unknown, path: string): Record<string, string> | undefined {
  if (value === undefined) return undefined;
  if (!isObject(value) || Object.values(value).some((item) => typeof item !== 'string')) {
    throw new AlpsError('INVALID_CHECKPOINT', `${path}: __metadata__ is not a map from string to string`);
  }
  if (Object.entries(value).some((pair) => loneSurrogate.test(pair.join('')))) {
    throw new AlpsError(
      'INVALID_CHECKPOINT',
      `${path}: __metadata__ has text that is not Unicode (half a surrogate pair)`,
    );
  }
  return value as Record<string, string>;
}

function parseEntry(name: string, entry: unknown, dataStart: number, path: string): TensorInfo {
  const invalid = (text: string) => new AlpsError('INVALID_CHECKPOINT', `${path}: tensor ${describe(name)} ${text}`);
  if (loneSurrogate.test(name)) throw invalid('has a name that is not Unicode (half a surrogate pair)');
  if (!isObject(entry)) throw invalid(`is ${describe(entry)}, not an object`);
  const { dtype, shape, data_offsets: offsets, ...rest } = entry;
  const [unknown] = Object.keys(rest);
  if (unknown !== undefined) throw invalid(`has the unknown field ${describe(unknown)}`);
  if (typeof dtype !== 'string' || !Object.hasOwn(dtypeBits, dtype))
    throw invalid(`has the unknown dtype ${describe(dtype)}`);
  const isSize = (value: unknown): value is number =>
    Number.isSafeInteger(value) && (value as number) >= 0 && !Object.is(value, -0);
  if (!Array.isArray(shape) || !shape.every(isSize))
    throw invalid(`has the shape ${describe(shape)}, not non-negative integers`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize)) {
    throw invalid(`has the data_offsets ${describe(offsets)}, not two non-negative integers`);
  }
  const [start, end] = offsets as [number, number];
  if (end < start) throw invalid(`has the reversed data_offsets ${describe(offsets)}`);
  const bits = bitsOf(shape, dtype as SafetensorsDtype);
  if (bits === undefined) throw invalid(`has the shape ${describe(shape)}, whose product is above 2^64`);
  if (bits % 8n !== 0n) throw invalid(`of dtype ${dtype} and shape ${describe(shape)} does not fill whole bytes`);
  if (bits / 8n !== BigInt(end - start)) {
    throw invalid(
      `of dtype ${dtype} and shape ${describe(shape)} takes ${bits / 8n} bytes but its data_offsets span ${end - start}`,
    );
  }
  if (!Number.isSafeInteger(dataStart + end)) throw invalid(`ends beyond 2^53`);
  return { name, dtype: dtype as SafetensorsDtype, shape, byteOffset: dataStart + start, byteLength: end - start };
}

/** Bits of a tensor, or undefined once the product passes 2^64: giving up there keeps an endless shape cheap. */
function bitsOf(shape: readonly number[], dtype: SafetensorsDtype): bigint | undefined {
  let bits = BigInt(dtypeBits[dtype]);
  for (const size of shape) {
    bits *= BigInt(size);
    if (bits >= 1n << 64n) return undefined;
  }
  return bits;
}

/** The header's bytes with their length before them, padded with spaces to a multiple of 8. */
export function encodeHeader(tensors: readonly TensorInfo[], metadata: Record<string, string> | undefined): Uint8Array {
  let position = 0;
  const entries: [string, unknown][] = metadata ? [['__metadata__', metadata]] : [];
  for (const { name, dtype, shape, byteLength } of tensors) {
    entries.push([name, { dtype, shape, data_offsets: [position, position + byteLength] }]);
    position += byteLength;
  }
  // Object.fromEntries would move names like "0" to the front, away from the order of the bytes.
  const text = `{${entries.map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`).join(',')}}`;
  const json = new TextEncoder().encode(text);
  const padded = Math.ceil(json.length / 8) * 8;
  const out = new Uint8Array(8 + padded).fill(0x20);
  new DataView(out.buffer).setBigUint64(0, BigInt(padded), true);
  out.set(json, 8);
  return out;
}
