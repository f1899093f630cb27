import fc from 'fast-check';
import { type Addon, addon, type DType, type NativeStream, type NativeTensor } from '../src/device/addon.js';

/** Calls with arbitrary arguments: scripts/sanitize.mjs --node asks for more than a test run does. */
const numRuns = Number(process.env.ALPS_ADDON_CALLS ?? 1500);

const native = addon();
const functions = native as unknown as Record<string, (...args: unknown[]) => unknown>;
const nowhere = { kernels: '/nowhere/libalps_cuda.so', folders: [] };
const device = native.openDevice('cpu', { threads: 2, memoryLimit: 1 << 26, isa: '' }, nowhere);
const dtypes: DType[] = ['float32', 'bfloat16', 'float16', 'float64', 'uint32', 'uint8'];
const shapes = [[], [1], [4], [4, 4], [3, 4], [0, 4]];

/** Thrown by getters: what a call must pass on. */
class FromGetter extends Error {}
const throwing = (...names: string[]) =>
  Object.defineProperties(
    {},
    Object.fromEntries(
      names.map((name) => [
        name,
        {
          get() {
            throw new FromGetter();
          },
        },
      ]),
    ),
  );

function throwingArray(): unknown[] {
  return Object.defineProperty([1, 2], 0, {
    get() {
      throw new FromGetter();
    },
  });
}

function detached(): Float32Array {
  const array = new Float32Array(4);
  structuredClone(array.buffer, { transfer: [array.buffer] });
  return array;
}

/** What a description of an argument stands for in one call. */
type Make = (stream: NativeStream, tensors: NativeTensor[]) => unknown;
const value =
  (made: unknown): Make =>
  () =>
    made;

const numbers = fc.oneof(
  fc.integer({ min: -2, max: 20 }),
  fc.constantFrom(Number.NaN, Infinity, -Infinity, -0, 0.5, 2 ** 31, 2 ** 32, 2 ** 53, -(2 ** 53), 2 ** 63, 1e300),
);
const tensors = fc.nat(shapes.length * dtypes.length).map(
  (i): Make =>
    (_, made) =>
      made[i % made.length],
);
const fitting = fc.oneof(
  { weight: 6, arbitrary: tensors },
  { weight: 2, arbitrary: numbers.map(value) },
  { weight: 1, arbitrary: fc.boolean().map(value) },
  { weight: 1, arbitrary: fc.array(numbers, { maxLength: 4 }).map(value) },
  { weight: 1, arbitrary: fc.record({ keep: numbers, of: numbers }).map(value) },
  { weight: 1, arbitrary: fc.constantFrom('silu', 'gelu', 'float32', 'uint8', '', 'a label').map(value) },
  { weight: 2, arbitrary: fc.constant(value(null)) },
);
const strange = fc.oneof(
  fc.anything({ withBigInt: true, withTypedArray: true, withDate: true, withNullPrototype: true }).map(value),
  fc.constantFrom<Make>(
    value(device),
    (stream) => stream,
    () => Symbol('argument'),
    () => () => {},
    () => new Float32Array(4),
    () => new Float32Array(new SharedArrayBuffer(16)),
    () => new DataView(new ArrayBuffer(16)),
    () => new Uint8Array(Reflect.construct(ArrayBuffer, [16, { maxByteLength: 32 }])),
    () => new Proxy([], {}),
    () => new Array(2 ** 32 - 1),
    detached,
    () => throwing('keep', 'of', 'kernels', 'folders', 'length', 'threads'),
    throwingArray,
    (_, made) =>
      Object.defineProperty([1, 2], 0, {
        get() {
          native.disposeTensor(made[0]!);
          return 1;
        },
      }),
  ),
);
const argument = fc.oneof({ weight: 8, arbitrary: fitting }, { weight: 1, arbitrary: strange });

// Those that open devices stay apart: a device is never closed. The next two are for the end of the process, and the last locks files of any number.
const apart = ['openDevice', 'probeCuda', 'stopDevices', 'claimExit', 'lockFile'];
const names = Object.keys(native).filter((name) => !apart.includes(name));

const codes = ['INVALID_ARGUMENT', 'DISPOSED', 'OUT_OF_MEMORY', 'NO_DEVICE'];

/** Whether the call returned; what it throws must be an error with a code, or come from a getter. */
function answers(name: string, args: unknown[]): boolean {
  try {
    functions[name]!(...args);
    return true;
  } catch (error) {
    if (!(error instanceof FromGetter)) expect(codes).toContain((error as { code?: unknown }).code);
    return false;
  }
}

const settled = (stream: NativeStream) =>
  new Promise((resolve) => native.syncStream(stream, (error) => resolve(error?.code ?? 'done')));

describe('the addon called with arbitrary values', () => {
  test('every call returns or throws an error with a code, and the device works on', async () => {
    let returned = 0;
    const call = fc.record({
      name: fc.constantFrom(...names),
      first: fc.nat(11),
      args: fc.array(argument, { maxLength: 12 }),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(call, { minLength: 1, maxLength: 8 }), async (calls) => {
        const stream = native.openStream(device);
        const made = dtypes.flatMap((dtype) =>
          shapes.map((shape) => native.makeTensor(device, dtype, shape, '', true)),
        );
        native.disposeTensor(made[7]!);
        for (const { name, first, args } of calls) {
          const head = first === 0 ? [] : name === 'openStream' || name === 'makeTensor' ? [device] : [stream];
          const rest = args
            .slice(0, Math.max(0, functions[name]!.length || args.length))
            .map((make) => make(stream, made));
          if (answers(name, [...head, ...rest])) returned++;
        }
        native.cancelStream(stream); // an op may have been told to iterate 2^53 times
        // An op may have failed for what it was given before it was stopped; only INTERNAL would be a fault of the addon.
        expect(['done', 'ABORTED', 'NOT_POSITIVE_DEFINITE', 'INVALID_ARGUMENT', 'OUT_OF_MEMORY']).toContain(
          await settled(stream),
        );
        native.closeStream(stream);
        for (const tensor of made) native.disposeTensor(tensor);
      }),
      { numRuns, seed: 20261125 },
    );
    expect(returned).toBeGreaterThan(numRuns / 20);
    const stream = native.openStream(device);
    const tensor = native.makeTensor(device, 'float32', [3], '', true);
    native.fill(stream, tensor, 7);
    const out = new Float32Array(3);
    await new Promise((resolve) => native.readTensor(stream, tensor, out, resolve));
    expect([...out]).toEqual([7, 7, 7]);
    native.closeStream(stream);
  }, 600_000);

  test('devices are refused in words', () => {
    const options = { threads: 1, memoryLimit: 0, isa: '' };
    const calls: unknown[][] = [
      [],
      ['cpu'],
      ['cpu', null, nowhere],
      ['cpu', { ...options, threads: -1 }, nowhere],
      ['cpu', { ...options, threads: 1025 }, nowhere],
      ['cpu', { ...options, threads: 2 ** 40 }, nowhere],
      ['cpu', { ...options, memoryLimit: -1 }, nowhere],
      ['cpu', { ...options, isa: 'sse9' }, nowhere],
      ['cpu', { ...options, isa: 1 }, nowhere],
      ['cpu', throwing('threads'), nowhere],
      ['cpu', options],
      ['cpu', options, { kernels: '', folders: 'a' }],
      ['cpu', options, { kernels: '', folders: [1] }],
      ['cuda:0', options, nowhere],
      ['cuda:4294967296', options, nowhere],
      [Symbol('cpu'), options, nowhere],
    ];
    for (const args of calls) expect(answers('openDevice', args)).toBe(false);
    for (const args of [[], [null], [{}], [{ kernels: '', folders: null }]])
      expect(answers('probeCuda', args)).toBe(false);
  });

  test('a view cannot claim more than its tensor has, however its size is written', () => {
    const tensor = native.makeTensor(device, 'float32', [4], '', true);
    const views: [number, number[]][] = [
      [0, [2 ** 32, 2 ** 32]],
      [2 ** 53, [1]],
      [-1, [1]],
      [4, [1]],
      [0, [5]],
      [0, [2 ** 62]],
    ];
    for (const [first, shape] of views) expect(answers('viewTensor', [tensor, first, shape])).toBe(false);
    const disposing = Object.defineProperty([0], 0, {
      get() {
        native.disposeTensor(tensor);
        return 4;
      },
    });
    expect(answers('viewTensor', [tensor, 0, disposing])).toBe(false);
  });

  test('arrays whose memory may go away are refused', () => {
    const stream = native.openStream(device);
    const tensor = native.makeTensor(device, 'float32', [4], '', true);
    const resizable = new Float32Array(Reflect.construct(ArrayBuffer, [16, { maxByteLength: 32 }]), 0, 4);
    for (const array of [detached(), resizable, new Float32Array(new SharedArrayBuffer(16)), new Float32Array(3), []])
      expect(answers('writeTensor', [stream, tensor, array])).toBe(false);
    expect(answers('writeTensor', [stream, tensor, new Float32Array(4)])).toBe(true);
    native.closeStream(stream);
  });

  test('a tensor of another device is refused', () => {
    const other = native.openDevice('cpu', { threads: 1, memoryLimit: 1 << 25, isa: '' }, nowhere);
    const stream = native.openStream(other);
    const tensor = native.makeTensor(device, 'float32', [4], '', true);
    expect(() => native.fill(stream, tensor, 1)).toThrow('Expected a tensor of the stream');
    native.closeStream(stream);
  });

  test('ops that take tensors refuse nothing in their place', () => {
    const stream = native.openStream(device);
    const scalar = native.makeTensor(device, 'float32', [], '', true);
    const count = native.makeTensor(device, 'uint32', [1], '', true);
    const calls: [keyof Addon, unknown[]][] = [
      ['copy', [null, null]],
      ['copy', [scalar, undefined]],
      ['countNonFinite', [null, count]],
      ['gatedActivation', [scalar, null, scalar, 'silu']],
      ['activate', [scalar, null, 'silu']],
    ];
    for (const [name, args] of calls) expect(answers(name, [stream, ...args])).toBe(false);
    native.closeStream(stream);
  });
});
