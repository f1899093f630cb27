import type { LayerBudget } from './allocation/allocation.js';
import type { CheckpointWriter } from './checkpoint/writer.js';
import type { PhaseClock } from './device/phase-clock.js';
import type { Stream } from './device/stream.js';
import { Scope, type Tensor } from './device/tensor.js';
import { copyStored, type Linear } from './model/block.js';
import type { DecoderModel, F32 } from './model/decoder.js';
import { tensorOf } from './model/shapes.js';
import { damped } from './pruning/damping.js';
import { type DenseInputs, denseTarget } from './pruning/dense-target.js';
import type { InputMoments } from './pruning/input-moments.js';
import {
  checkedDiagonal,
  checkWeights,
  type LayerGroup,
  type LayerPlace,
  segmentsOf,
  wholeGram,
} from './pruning/layer-problem.js';
import { solveMagnitude } from './pruning/magnitude.js';
import { choosesAmongRows, isRowwise, type ParsedPruningOptions } from './pruning/options.js';
import { isNm } from './pruning/pattern.js';
import { solutionTensors } from './pruning/solution.js';
import { type GroupResult, layerErrors, solveGroup, withoutErrors } from './pruning/solve-group.js';
import { type GroupPlace, rowWeightsOf } from './row-weights.js';
import { handled, together } from './together.js';
import type { BlockReport, LayerReport } from './traversal.js';

/** What a group of layers sees. */
export interface GroupInputs extends Disposable {
  /** XᵀX, both triangles; undefined where its diagonal is enough. */
  gram: F32 | undefined;
  diagonal: Float32Array<ArrayBuffer> | undefined;
  tokens: number;
  moments: InputMoments | undefined;
  /** What dense targets need, where they are asked for; else layers reproduce their own weights. */
  dense: DenseInputs | undefined;
  dispose(): void;
}

export interface GroupPruningOptions {
  parsed: ParsedPruningOptions;
  /** What each layer keeps, by name; undefined: what the pattern says. */
  budgets: ReadonlyMap<string, LayerBudget> | undefined;
  /** Where the layers stand, for outputs to count by what the block makes of them; undefined: all outputs count the same. */
  place: GroupPlace | undefined;
  writer: CheckpointWriter;
  /** Called with a layer's bytes as they were written. */
  onStored?(linear: Linear, bytes: Uint8Array<ArrayBuffer>): void;
  clock: PhaseClock<keyof BlockReport['phases']>;
}

type Reports = Omit<LayerReport, 'block'>[];

/**
 * Prunes layers that share an input, writes them, and puts what was written into the block.
 * @param inputs undefined, or without tokens, where only the weights decide
 * @returns when all work is queued; `reports` settles when the layers are with the writer too. Until then they hold memory
 */
export async function pruneGroup(
  model: DecoderModel,
  linears: readonly Linear[],
  inputs: GroupInputs | undefined,
  options: GroupPruningOptions,
): Promise<{ reports: Promise<Reports> }> {
  const finished: Reports = [];
  let last: Promise<Reports> | undefined;
  for (const [part, parsed] of byPattern(linears, options)) {
    if (last) finished.push(...(await last));
    last = (await pruneTogether(model, part, inputs, { ...options, parsed })).reports;
  }
  const inOrder = async () => {
    finished.push(...(await last!));
    return linears.map(({ name }) => finished.find((report) => report.name === name)!);
  };
  return { reports: handled(inOrder()) };
}

/** The layers that one solve can take: all of them, but with N:M or budgets by row only those that keep the same share. */
function byPattern(
  linears: readonly Linear[],
  { parsed, budgets }: GroupPruningOptions,
): [part: Linear[], parsed: ParsedPruningOptions][] {
  if (!budgets || !(isNm(parsed.pattern) || isRowwise(parsed))) return [[[...linears], parsed]];
  const parts = new Map<string, [Linear[], ParsedPruningOptions]>();
  for (const linear of linears) {
    const { pattern, keep } = budgets.get(linear.name)!;
    const key = String(keep / linear.outputs);
    const [part] = parts.get(key) ?? parts.set(key, [[], { ...parsed, pattern }]).get(key)!;
    part.push(linear);
  }
  return [...parts.values()];
}

async function pruneTogether(
  model: DecoderModel,
  linears: readonly Linear[],
  inputs: GroupInputs | undefined,
  options: GroupPruningOptions,
): Promise<{ reports: Promise<Reports> }> {
  const began = performance.now();
  const { stream, device, precision } = model;
  const { clock, writer } = options;
  const [{ inputs: width }] = linears as [Linear];
  const outputs = linears.reduce((sum, linear) => sum + linear.outputs, 0);
  using scope = new Scope();
  const weight = scope.hold(device.empty('float32', [outputs, width], `the weights of ${linears[0]!.name}`));
  clock.enter('read');
  for (const [linear, rows] of rowsOf(linears, weight, scope)) await copyStored(model, linear, rows);
  const layers = linears.map(({ name, outputs: count }) => {
    return { name, outputs: count, keep: options.budgets?.get(name)?.keep };
  });
  const seen = inputs && inputs.tokens > 0 ? inputs : undefined;
  const fallback = inputs !== undefined && !seen && options.parsed.method !== 'magnitude';
  const parsed: ParsedPruningOptions = fallback ? { ...options.parsed, comparisonGroup: 'layer' } : options.parsed;
  clock.enter('solve');
  const solve = async () => {
    if (!seen) return byMagnitude(stream, { layers, weight }, { ...parsed, method: 'magnitude' });
    const { gram, diagonal, moments, dense } = seen;
    // Errors are those of the weights as they are stored, below.
    const unmeasured = { ...parsed, errors: false };
    const { place } = options;
    const weigh =
      place && choosesAmongRows(parsed)
        ? await rowWeightsOf(model, place, linears, { gram: wholeGram({ layers, gram }), tokens: seen.tokens })
        : undefined;
    let weighed: Promise<Float32Array<ArrayBuffer> | undefined> | undefined;
    const withRows = async (target: F32, held: Scope): Promise<LayerGroup> => {
      const group = { layers, weight: target, gram: dense?.objective ?? gram, diagonal, moments };
      const scales = await weighed;
      if (!scales) return group;
      const scaled = held.hold(device.empty('float32', weight.shape, 'the weighted rows'));
      scaleRows(stream, target, scales, scaled);
      return { ...group, weight: scaled };
    };
    const reproduced = async (inputs: DenseInputs, ridge: number): Promise<LayerGroup> => {
      const held = new Scope();
      try {
        const made = await denseTarget(stream, { layers, weight, gram }, inputs, ridge);
        const group = await withRows(held.hold(made), held);
        stream.enterPhase('prepare');
        // The first tells whether the target could be made.
        const [, checked] = await together([stream.sync(), checkedDiagonal(stream, group)]);
        scope.hold(held);
        return { ...group, checked };
      } catch (error) {
        held.dispose();
        throw error;
      }
    };
    // What is waited for has something queued behind it: the rows' weights behind the target's checks, and the target itself behind those.
    const target = dense && damped(layers, parsed.ridge, (ridge) => reproduced(dense, ridge));
    weighed = weigh && handled(weigh());
    const [group, scales] = await together([target ?? withRows(weight, scope), weighed]);
    const solved = await solveGroup(stream, group, unmeasured, precision);
    if (scales) {
      const inverse = scales.map((scale) => 1 / scale);
      scaleRows(stream, solved.weight, inverse, solved.weight);
    }
    return solved;
  };
  const result = await solve();
  scope.hold(result.weight);
  scope.hold(result.mask);
  clock.enter('write');
  const storing = rowsOf(linears, result.weight, scope).map(([linear, rows]) => handled(store(model, linear, rows)));
  clock.leave();
  const kept = result.layers.map((layer) => layer.kept);
  const errors =
    seen && parsed.errors
      ? handled(layerErrors(stream, { layers, weight, gram: seen.gram }, result.weight, result.ridge, kept))
      : undefined;
  const { iterations, refineIterations, dampingSteps, capped } = result;
  const report = async (): Promise<Reports> => {
    const [measured, ...stored] = await together([errors, ...storing]);
    const read = performance.now();
    for (const [i, linear] of linears.entries()) {
      const bytes = stored[i]!;
      await writer.queue(tensorOf(linear.spec), bytes, linear.spec.expert);
      options.onStored?.(linear, bytes);
    }
    clock.add('write', performance.now() - read);
    return linears.map(({ name, outputs: count }, i) => ({
      name,
      outputs: count,
      inputs: width,
      kept: kept[i]!,
      sparsity: result.layers[i]!.sparsity,
      error: measured ? measured[i]!.error : null,
      iterations,
      refineIterations,
      dampingSteps,
      capped,
      ...(fallback ? { fallback: 'magnitude' as const } : {}),
      milliseconds: performance.now() - began,
    }));
  };
  return { reports: handled(report()) };
}

function scaleRows(stream: Stream, from: F32, scales: Float32Array<ArrayBuffer>, to: F32): void {
  using row = stream.upload('float32', [scales.length], scales);
  stream.scaleRowsColumns(from, { row }, to);
}

/** Each linear with its rows of a matrix that holds all of them. */
function rowsOf(linears: readonly Linear[], matrix: F32, scope: Scope): [linear: Linear, rows: F32][] {
  let row = 0;
  return linears.map((linear) => {
    const first = row;
    row += linear.outputs;
    return [linear, scope.hold(matrix.rows(first, row))];
  });
}

/** Puts a layer's weights in its checkpoint's dtype and layout, and what they are then (rounded to it) into `rows` and the block. */
async function store(model: DecoderModel, linear: Linear, rows: F32): Promise<Uint8Array<ArrayBuffer>> {
  const { stream, device } = model;
  const { spec } = linear;
  const name = tensorOf(spec);
  using stored = device.empty(model.storedDtype(name), rows.shape, name);
  stream.copy(rows, stored);
  stream.copy(stored, rows);
  stream.copy(stored, linear.weight);
  linear.isPruned = true;
  const { buffer, byteOffset, byteLength } = await readStored(stream, stored, spec.transposed === true);
  return new Uint8Array(buffer, byteOffset, byteLength);
}

async function readStored(stream: Stream, stored: Tensor, transposed: boolean) {
  if (!transposed) return stream.read(stored);
  const [outputs = 0, inputs = 0] = stored.shape;
  using turned = stream.device.empty(stored.dtype, [inputs, outputs]);
  stream.transpose(stored, turned);
  return await stream.read(turned);
}

/** Magnitude pruning without calibration. */
export async function byMagnitude(
  stream: Stream,
  group: { layers: LayerPlace[]; weight: F32 },
  parsed: ParsedPruningOptions,
): Promise<GroupResult> {
  const { device } = stream;
  const { shape } = group.weight;
  await checkWeights(stream, group);
  const segments = segmentsOf(group, parsed.pattern, isRowwise(parsed));
  const { weight, mask } = solutionTensors(device, shape);
  solveMagnitude({ stream, group, segments }, parsed, { weight, mask });
  const layers = withoutErrors(group, segments.keep);
  const time = { factorise: 0, admm: 0, refine: 0, error: 0 };
  const none = { iterations: 0, refineIterations: 0, trace: [], capped: false, ridge: 0, dampingSteps: 0 };
  return { ...none, layers, weight, mask, time };
}
