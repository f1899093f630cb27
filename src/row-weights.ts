import { Scope } from './device/tensor.js';
import { type Block, copyStored, type Linear } from './model/block.js';
import type { Activation, DecoderConfig } from './model/config.js';
import type { DecoderModel, F32 } from './model/decoder.js';
import type { LinearSpec, Part } from './model/families/family.js';
import { partRows } from './model/shapes.js';
import { together } from './together.js';

/** Layers of a block that share an input, and where they stand in it. */
export interface GroupPlace {
  block: Block;
  stage: number;
  group: number;
}

/** Weights beyond these shares of a part's usual one say more about a model's noise than about its outputs. */
const [least, most] = [1e-4, 1e4];

/**
 * How much the block makes of an error in each output of a group: to first order the mean square of what reaches the residual stream for an
 * error of mean square 1, up to one factor for each part (docs/algorithm.md, "Row weights"). From the layers' own weights, the dense layer
 * behind them, and the Gram matrix; pre-activations count as normal with mean 0.
 *
 * - queries: the squares of the keys they meet, and keys those of the queries, averaged over the two coordinates that a rotation mixes
 * - values: the columns of the layer behind attention
 * - gate, up: the columns of the MLP's last layer, times the squares of what they are multiplied by
 *
 * @param linears of the group, all or some; `gram` is XᵀX over `tokens` inputs
 * @returns what queues all work at its call and gives one for each output of `linears`; undefined behind attention and at the end of an MLP,
 * where all count the same, and where a number is not finite
 */
export async function rowWeightsOf(
  model: DecoderModel,
  place: GroupPlace,
  linears: readonly Linear[],
  inputs: { gram: F32; tokens: number },
): Promise<() => Promise<Float32Array<ArrayBuffer> | undefined>> {
  const { block, stage, group } = place;
  if (stage % 2 === 1) return async () => undefined;
  const all = block.stages[stage]![group]!;
  const scope = new Scope();
  try {
    const stored: F32[] = [];
    for (const linear of [...all, block.stages[stage + 1]![group]![0]!])
      stored.push(scope.hold(await storedWeights(model, linear)));
    return () => {
      using _ = scope;
      return weigh(model, place, linears, { ...inputs, stored });
    };
  } catch (error) {
    scope.dispose();
    throw error;
  }
}
/** Queues all its work at once: what is queued behind it may fail. */
async function weigh(
  model: DecoderModel,
  { block, stage, group }: GroupPlace,
  linears: readonly Linear[],
  { gram, tokens, stored }: { gram: F32; tokens: number; stored: F32[] },
): Promise<Float32Array<ArrayBuffer> | undefined> {
  const all = block.stages[stage]![group]!;
  const norms = stage === 0 ? [block.queryNorm, block.keyNorm] : [];
  const [behind, gains, ...squares] = await together([
    columnSquares(model, stored[all.length]!),
    together(norms.map((norm) => norm && model.stream.read(norm))),
    ...all.map((linear, i) => outputSquares(model, linear, stored[i]!, { gram, tokens })),
  ]);
  const energies = new Map<Part, Float64Array>();
  for (const [i, linear] of all.entries())
    for (const [part, start, end] of rangesOf(model.config, linear.spec))
      energies.set(part, squares[i]!.subarray(start, end));
  const weights =
    stage === 0 ? ofAttention(model, block, energies, { behind, gains }) : ofMlp(model.config, energies, behind);
  const rows = linears.flatMap(({ spec }) =>
    rangesOf(model.config, spec).map(([part]) => relative(weights.get(part)!)),
  );
  const result = new Float32Array(rows.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const row of rows) {
    result.set(row, at);
    at += row.length;
  }
  // NaN or infinity in a layer or in the inputs: the solve of that layer names it.
  return result.every(Number.isFinite) ? result : undefined;
}

/** The parts of a matrix and their rows. */
function rangesOf(config: DecoderConfig, spec: LinearSpec): [part: Part, start: number, end: number][] {
  let end = 0;
  return spec.parts.map((part) => {
    const start = end;
    end += partRows({ config, spec, part });
    return [part, start, end];
  });
}

/** Mean square of each output of a layer as the checkpoint has it; a bias counts by its square. */
async function outputSquares(
  { stream, device }: DecoderModel,
  { bias }: Linear,
  weight: F32,
  { gram, tokens }: { gram: F32; tokens: number },
) {
  using sums = device.tensor('float64', [weight.shape[0]!], 'the outputs’ squares');
  stream.quadraticForms(weight, gram, sums);
  const [squares, offsets] = await together([stream.read(sums), bias && stream.read(bias)]);
  return squares.map((square, i) => Math.max(0, square) / tokens + (offsets?.[i] ?? 0) ** 2);
}

async function columnSquares({ stream, device }: DecoderModel, weight: F32): Promise<Float64Array> {
  using scope = new Scope();
  const [outputs = 0, inputs = 0] = weight.shape;
  const turned = scope.hold(device.tensor('float32', [inputs, outputs], 'the columns of the layer behind'));
  stream.transpose(weight, turned);
  const sums = scope.hold(device.tensor('float64', [inputs]));
  stream.rowDots(turned, turned, sums);
  return await stream.read(sums);
}

/** The caller disposes them. */
async function storedWeights(model: DecoderModel, linear: Linear): Promise<F32> {
  const weight = model.device.tensor('float32', linear.weight.shape, linear.name);
  try {
    await copyStored(model, linear, weight);
    return weight;
  } catch (error) {
    weight.dispose();
    throw error;
  }
}

type Weights = Map<Part, Float64Array>;

/** @param read `behind`: squares of the columns of the layer behind; `gains` of the norms of queries and of keys, where there are such */
function ofAttention(
  { config }: DecoderModel,
  { layer }: Block,
  energies: Weights,
  { behind, gains }: { behind: Float64Array; gains: (Float32Array<ArrayBuffer> | undefined)[] },
): Weights {
  const { heads, kvHeads, headDim, normOffset, ropes, ropeOf } = config;
  const queriesPerKey = heads / kvHeads;
  const [queryGains, keyGains] = gains.map((norm) => norm?.map((gain) => (gain + normOffset) ** 2));
  const q = normalised(energies.get('q')!, headDim, queryGains);
  const k = normalised(energies.get('k')!, headDim, keyGains);
  const rotated = ropes[ropeOf[layer] ?? -1]?.dimensions ?? 0;
  const met = (squares: Float64Array, head: number, i: number) =>
    i >= rotated
      ? squares[head * headDim + i]!
      : (squares[head * headDim + i]! + squares[head * headDim + ((i + rotated / 2) % rotated)]!) / 2;
  const sumOverQueries = (keyHead: number, value: (head: number) => number) => {
    let sum = 0;
    for (let j = 0; j < queriesPerKey; j++) sum += value(keyHead * queriesPerKey + j);
    return sum;
  };
  const each = (count: number, value: (head: number, i: number) => number) =>
    Float64Array.from({ length: count * headDim }, (_, row) => value(Math.floor(row / headDim), row % headDim));
  return new Map<Part, Float64Array>([
    ['q', each(heads, (head, i) => q.slope(head, i) * met(k.squares, Math.floor(head / queriesPerKey), i))],
    ['k', each(kvHeads, (key, i) => k.slope(key, i) * sumOverQueries(key, (head) => met(q.squares, head, i)))],
    ['v', each(kvHeads, (key, i) => sumOverQueries(key, (head) => behind[head * headDim + i]!))],
  ]);
}

/** Squares behind a norm of each head, and what it multiplies an error's square by. */
function normalised(squares: Float64Array, headDim: number, gains: Float32Array | undefined) {
  if (!gains) return { squares, slope: () => 1 };
  const factors = Float64Array.from({ length: squares.length / headDim }, (_, head) => {
    const own = squares.subarray(head * headDim, (head + 1) * headDim);
    return (
      headDim /
      Math.max(
        own.reduce((sum, square) => sum + square, 0),
        Number.MIN_VALUE,
      )
    );
  });
  const slope = (head: number, i: number) => gains[i]! * factors[head]!;
  return {
    squares: squares.map((square, row) => square * slope(Math.floor(row / headDim), row % headDim)),
    slope,
  };
}

function ofMlp({ activation }: DecoderConfig, energies: Weights, behind: Float64Array): Weights {
  const [gate, up] = [energies.get('gate'), energies.get('up')!];
  const { value, slope } = momentsOf(activation);
  if (!gate) return new Map([['up', up.map((square, i) => behind[i]! * slope(square))]]);
  return new Map([
    ['gate', gate.map((square, i) => behind[i]! * up[i]! * slope(square))],
    ['up', gate.map((square, i) => behind[i]! * value(square))],
  ]);
}

/** Square roots of the weights as shares of their geometric mean, bounded. */
function relative(weights: Float64Array): Float64Array {
  const floor = Number.MIN_VALUE;
  const mean = Math.exp(weights.reduce((sum, weight) => sum + Math.log(Math.max(weight, floor)), 0) / weights.length);
  return weights.map((weight) => Math.sqrt(Math.min(most, Math.max(least, weight / mean))));
}

interface Moments {
  /** E f(z)² for z ~ N(0, v), by v. */
  value(variance: number): number;
  /** E f′(z)² */
  slope(variance: number): number;
}

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
const tanhInside = (x: number) => Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3);
const functions: Record<Activation, (x: number) => number> = {
  silu: (x) => x * sigmoid(x),
  gelu: (x) => 0.5 * x * (1 + Math.tanh(tanhInside(x))), // the exact one differs by less than 1e-3
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(tanhInside(x))),
  relu: (x) => Math.max(0, x),
};

const tables = new Map<Activation, Moments>();

function momentsOf(activation: Activation): Moments {
  const known = tables.get(activation);
  if (known) return known;
  const f = functions[activation];
  const made = {
    value: tabulated((x) => f(x) ** 2),
    slope: tabulated((x) => ((f(x + 1e-4) - f(x - 1e-4)) / 2e-4) ** 2),
  };
  tables.set(activation, made);
  return made;
}

/** v → E g(z), z ~ N(0, v), between 1e-8 and 1e8, from a table in log v. */
function tabulated(g: (x: number) => number): (variance: number) => number {
  const perDecade = 8;
  const table = Array.from({ length: 16 * perDecade + 1 }, (_, i) =>
    Math.log(gaussianMean(g, 10 ** (i / perDecade - 8))),
  );
  return (variance) => {
    const place = Math.min(table.length - 1, Math.max(0, (Math.log10(Math.max(variance, 1e-8)) + 8) * perDecade));
    const [low, share] = [Math.floor(place), place % 1];
    const next = table[Math.min(low + 1, table.length - 1)]!;
    return Math.exp(table[low]! * (1 - share) + next * share);
  };
}

function gaussianMean(g: (x: number) => number, variance: number): number {
  const deviation = Math.sqrt(variance);
  let [sum, total] = [0, 0];
  for (let z = -6; z <= 6; z += 1 / 16) {
    const density = Math.exp((-z * z) / 2);
    sum += density * g(deviation * z);
    total += density;
  }
  return Math.max(sum / total, Number.MIN_VALUE);
}
