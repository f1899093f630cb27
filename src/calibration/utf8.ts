import { isUtf8 } from 'node:buffer';
import { AlpsError } from '../errors.js';

/**
 * Decodes UTF-8 as it arrives; characters split between chunks are put together, a byte order mark at the start is left out.
 *
 * @throws AlpsError `INVALID_TEXT` with the position of the first byte that is not UTF-8
 */
export async function* decodeUtf8(chunks: AsyncIterable<Uint8Array>, name: string): AsyncGenerator<string> {
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  let carry: Uint8Array = new Uint8Array(0);
  let position = 0;
  for await (const chunk of chunks) {
    const bytes = carry.length === 0 ? chunk : Buffer.concat([carry, chunk]);
    const whole = bytes.subarray(0, completeLength(bytes));
    let text: string;
    try {
      text = decoder.decode(whole);
    } catch (error) {
      throw invalidUtf8(name, position + firstInvalid(whole), bytes, position, error);
    }
    if (position === 0 && text.startsWith('\uFEFF')) text = text.slice(1);
    position += whole.length;
    carry = Uint8Array.from(bytes.subarray(whole.length));
    if (text !== '') yield text;
  }
  if (carry.length > 0) throw invalidUtf8(name, position, carry, position);
}

function invalidUtf8(name: string, at: number, bytes: Uint8Array, start: number, cause?: unknown): AlpsError {
  const isUtf16 = start === 0 && ((bytes[0] === 0xff && bytes[1] === 0xfe) || (bytes[0] === 0xfe && bytes[1] === 0xff));
  const advice = isUtf16 ? 'it looks like UTF-16; save it as UTF-8' : 'save it as UTF-8';
  return new AlpsError('INVALID_TEXT', `${name} is not UTF-8 at byte ${at}: ${advice}`, { cause });
}

/** Length without a character that the end of the chunk cuts. */
function completeLength(bytes: Uint8Array): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back]!;
    if (byte >= 0xc0) return sequenceLength(byte) > back ? bytes.length - back : bytes.length;
    if (byte < 0x80) break;
  }
  return bytes.length;
}

function sequenceLength(lead: number): number {
  if (lead < 0x80) return 1;
  if (lead < 0xc2 || lead > 0xf4) return 0;
  return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

function firstInvalid(bytes: Uint8Array): number {
  for (let at = 0; at < bytes.length; ) {
    const length = sequenceLength(bytes[at]!);
    if (length === 0 || !isUtf8(bytes.subarray(at, at + length))) return at;
    at += length;
  }
  return bytes.length;
}
