import { execFileSync } from 'node:child_process';
import { mkdir, open, readdir, rename, symlink, truncate, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { dtypeBits, fromFloat32, isQuantizedDtype, type SafetensorsDtype, toFloat32 } from '../src/checkpoint/dtype.js';
import { type NewTensor, SafetensorsFile, writeSafetensors } from '../src/checkpoint/safetensors.js';
import { entry, failure, randomTensor, rawFile, temporaryFolder } from './helpers/safetensors-files.js';

const dtypes = Object.keys(dtypeBits) as SafetensorsDtype[];
let folder: string;
let path: string;
beforeAll(async () => {
  folder = await temporaryFolder();
  path = join(folder, 'x.safetensors');
});

describe('what is written is read', () => {
  const shape = fc.array(fc.nat(5), { maxLength: 4 });
  const tensors = fc
    .uniqueArray(fc.tuple(fc.string({ unit: 'grapheme' }), fc.constantFrom(...dtypes), shape), {
      selector: ([name]) => name,
      maxLength: 8,
    })
    .map((list) =>
      list
        .filter(([name]) => name !== '__metadata__')
        .map(([name, dtype, dims]): NewTensor => {
          // A last dimension of 4 makes any dtype fill whole bytes.
          const sizes = dtypeBits[dtype] < 8 ? [...dims, 4] : dims;
          const bits = sizes.reduce((product, size) => product * size, dtypeBits[dtype]);
          return randomTensor(name, dtype, sizes, bits / 8);
        }),
    );
  const metadata = fc.dictionary(
    fc.string().filter((key) => key !== '__proto__'),
    fc.string(),
  );

  test('any tensors of any dtype, any metadata', async () => {
    await fc.assert(
      fc.asyncProperty(tensors, metadata, async (list, meta) => {
        await writeSafetensors(path, list, meta);
        const file = await SafetensorsFile.open(path);
        try {
          expect({ ...file.metadata }).toEqual({ ...meta });
          expect([...file.tensors.keys()].sort()).toEqual(list.map(({ name }) => name).sort());
          for (const { name, dtype, shape: dims, bytes } of list) {
            expect(file.tensors.get(name)).toMatchObject({ name, dtype, shape: dims, byteLength: bytes.length });
            const read = await file.read(name);
            expect(Buffer.compare(read, bytes)).toBe(0);
            expect([read.byteOffset, read.buffer.byteLength]).toEqual([0, bytes.length]);
          }
        } finally {
          await file.close();
        }
      }),
      { numRuns: 60 },
    );
    expect(await readdir(folder)).toEqual(['x.safetensors']);
  });

  test('no tensors; metadata absent or empty; rank 0; a dimension of 0; spaces after the header', async () => {
    for (const [header, bytes] of [
      ['{}', 0],
      ['{"__metadata__":{}}', 0],
      [`{"a":${entry('F32', [], 0, 4)}}   `, 4],
      [`{"a":${entry('F32', [3, 0, 9007199254740991], 0, 0)},"b":${entry('U8', [1], 0, 1)}}`, 1],
    ] as const) {
      await writeFile(path, rawFile(header, bytes));
      await using file = await SafetensorsFile.open(path);
      for (const { name, byteLength } of file.tensors.values()) {
        expect((await file.read(name)).length).toBe(byteLength);
      }
    }
  });

  test('the data begins at a multiple of 8 bytes, and order is that of the bytes', async () => {
    const list = [
      randomTensor('10', 'F32', [1], 4),
      randomTensor('b', 'F32', [1], 4),
      randomTensor('2', 'F32', [1], 4),
    ];
    await writeSafetensors(path, list);
    await using file = await SafetensorsFile.open(path);
    expect([...file.tensors.keys()]).toEqual(['10', 'b', '2']);
    expect(file.tensors.get('10')!.byteOffset % 8).toBe(0);
    expect(file.metadata).toEqual({ format: 'pt' });
  });

  test('a part of a tensor', async () => {
    await writeSafetensors(path, [{ name: 'a', dtype: 'U8', shape: [4], bytes: Uint8Array.of(1, 2, 3, 4) }]);
    await using file = await SafetensorsFile.open(path);
    const out = new Uint8Array(2);
    await file.readInto('a', out, { offset: 1 });
    expect([...out]).toEqual([2, 3]);
    expect(await failure(file.readInto('a', out, { offset: 3 }))).toEqual({
      code: 'INVALID_ARGUMENT',
      message:
        'Expected an offset with 2 bytes after it in tensor "a" of 4 bytes for offset but received 3 of type number',
    });
  });

  test.each([
    [
      'bytes that do not match',
      [randomTensor('a', 'F32', [2], 7)],
      /tensor "a" of dtype F32 and shape \[2\] takes 8 bytes/,
    ],
    ['a name twice', [randomTensor('a', 'U8', [1], 1), randomTensor('a', 'U8', [1], 1)], /has the key "a" twice/],
    [
      'other arrays',
      [{ ...randomTensor('a', 'F32', [1], 4), bytes: new Float32Array(1) as never }],
      /Expected a Uint8Array/,
    ],
    ['no tensors', undefined as never, /Expected a list for tensors/],
    ['a tensor that is none', [null as never], /Expected an object for tensors/],
  ])('%s are refused when written', async (_, list, message) => {
    expect(await failure(writeSafetensors(path, list))).toEqual({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    });
  });

  test('no path is refused', async () => {
    expect(await failure(writeSafetensors(undefined as never, []))).toEqual({
      code: 'INVALID_ARGUMENT',
      message: 'Expected the path of a file for path but received undefined of type undefined',
    });
  });
});

describe('files that are larger than memory', () => {
  const terabyte = 2 ** 40;

  test('are opened, and read tensor by tensor', async () => {
    const big = join(folder, 'big.safetensors');
    const header = `{"big":${entry('U8', [terabyte], 0, terabyte)},"end":${entry('U8', [4], terabyte, terabyte + 4)}}`;
    await writeFile(big, rawFile(header));
    const start = 8 + header.length;
    await truncate(big, start + terabyte + 4); // sparse
    const handle = await open(big, 'r+');
    await handle.write(Uint8Array.of(9, 8, 7, 6), 0, 4, start + terabyte);
    await handle.close();
    await using file = await SafetensorsFile.open(big);
    expect([...(await file.read('end'))]).toEqual([9, 8, 7, 6]);
    expect(await failure(file.read('big'), folder)).toEqual({
      code: 'OUT_OF_MEMORY',
      message: '/big.safetensors: tensor "big" has 1099511627776 bytes, more than can be held at once',
    });
  });
});

describe('files that cannot be opened', () => {
  const refusal = async (name: string) => failure(SafetensorsFile.open(join(folder, name)), folder);

  test('a missing file, a dangling link, a loop of links', async () => {
    await symlink('nothing', join(folder, 'dangling'));
    await symlink('loop-b', join(folder, 'loop-a'));
    await symlink('loop-a', join(folder, 'loop-b'));
    const missing = 'does not exist, or is a symbolic link to a file that does not exist';
    expect(await refusal('missing')).toEqual({ code: 'FILE_SYSTEM', message: `/missing ${missing}` });
    expect(await refusal('dangling')).toEqual({ code: 'FILE_SYSTEM', message: `/dangling ${missing}` });
    expect(await refusal('loop-a')).toEqual({ code: 'FILE_SYSTEM', message: '/loop-a is a loop of symbolic links' });
  });

  test('a folder, a named pipe without a writer, a device', async () => {
    await mkdir(join(folder, 'folder'));
    execFileSync('mkfifo', [join(folder, 'pipe')]);
    await symlink('/dev/zero', join(folder, 'device'));
    for (const name of ['folder', 'pipe', 'device']) {
      expect(await refusal(name)).toEqual({ code: 'INVALID_CHECKPOINT', message: `/${name} is not a regular file` });
    }
  });

  test('an empty path, an aborted signal', async () => {
    expect((await failure(SafetensorsFile.open(''))).code).toBe('INVALID_ARGUMENT');
    expect((await failure(SafetensorsFile.open(path, { signal: AbortSignal.abort() }))).code).toBe('ABORTED');
  });
});

describe('a file that changes while it is open', () => {
  const list = [randomTensor('a', 'F32', [2], 8)];
  const change = async (action: () => Promise<unknown>) => {
    await writeSafetensors(path, list);
    await using file = await SafetensorsFile.open(path);
    await action();
    return failure(file.read('a'), folder);
  };
  const message = (how: string) =>
    `/x.safetensors was ${how} while it was being read; start again when nothing else writes to it`;

  test.each([
    ['replaced', () => writeSafetensors(path, list)],
    ['removed', () => rename(path, join(folder, 'away'))],
    ['changed', () => truncate(path, 20)],
    ['changed', () => utimes(path, 1, 1)],
  ])('is reported as %s', async (how, action) => {
    expect(await change(action)).toEqual({ code: 'INVALID_CHECKPOINT', message: message(how) });
  });

  test('links are followed, and a closed file says so', async () => {
    await writeSafetensors(path, list);
    await symlink('x.safetensors', join(folder, 'link'));
    const file = await SafetensorsFile.open(join(folder, 'link'));
    expect(Buffer.compare(await file.read('a'), list[0]!.bytes)).toBe(0);
    expect((await failure(file.read('a', { signal: AbortSignal.abort() }))).code).toBe('ABORTED');
    expect((await failure(file.read('b'), folder)).message).toBe('/link has no tensor "b"');
    await file.close();
    await file.close();
    expect((await failure(file.read('a'))).code).toBe('DISPOSED');
    const other = await SafetensorsFile.open(file.path);
    const reads = Array.from({ length: 20 }, () => failure(other.read('a')));
    await other.close();
    expect(new Set((await Promise.all(reads)).map(({ code }) => code))).toEqual(new Set(['DISPOSED']));
  });
});

describe('small floats', () => {
  test('every half and every bfloat16 survives the way to float32 and back', () => {
    const all = Uint16Array.from({ length: 65536 }, (_, i) => i);
    for (const dtype of ['F16', 'BF16'] as const) {
      const values = toFloat32(new Uint8Array(all.buffer), dtype);
      const back = new Uint16Array(fromFloat32(values, dtype).buffer);
      const again = toFloat32(new Uint8Array(back.buffer), dtype);
      expect(all.filter((bits, i) => back[i] !== bits && !Number.isNaN(values[i]))).toHaveLength(0);
      expect(values.filter((value, i) => !Object.is(value, again[i]))).toHaveLength(0);
    }
  });

  test('rounds to nearest, ties to even', () => {
    const half = (x: number) => toFloat32(fromFloat32(Float32Array.of(x), 'F16'), 'F16')[0]!;
    expect([1 + 2 ** -11, 1 + 3 * 2 ** -11, 65519, 65520, 2 ** -25, 3 * 2 ** -25, -0].map(half)).toEqual([
      1,
      1 + 2 ** -9,
      65504,
      Number.POSITIVE_INFINITY,
      0,
      2 ** -23,
      -0,
    ]);
    const bfloat = (x: number) => toFloat32(fromFloat32(Float32Array.of(x), 'BF16'), 'BF16')[0]!;
    expect([1 + 2 ** -8, 1 + 3 * 2 ** -8, 3.4e38, Number.NaN].map(bfloat)).toEqual([
      1,
      1 + 2 ** -6,
      Number.POSITIVE_INFINITY,
      Number.NaN,
    ]);
  });

  test('F64 is not taken for a quantised dtype', () => {
    expect(dtypes.filter(isQuantizedDtype)).toHaveLength(8);
    expect(isQuantizedDtype('F64')).toBe(false);
  });
});
