import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { SafetensorsFile } from '../src/checkpoint/safetensors.js';
import { entry, failure, rawFile, temporaryFolder } from './helpers/safetensors-files.js';

/** Every rule of the format: a file that breaks it, and the whole message. */
let path: string;
beforeAll(async () => {
  path = join(await temporaryFolder(), 'x.safetensors');
});

async function refusal(bytes: Uint8Array): Promise<string> {
  await writeFile(path, bytes);
  const { code, message } = await failure(SafetensorsFile.open(path), path);
  expect(code).toBe('INVALID_CHECKPOINT');
  return message;
}

const f32 = (start: unknown, end: unknown, shape: unknown = [1]) => entry('F32', shape, start, end);

describe('the length of the header', () => {
  test.each<[string, Uint8Array, string]>([
    ['a file of 0 bytes', new Uint8Array(0), ' has 0 bytes, too few for a safetensors file'],
    ['a file of 7 bytes', new Uint8Array(7), ' has 7 bytes, too few for a safetensors file'],
    ['a file of 8 bytes', new Uint8Array(8), ': the header is empty'],
    ['8 bytes that name 1', rawFile('', 0, 1n), ": the header's length of 1 bytes goes beyond the file's 8 bytes"],
    ['0', rawFile('{}', 0, 0n), ': the header is empty'],
    ['beyond the file', rawFile('{}', 0, 3n), ": the header's length of 3 bytes goes beyond the file's 10 bytes"],
    [
      'over 100 MB',
      rawFile('{}', 0, 100_000_001n),
      ": the header's length of 100000001 bytes is above the format's limit of 100000000",
    ],
    [
      '2^63',
      rawFile('{}', 0, 1n << 63n),
      ": the header's length of 9223372036854775808 bytes is above the format's limit of 100000000",
    ],
  ])('%s', async (_, bytes, message) => {
    expect(await refusal(bytes)).toBe(message);
  });
});

describe('the text of the header', () => {
  test.each<[string, string | Uint8Array, string | RegExp]>([
    ['not UTF-8', Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d), ': the header is not UTF-8'],
    ['not JSON', '{"a"}', /^: the header is not JSON: /],
    ['cut short', '{"a":{"dtype":"F32"', /^: the header is not JSON: /],
    ['an array', '[]', ': the header does not begin with "{"'],
    ['something after the object', '{} x', /^: the header is not JSON: /],
    ['NUL after the object', '{}\0\0', /^: the header is not JSON: /],
    ['a byte order mark', Uint8Array.of(0xef, 0xbb, 0xbf, 0x7b, 0x7d), ': the header does not begin with "{"'],
    ['a leading space', ' {}', ': the header does not begin with "{"'],
    ['a tensor twice', `{"a":${f32(0, 4)},"a":${f32(0, 4)}}`, ': the header has the key "a" twice'],
    ['a tensor twice, escaped once', `{"a":${f32(0, 4)},"\\u0061":${f32(0, 4)}}`, ': the header has the key "a" twice'],
    ['a key twice in a tensor', '{"a":{"dtype":"F32","dtype":"F16"}}', ': the header has the key "dtype" twice'],
    ['metadata twice', '{"__metadata__":{},"__metadata__":{}}', ': the header has the key "__metadata__" twice'],
    ['a key twice in metadata', '{"__metadata__":{"x":"1","x":"2"}}', ': the header has the key "x" twice'],
    ['a number in metadata', '{"__metadata__":{"x":1}}', ': __metadata__ is not a map from string to string'],
    ['a list as metadata', '{"__metadata__":["x"]}', ': __metadata__ is not a map from string to string'],
    ['null as metadata', '{"__metadata__":null}', ': __metadata__ is not a map from string to string'],
    [
      'half a surrogate pair as a name',
      `{"\\ud800":${f32(0, 4)}}`,
      ': tensor "\\ud800" has a name that is not Unicode (half a surrogate pair)',
    ],
    [
      'half a surrogate pair in metadata',
      '{"__metadata__":{"x":"\\udc00"}}',
      ': __metadata__ has text that is not Unicode (half a surrogate pair)',
    ],
  ])('%s', async (_, header, message) => {
    const text = await refusal(rawFile(header, 4));
    if (typeof message === 'string') expect(text).toBe(message);
    else expect(text).toMatch(message);
  });

  test('quotes, braces and repeats inside strings are no structure', async () => {
    await writeFile(path, rawFile(`{"__metadata__":{"a\\"{":"}\\\\","b":"\\"b\\":[,1.5"},"c":${f32(0, 4)}}`, 4));
    await using file = await SafetensorsFile.open(path);
    expect(file.metadata).toEqual({ 'a"{': '}\\', b: '"b":[,1.5' });
  });

  test('keys of Object.prototype are plain names', async () => {
    await writeFile(path, rawFile(`{"__proto__":${f32(0, 4)},"constructor":${f32(4, 8)}}`, 8));
    await using file = await SafetensorsFile.open(path);
    expect([...file.tensors.keys()]).toEqual(['__proto__', 'constructor']);
  });
});

describe('one entry', () => {
  test.each<[string, string, string]>([
    ['not an object', '7', 'is 7, not an object'],
    ['null', 'null', 'is null, not an object'],
    ['no dtype', '{"shape":[1],"data_offsets":[0,4]}', 'has the unknown dtype undefined'],
    ['an unknown dtype', entry('F33', [1], 0, 4), 'has the unknown dtype "F33"'],
    ['a dtype from the prototype', entry('toString', [1], 0, 4), 'has the unknown dtype "toString"'],
    ['no shape', '{"dtype":"F32","data_offsets":[0,4]}', 'has the shape undefined, not non-negative integers'],
    ['a number as shape', f32(0, 4, 1), 'has the shape 1, not non-negative integers'],
    ['a negative dimension', f32(0, 4, [-1]), 'has the shape [-1], not non-negative integers'],
    ['a fractional dimension', f32(0, 4, [1.5]), 'has the shape [1.5], not non-negative integers'],
    ['a dimension over 2^53', f32(0, 4, [2 ** 53]), 'has the shape [9007199254740992], not non-negative integers'],
    ['a dimension as text', f32(0, 4, ['1']), 'has the shape ["1"], not non-negative integers'],
    ['no offsets', '{"dtype":"F32","shape":[1]}', 'has the data_offsets undefined, not two non-negative integers'],
    [
      'three offsets',
      '{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}',
      'has the data_offsets [0,4,8], not two non-negative integers',
    ],
    ['a negative offset', f32(-4, 0), 'has the data_offsets [-4,0], not two non-negative integers'],
    ['reversed offsets', f32(4, 0), 'has the reversed data_offsets [4,0]'],
    [
      'an offset over 2^53',
      f32(0, 2 ** 60),
      'has the data_offsets [0,1152921504606847000], not two non-negative integers',
    ],
    ['an end over 2^53', entry('U8', [2 ** 53 - 1], 0, 2 ** 53 - 1), 'ends beyond 2^53'],
    ['a span too long', f32(0, 8), 'of dtype F32 and shape [1] takes 4 bytes but its data_offsets span 8'],
    ['a span too short', f32(0, 4, [2]), 'of dtype F32 and shape [2] takes 8 bytes but its data_offsets span 4'],
    ['rank 0 without bytes', f32(0, 0, []), 'of dtype F32 and shape [] takes 4 bytes but its data_offsets span 0'],
    [
      'a 0 dimension with bytes',
      f32(0, 4, [0]),
      'of dtype F32 and shape [0] takes 0 bytes but its data_offsets span 4',
    ],
    [
      'a product that overflows to 0 in 64 bits',
      f32(0, 0, [2 ** 32, 2 ** 32]),
      'has the shape [4294967296,4294967296], whose product is above 2^64',
    ],
    [
      'a product that overflows before a 0',
      f32(0, 0, [2 ** 32, 2 ** 32, 0]),
      'has the shape [4294967296,4294967296,0], whose product is above 2^64',
    ],
    ['half a byte', entry('F4', [3], 0, 2), 'of dtype F4 and shape [3] does not fill whole bytes'],
    [
      'an unknown field',
      '{"dtype":"F32","shape":[1],"data_offsets":[0,4],"strides":[1]}',
      'has the unknown field "strides"',
    ],
  ])('%s', async (_, text, message) => {
    expect(await refusal(rawFile(`{"a":${text}}`, 4))).toBe(`: tensor "a" ${message}`);
  });

  test.each(['1.0', '1e0'])('the dimension %s, which other readers refuse', async (number) => {
    const text = `{"a":{"dtype":"F32","shape":[${number}],"data_offsets":[0,4]}}`;
    expect(await refusal(rawFile(text, 4))).toBe(
      `: the header has the number "${number}", which is not written as an integer`,
    );
  });

  test('a shape of a million large dimensions is refused at once', async () => {
    const started = performance.now();
    expect(await refusal(rawFile(`{"a":${f32(0, 4, new Array(1e6).fill(2 ** 52))}}`, 4))).toMatch(/above 2\^64$/);
    expect(performance.now() - started).toBeLessThan(5000);
  });
});

describe('all entries together', () => {
  const file = (a: [number, number], b: [number, number], bytes: number) => {
    const shape = ([start, end]: [number, number]) => [end - start];
    return rawFile(`{"a":${entry('U8', shape(a), ...a)},"b":${entry('U8', shape(b), ...b)}}`, bytes);
  };

  test.each<[string, Uint8Array, string]>([
    ['overlap', file([0, 4], [2, 6], 6), ': tensor "b" at byte 2 overlaps the tensor before it, which ends at 4'],
    [
      'the same bytes',
      file([0, 4], [0, 4], 4),
      ': tensor "b" at byte 0 overlaps the tensor before it, which ends at 4',
    ],
    ['a hole', file([0, 4], [5, 6], 6), ': tensor "b" at byte 5 leaves a hole before it, which ends at 4'],
    ['a hole at the start', file([2, 4], [4, 6], 6), ': tensor "a" at byte 2 leaves a hole before it, which ends at 0'],
    [
      'a truncated file',
      file([0, 4], [4, 8], 7),
      ': the file is truncated: its tensors end at byte 128, the file at 127',
    ],
    ['bytes at the end', file([0, 4], [4, 8], 9), ': the file has 1 bytes after its last tensor'],
    ['no tensors but bytes', rawFile('{}', 3), ': the file has 3 bytes after its last tensor'],
  ])('%s', async (_, bytes, message) => {
    expect((await refusal(bytes)).replace(/byte 1\d\d, the file at 1\d\d/, 'byte 128, the file at 127')).toBe(message);
  });

  test('any order of the entries, tensors without bytes anywhere', async () => {
    const zero = entry('F32', [0], 4, 4);
    await writeFile(path, rawFile(`{"c":${f32(4, 8)},"zero":${zero},"a":${f32(0, 4)}}`, 8));
    await using opened = await SafetensorsFile.open(path);
    expect([...opened.tensors.keys()]).toEqual(['a', 'zero', 'c']);
  });
});
