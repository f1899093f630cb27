import { execFileSync } from 'node:child_process';
import { mkdir, open, readdir, rename, symlink, truncate, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { dtypeBits, fromFloat32, isQuantizedDtype, type SafetensorsDtype, toFloat32 } from '../src/checkpoint/dtype.js';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { type NewTensor, SafetensorsFile, writeSafetensors } from '../src/checkpoint/safetensors.js';
import { entry, failure, modelFolder, randomTensor, rawFile, temporaryFolder } from './helpers/safetensors-files.js';

const dtypes = Object.keys(dtypeBits) as SafetensorsDtype[];
let folder: string;
let path: string;
beforeAll(async () => {
  folder = await temporaryFolder();
  path = join(folder, 'x.safetensors');
});

/** Node 20 has it; the types here are of an older JavaScript. */
const resizable = (bytes: number, most: number) =>
  new (ArrayBuffer as unknown as new (bytes: number, options: object) => ArrayBuffer & { resize(bytes: number): void })(
    bytes,
    { maxByteLength: most },
  );

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
    [
      'a name that is no text',
      [{ ...randomTensor('a', 'U8', [1], 1), name: undefined as never }],
      /^Expected a string for the name of a tensor but received undefined/,
    ],
    [
      'a dtype that is no text',
      [{ ...randomTensor('a', 'U8', [1], 1), dtype: 4n as never }],
      /^Expected a string for the dtype of tensor "a" but received 4 of type bigint/,
    ],
    [
      'a shape of other numbers',
      [{ ...randomTensor('a', 'U8', [4], 4), shape: [4n] as never }],
      /^Expected a list of non-negative integers for the shape of tensor "a"/,
    ],
    [
      'memory that may be resized',
      [{ ...randomTensor('a', 'U8', [4], 4), bytes: new Uint8Array(resizable(4, 8)) }],
      /^The bytes of tensor "a" are in a buffer that can be resized/,
    ],
  ])('%s are refused when written', async (_, list, message) => {
    expect(await failure(writeSafetensors(path, list))).toEqual({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    });
  });

  test('metadata that is no text is refused', async () => {
    for (const metadata of [{ a: 1 }, { a: 1n }] as never[])
      expect((await failure(writeSafetensors(path, [], metadata))).code).toBe('INVALID_ARGUMENT');
  });

  test('what the caller does with the list after the call changes nothing', async () => {
    const list = [randomTensor('a', 'U8', [4], 4), randomTensor('b', 'U8', [2], 2)];
    const expected = list.map(({ name, bytes }) => [name, [...bytes]]);
    const writing = writeSafetensors(path, list);
    list[0]!.shape.push(9);
    list[0]!.bytes = new Uint8Array(3);
    list[1] = randomTensor('b', 'U8', [1], 1);
    list.push(randomTensor('c', 'U8', [5], 5));
    await writing;
    await using file = await SafetensorsFile.open(path);
    const read = [...file.tensors.keys()].map(async (name) => [name, [...(await file.read(name))]]);
    expect(await Promise.all(read)).toEqual(expected);
    expect(file.tensors.get('a')!.shape).toEqual([4]);
  });

  test('bytes that are taken away meanwhile are reported, and the file of before stays', async () => {
    const before = randomTensor('a', 'U8', [4], 4);
    await writeSafetensors(path, [before]);
    const list = [randomTensor('a', 'U8', [4], 4), randomTensor('b', 'U8', [2], 2)];
    const writing = writeSafetensors(path, list);
    const { buffer } = list[1]!.bytes;
    structuredClone(buffer, { transfer: [buffer as ArrayBuffer] });
    expect(await failure(writing)).toEqual({
      code: 'INVALID_ARGUMENT',
      message: 'The bytes of tensor "b" changed while they were written: their buffer was transferred',
    });
    await using file = await SafetensorsFile.open(path);
    expect(Buffer.compare(await file.read('a'), before.bytes)).toBe(0);
    expect((await failure(writeSafetensors(path, list))).message).toContain(
      'The bytes of tensor "b" are not available',
    );
    expect(await readdir(folder)).toEqual(['x.safetensors']);
  });

  test('no path is refused', async () => {
    expect(await failure(writeSafetensors(undefined as never, []))).toEqual({
      code: 'INVALID_ARGUMENT',
      message: 'Expected the path of a file for path but received undefined of type undefined',
    });
  });
});

describe('arguments of reading', () => {
  const refused = async (call: () => Promise<unknown>) => {
    const { code, message } = await failure(call());
    expect(code).toBe('INVALID_ARGUMENT');
    return message;
  };
  let file: SafetensorsFile;
  let checkpoint: Checkpoint;
  beforeAll(async () => {
    const model = await modelFolder();
    file = await SafetensorsFile.open(join(model, 'model.safetensors'));
    checkpoint = await Checkpoint.open(model);
  });
  afterAll(() => Promise.all([file.close(), checkpoint.close()]));

  test.each<[string, unknown]>([
    ['other arrays', new Float32Array(6)],
    ['a view without a length', new DataView(new ArrayBuffer(24))],
    ['a list', [1, 2, 3]],
    ['text', 'text'],
    ['nothing', undefined],
    ['null', null],
  ])('%s to read into', async (_, out) => {
    for (const one of [file, checkpoint])
      expect(await refused(() => one.readInto('a', out as never))).toMatch(
        /^Expected a Uint8Array for out but received /,
      );
  });

  test('options that are none, or not known, and a signal that is none', async () => {
    const calls: ((options: never) => Promise<unknown>)[] = [
      (options) => SafetensorsFile.open(file.path, options),
      (options) => Checkpoint.open(checkpoint.folder, options),
      ...[file, checkpoint].flatMap((one) => [
        (options: never) => one.read('a', options),
        (options: never) => one.readInto('a', new Uint8Array(24), options),
      ]),
    ];
    for (const call of calls) {
      expect(await refused(() => call(null as never))).toBe(
        'Expected an object for options but received null of type null',
      );
      expect(await refused(() => call({ sigal: undefined, sigma: 1 } as never))).toMatch(/^Unknown option "sigma"/);
      for (const signal of ['x', null, {}, new EventTarget()])
        expect(await refused(() => call({ signal } as never))).toMatch(/^Expected an AbortSignal for signal/);
      await call({ signal: new AbortController().signal } as never).then((made) =>
        (made as SafetensorsFile | undefined)?.close?.(),
      );
    }
  });

  test('an array whose memory goes while it is filled', async () => {
    const transfer = ({ buffer }: Uint8Array) => void structuredClone(buffer, { transfer: [buffer as ArrayBuffer] });
    const text = 'Expected an array that keeps its memory for out, but its buffer was transferred or resized';
    const given = new Uint8Array(24);
    const reading = file.readInto('a', given);
    transfer(given);
    expect((await failure(reading)).message).toBe(text);
    expect(await refused(() => file.readInto('a', given))).toBe(text);
    const buffer = resizable(24, 48);
    const shrunk = file.readInto('a', new Uint8Array(buffer));
    buffer.resize(8);
    expect((await failure(shrunk)).message).toBe(text);
    buffer.resize(24);
    const grown = file.readInto('a', new Uint8Array(buffer));
    buffer.resize(48);
    await grown;
    const whole = await file.read('a');
    expect(Buffer.compare(new Uint8Array(buffer), Buffer.concat([whole, new Uint8Array(24)]))).toBe(0);
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
