import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { pruningOptionsOf } from '../src/cli/pruning-options.js';
import { Device } from '../src/device/device.js';
import type { Stream } from '../src/device/stream.js';
import { Team } from '../src/device/team.js';
import { Scope } from '../src/device/tensor.js';
import { evaluatePerplexity } from '../src/evaluate.js';
import { groupInputs, type Member, membersOf } from '../src/members.js';
import type { Block } from '../src/model/block.js';
import type { Activations } from '../src/model/block-run.js';
import { DecoderModel, type Float } from '../src/model/decoder.js';
import { type PruneOptions, parsePruneOptions, prune } from '../src/prune.js';
import { denseTarget, parseDenseTarget } from '../src/pruning/dense-target.js';
import { random } from './helpers/numbers.js';

const device = Device.open('cpu', { threads: 2 });
const next = random(11);
const matrix = (rows: number, columns: number) =>
  Array.from({ length: rows }, () => Array.from({ length: columns }, () => Math.fround(2 * next() - 1)));
const flat = (a: number[][]) => Float32Array.from(a.flat());
const product = (a: number[][], b: number[][]) =>
  a.map((row) => b[0]!.map((_, j) => row.reduce((sum, value, k) => sum + value * b[k]![j]!, 0)));
const transposed = (a: number[][]) => a[0]!.map((_, j) => a.map((row) => row[j]!));
const combined = (a: number[][], b: number[][], factor: number) =>
  a.map((row, i) => row.map((value, j) => value + factor * b[i]![j]!));
const scaled = (a: number[][], factor: number) => a.map((row) => row.map((value) => factor * value));
/** Takes activations to a stage, and begins it. */
async function reach(block: Block, stage: number, all: readonly Activations[]): Promise<void> {
  for (const one of all) {
    for (let before = 0; before < stage; before++) {
      await one.begin(block, before);
      one.advance(block, before);
    }
    await one.begin(block, stage);
  }
}
const distance = (a: number[][], b: number[][]) =>
  Math.max(...a.map((row, i) => Math.max(...row.map((value, j) => Math.abs(value - b[i]![j]!)))));
const rowsOf = (values: Float32Array, [rows = 0, columns = 0]: readonly number[]) =>
  Array.from({ length: rows }, (_, i) => Array.from(values.subarray(i * columns, (i + 1) * columns)));

/** b a⁻¹ for a symmetric positive definite a, by Gauss-Jordan in float64. */
function divided(b: number[][], a: number[][]): number[][] {
  const n = a.length;
  const rows = a.map((row, i) => [...row, ...b.map((right) => right[i]!)]);
  for (let k = 0; k < n; k++) {
    for (let i = 0; i < n; i++) {
      if (i === k) continue;
      const factor = rows[i]![k]! / rows[k]![k]!;
      for (let j = k; j < rows[i]!.length; j++) rows[i]![j]! -= factor * rows[k]![j]!;
    }
  }
  return b.map((_, row) => rows.map((values, k) => values[n + row]! / values[k]!));
}

describe('denseTarget', () => {
  const [tokens, n, few] = [60, 13, 7];
  const [pruned, dense, weight, residual] = [
    matrix(tokens, n),
    matrix(tokens, n),
    matrix(few, n),
    matrix(tokens, few),
  ] as const;
  const [tallWeight, tallResidual] = [matrix(29, n), matrix(tokens, 29)];
  /** A layer with more inputs than outputs, and one with more outputs. */
  const layers = { wide: { weight, residual }, tall: { weight: tallWeight, residual: tallResidual } };
  type Shape = keyof typeof layers;

  async function targetOf(
    kind: 'cross' | 'outputs',
    shape: Shape,
    strength: number,
    residualStrength: number,
    ridge: number,
  ) {
    const { weight, residual } = layers[shape];
    const m = weight.length;
    const stream = device.stream();
    using scope = new Scope();
    const upload = (a: number[][]) => scope.hold(stream.upload('float32', [a.length, a[0]!.length], flat(a)));
    const wanted = combined(scaled(product(dense, transposed(weight)), strength), residual, residualStrength);
    const difference = combined(dense, pruned, -1);
    const sum = kind === 'cross' ? product(transposed(pruned), difference) : product(transposed(wanted), pruned);
    const gram = upload(product(transposed(pruned), pruned));
    const group = { layers: [{ name: 'the layer', outputs: m }], weight: upload(weight), gram };
    const target = scope.hold(await denseTarget(stream, group, { kind, sum: upload(sum), strength }, ridge));
    const values = await stream.read(target);
    stream.dispose();
    return Array.from({ length: m }, (_, i) => Array.from(values.subarray(i * n, (i + 1) * n)));
  }

  /** The formula of the docstring, in float64. */
  function expected(shape: Shape, strength: number, residualStrength: number, ridge: number) {
    const { weight, residual } = layers[shape];
    const gram = product(transposed(pruned), pruned);
    const mean = gram.reduce((sum, row, i) => sum + row[i]!, 0) / n;
    const damped = gram.map((row, i) => row.map((value, j) => (i === j ? value + ridge * mean : value)));
    const cross = product(transposed(pruned), dense);
    const right = scaled(product(weight, transposed(combined(cross, gram, -1))), strength);
    const both = combined(right, transposed(product(transposed(pruned), residual)), residualStrength);
    return combined(weight, divided(both, damped), 1);
  }

  test.each([
    ['outputs', 'wide', 0.5, 0.5, 0.01],
    ['outputs', 'tall', 0.5, 0.5, 0.01],
    ['outputs', 'wide', 1, 0, 0.1],
    ['outputs', 'wide', 0, 1, 0.01],
    ['outputs', 'wide', 0.25, 0.75, 0.001],
    ['cross', 'wide', 0.5, 0, 0.01],
    ['cross', 'tall', 0.5, 0, 0.01],
    ['cross', 'wide', 1, 0, 0.1],
    ['cross', 'tall', 1, 0, 0.001],
  ] as const)(
    'sums of %s, %s layer, strengths %d and %d, ridge %d: the formula in float64',
    async (kind, shape, alpha, beta, ridge) => {
      const target = await targetOf(kind, shape, alpha, beta, ridge);
      expect(distance(target, expected(shape, alpha, beta, ridge))).toBeLessThan(2e-5);
    },
  );

  test('full strength without a ridge is the least-squares fit of the dense outputs and the residual', async () => {
    const target = await targetOf('outputs', 'wide', 1, 1, 0);
    const wanted = combined(product(dense, transposed(weight)), residual, 1);
    // Its normal equations: what is left is orthogonal to the inputs.
    const left = combined(wanted, product(pruned, transposed(target)), -1);
    const normal = product(transposed(pruned), left);
    expect(Math.max(...normal.flat().map(Math.abs))).toBeLessThan(1e-3);
    const before = product(transposed(pruned), combined(wanted, product(pruned, transposed(weight)), -1));
    expect(Math.max(...before.flat().map(Math.abs))).toBeGreaterThan(1);
  });

  test.each(['weights', 'gram'] as const)(
    'NaN in the %s is told as such, not as a matrix that has no factor',
    async (which) => {
      const stream = device.stream();
      {
        using scope = new Scope();
        const upload = (a: number[][]) => scope.hold(stream.upload('float32', [a.length, a[0]!.length], flat(a)));
        const spoilt = (a: number[][], is: boolean) => (is ? a.map((row) => row.map(() => Number.NaN)) : a);
        const gram = product(transposed(pruned), pruned);
        const group = {
          layers: [{ name: 'the layer', outputs: few }],
          weight: upload(spoilt(weight, which === 'weights')),
          gram: upload(spoilt(gram, which === 'gram')),
        };
        const inputs = { kind: 'cross', sum: upload(gram), strength: 0.5 } as const;
        await expect(denseTarget(stream, group, inputs, 0.01)).rejects.toMatchObject({ code: 'NOT_FINITE' });
      }
      stream.dispose();
      expect(device.info().memoryUsed).toBe(0);
    },
  );
});

describe.each([
  ['llama-plain', 1, 'outputs', 'float32'],
  ['llama-plain', 2, 'cross', 'float32'],
  ['llama-plain', 3, 'outputs', 'float32'],
  ['llama-plain', 3, 'outputs', 'bfloat16'],
  ['opt-pre', 1, 'outputs', 'float32'],
  ['opt-post', 3, 'outputs', 'float32'],
  ['gemma2', 3, 'cross', 'float32'],
  ['gemma2', 3, 'cross', 'bfloat16'],
  ['llama-plain', 2, 'cross', 'integers'],
  ['mixtral', 1, 'outputs', 'float32'],
] as const)('what is summed: %s, stage %i', (name, stage, kind, products) => {
  const precision = products === 'integers' ? 'bfloat16' : products;
  test(`${kind} in ${products}, against float64; the dense model goes through the stage once`, async () => {
    const [length, windows] = [32, 34]; // more than one chunk of tokens
    const tokens = Uint32Array.from({ length: windows * length }, () => Math.floor(next() * 120));
    const team = new Team([device]);
    const [stream] = team.streams as [Stream];
    const checkpoint = await Checkpoint.open(fileURLToPath(new URL(`fixtures/models/${name}`, import.meta.url)));
    try {
      using scope = new Scope();
      const model = DecoderModel.open(checkpoint, stream, precision);
      const members = await membersOf(team, [model], { tokens, windows, length }, scope, true);
      const [{ activations, dense }] = members as [Required<Member>];
      const block = scope.hold(await model.loadBlock(0));
      // Any other activations serve as the pruned model's.
      const { shape, size } = activations!.residual;
      const noise = Float32Array.from({ length: size }, () => next() - 0.5);
      stream.axpby(scope.hold(stream.upload('float32', shape, noise)), activations!.residual, 1, 1);
      await reach(block, stage, [activations!, dense!]);
      const read = async (tensor: Float) => {
        using wide = device.tensor('float32', tensor.shape);
        stream.copy(tensor, wide);
        return rowsOf(await stream.read(wide), tensor.shape);
      };
      const inputs = async (one: Activations) => {
        const rows: number[][] = [];
        for (let chunk = 0; chunk < one.chunkCount; chunk++) {
          using x = one.chunkInput(block, stage, chunk);
          rows.push(...(await read(x)));
        }
        return rows;
      };
      expect(dense!.chunkCount).toBe(2);
      const [xp, xd] = [await inputs(activations!), await inputs(dense!)];
      const [hp, hd] = [await read(activations!.residual), await read(dense!.residual)];
      const [alpha, beta, weight] = [0.25, 0.75, 3];
      const [seen] = await groupInputs(team, members, {
        blocks: [block],
        denseBlocks: [block],
        stage,
        group: 0,
        solvers: [0],
        moments: false,
        int8: products === 'integers',
        gram: true,
        target: { strength: alpha, residualStrength: beta, errorWeight: weight },
      });
      scope.hold(seen!);
      expect(seen!.dense!.kind).toBe(kind);
      const sum = await read(seen!.dense!.sum);
      let left = combined(xd, xp, -1);
      if (kind === 'outputs') {
        const linear = await read(block.stages[stage]![0]![0]!.weight);
        left = combined(scaled(product(xd, transposed(linear)), alpha), combined(hd, hp, -1), beta);
      }
      const expected = kind === 'outputs' ? product(transposed(left), xp) : product(transposed(xp), left);
      const largest = Math.max(...expected.flat().map(Math.abs));
      // Outputs and differences are rounded to 8 bits in bfloat16: errors of at most 2⁻⁹, and 2⁻¹⁰ in the mean square, of each of the sum's terms. Integers
      // are steps of some 60th of a column's deviation.
      const rounding = { float32: 0, bfloat16: 1 / 1024, integers: 1 / 128 };
      const squares = (rows: number[][]) => rows.map((row) => row.map((value) => value ** 2));
      const terms = Math.sqrt(Math.max(...product(transposed(squares(left)), squares(xp)).flat()));
      expect(distance(sum, expected)).toBeLessThan(1e-5 * largest + 5 * rounding[products] * terms);
      const difference = combined(xp, xd, -1);
      // The last layer of an MLP takes the inputs’ errors by their squares alone.
      const errors = product(transposed(difference), difference).map((row, i) =>
        row.map((value, j) => (stage < 3 || i === j ? value : 0)),
      );
      const objective = combined(product(transposed(xp), xp), errors, weight);
      const most = Math.max(...objective.flat());
      expect(distance(await read(seen!.dense!.objective!), objective)).toBeLessThan(
        (precision === 'float32' ? 1e-5 : 1e-3) * most,
      );
      const after = await read(dense!.residual);
      stream.copy(scope.hold(stream.upload('float32', shape, flat(hd))), dense!.residual);
      if (kind === 'outputs') dense!.advance(block, stage);
      expect(await read(dense!.residual)).toEqual(after);
    } finally {
      team.dispose();
      await checkpoint.close();
    }
    expect(device.info().memoryUsed).toBe(0);
  });
});

test('two devices: each solver gets the sums over both', async () => {
  const [length, windows] = [16, 4];
  const tokens = Uint32Array.from({ length: windows * length }, () => Math.floor(next() * 120));
  const noise = Float32Array.from({ length: windows * length * 48 }, () => next() - 0.5);
  const checkpoint = await Checkpoint.open(fileURLToPath(new URL('fixtures/models/llama-plain', import.meta.url)));
  const objectives = async (devices: readonly Device[]) => {
    const team = new Team(devices);
    try {
      using scope = new Scope();
      const models = team.streams.map((stream) => DecoderModel.open(checkpoint, stream, 'float32'));
      const members = await membersOf(team, models, { tokens, windows, length }, scope, true);
      const blocks: Block[] = [];
      for (const [place, { model, activations, dense }] of members.entries()) {
        const { stream } = model;
        const block = scope.hold(await model.loadBlock(0));
        blocks.push(block);
        const { residual } = activations!;
        const values = noise.slice(place * residual.size, (place + 1) * residual.size);
        stream.axpby(scope.hold(stream.upload('float32', residual.shape, values)), residual, 1, 1);
        await reach(block, 3, [activations!, dense!]);
      }
      const seen = await groupInputs(team, members, {
        blocks,
        denseBlocks: blocks,
        stage: 3,
        group: 0,
        solvers: devices.map((_, place) => place),
        moments: false,
        int8: false,
        gram: true,
        target: { strength: 0.5, residualStrength: 0.5, errorWeight: 2 },
      });
      for (const one of seen) scope.hold(one);
      return await Promise.all(seen.map((one, place) => team.streams[place]!.read(one.dense!.objective!)));
    } finally {
      team.dispose();
    }
  };
  try {
    const other = Device.open('cpu', { threads: 1 });
    const [whole] = await objectives([device]);
    const both = await objectives([device, other]);
    expect(both).toHaveLength(2);
    expect(both[0]).toEqual(both[1]);
    const largest = Math.max(...whole!);
    expect(Math.max(...whole!.map((x, i) => Math.abs(x - both[0]![i]!)))).toBeLessThan(1e-5 * largest);
    expect(other.info().memoryUsed).toBe(0);
  } finally {
    await checkpoint.close();
  }
});

describe('the option', () => {
  const pattern = { sparsity: 0.7 };
  const alps = { method: 'alps', refit: 'pcg', pattern } as const;
  const wanda = { method: 'wanda', refit: 'pcg', pattern } as const;
  test('defaults: half for ALPS at 70 %, none for the others', () => {
    expect(parseDenseTarget(undefined, alps)).toEqual({ strength: 0.5, residualStrength: 0.5, errorWeight: 1 });
    expect(parseDenseTarget(true, alps)).toEqual({ strength: 0.5, residualStrength: 0.5, errorWeight: 1 });
    expect(parseDenseTarget(undefined, wanda)).toBeUndefined();
    expect(parseDenseTarget(false, alps)).toBeUndefined();
    expect(parseDenseTarget({ strength: 0, residualStrength: 0 }, alps)).toBeUndefined();
    expect(parseDenseTarget({ strength: 0.2 }, wanda)).toEqual({
      strength: 0.2,
      residualStrength: 0.5,
      errorWeight: 1,
    });
  });
  test.each([
    ['none', false],
    ['0.4', { strength: 0.4 }],
    ['0.4,0.3', { strength: 0.4, residualStrength: 0.3 }],
    ['0.4,0.3,0', { strength: 0.4, residualStrength: 0.3, errorWeight: 0 }],
  ])('--dense-target %s', (text, option) => {
    expect(pruningOptionsOf({ sparsity: '0.7', 'dense-target': text }).denseTarget).toEqual(option);
  });
  test.each([
    [{ sparsity: 0.3 }, 0.25],
    [{ sparsity: 0.5 }, 0.25],
    [{ keep: 2, of: 4 }, 0.25],
    [{ sparsity: 0.6 }, 0.375],
    [{ sparsity: 0.9 }, 0.5],
    [{ keep: 1, of: 4 }, 0.5],
  ])('at %j: %d', (other, strength) => {
    const target = parseDenseTarget(true, { ...alps, pattern: other })!;
    expect(target.strength).toBeCloseTo(strength, 12);
    expect(target.residualStrength).toBe(target.strength);
  });
  test.each([
    [{ denseTarget: 1 as never }, 'denseTarget'],
    [{ denseTarget: { strength: 1.5 } }, 'denseTarget.strength'],
    [{ denseTarget: { residualStrength: Number.NaN } }, 'denseTarget.residualStrength'],
    [{ denseTarget: { errorWeight: -1 } }, 'denseTarget.errorWeight'],
    [{ denseTarget: true, method: 'wanda' as const }, 'wanda leaves the kept weights as they are'],
  ])('%j is refused', (options, message) => {
    const all = { model: 'm', out: 'o', sparsity: 0.5, calibration: { text: 't' }, ...options } as PruneOptions;
    expect(() => parsePruneOptions(all)).toThrow(message);
  });
});

describe('prune with dense targets', () => {
  const model = fileURLToPath(new URL('../models/union-4m', import.meta.url));
  const calibration = { text: join(model, 'calibration.txt.gz'), windows: 16, length: 128 };
  let scratch: string;
  beforeAll(async () => {
    scratch = await mkdtemp(join(tmpdir(), 'alps-dense-target-'));
  });
  afterAll(() => rm(scratch, { recursive: true, force: true }));
  const run = (out: string, options: Partial<PruneOptions>) =>
    prune({ model, out: join(scratch, out), calibration, sparsity: 0.7, device, ...options });
  const weights = (out: string) => readFile(join(scratch, out, 'model.safetensors'));

  test('lower perplexity on held-out text, no memory left, the strengths in the report', async () => {
    const report = await run('dense', {});
    const plain = await run('plain', { denseTarget: false });
    expect(report.options.denseTarget).toEqual({ strength: 0.5, residualStrength: 0.5, errorWeight: 1 });
    expect(plain.options.denseTarget).toBeNull();
    expect(device.info().memoryUsed).toBe(0);
    const perplexityOf = async (out: string) =>
      (
        await evaluatePerplexity({
          model: join(scratch, out),
          text: join(model, 'held-out.txt.gz'),
          length: 128,
          windows: 24,
        })
      ).perplexity;
    expect(await perplexityOf('dense')).toBeLessThan(await perplexityOf('plain'));
  });

  test('the first stage sees no difference to the dense model: its weights are those of the plain run, but for rounding', async () => {
    const [dense, plain] = [
      await Checkpoint.open(join(scratch, 'dense')),
      await Checkpoint.open(join(scratch, 'plain')),
    ];
    const changed = async (name: string) => {
      const [a, b] = [dense, plain].map((checkpoint) => checkpoint.read(`model.layers.0.${name}.weight`));
      const [x, y] = [new Uint16Array((await a!).buffer), new Uint16Array((await b!).buffer)];
      return x.reduce((count, bits, i) => count + Number((bits === 0) !== (y[i] === 0)), 0) / x.length;
    };
    expect(await changed('self_attn.q_proj')).toBeLessThan(1e-3);
    expect(await changed('self_attn.o_proj')).toBeGreaterThan(5e-3);
    await dense.close();
    await plain.close();
  });

  test.each(['sequential', 'block'] as const)(
    '%s: aborted behind a block it goes on with the same bytes',
    async (propagation) => {
      const controller = new AbortController();
      // More than one chunk of tokens.
      const shared = { sparsity: 0.5, propagation, calibration: { ...calibration, windows: 34 } };
      const options = { ...shared, resume: true };
      await run('whole', { ...shared, overwrite: true });
      await rm(join(scratch, 'resumed'), { recursive: true, force: true });
      await expect(
        run('resumed', {
          ...options,
          signal: controller.signal,
          onEvent: ({ type }) => type === 'block' && controller.abort(),
        }),
      ).rejects.toMatchObject({ code: 'ABORTED' });
      const types: string[] = [];
      await run('resumed', { ...options, onEvent: ({ type }) => types.push(type) });
      expect(types).toContain('resume');
      expect((await weights('resumed')).equals(await weights('whole'))).toBe(true);
    },
  );

  test('block propagation takes them as well', async () => {
    const [block, plain] = [
      await run('block', { propagation: 'block' }),
      await run('block-plain', { propagation: 'block', denseTarget: false }),
    ];
    expect(block.layers.map(({ kept }) => kept)).toEqual(plain.layers.map(({ kept }) => kept));
    expect((await weights('block')).equals(await weights('block-plain'))).toBe(false);
  });
});
