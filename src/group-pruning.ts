import type { LayerBudget } from './allocation/allocation.js';
import type { CheckpointWriter } from './checkpoint/writer.js';
import type { Stream } from './device/stream.js';
import { Scope, type Tensor } from './device/tensor.js';
import { copyStored, type Linear } from './model/block.js';
import type { DecoderModel, F32 } from './model/decoder.js';
import { tensorOf } from './model/shapes.js';
import { damped } from './pruning/damping.js';
import { type DenseInputs, denseTarget } from './pruning/dense-target.js';
import type { InputMoments } from './pruning/input-moments.js';
import { checkWeights, type LayerPlace, segmentsOf, wholeGram } from './pruning/layer-problem.js';
import { solveMagnitude } from './pruning/magnitude.js';
import { isRowwise, type ParsedPruningOptions } from './pruning/options.js';
import { isNm } from './pruning/pattern.js';
import { solutionTensors } from './pruning/solution.js';
import { type GroupResult, layerErrors, solveGroup, withoutErrors } from './pruning/solve-group.js';
import { type GroupPlace, rowWeights } from './row-weights.js';
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
  timed<T>(phase: keyof BlockReport['phases'], action: () => Promise<T>): Promise<T>;
}

/**
 * Prunes layers that share an input, writes them, and puts what was written into the block.
 * @param inputs undefined, or without tokens, where only the weights decide
 */
export async function pruneGroup(
  model: DecoderModel,
  linears: readonly Linear[],
  inputs: GroupInputs | undefined,
  options: GroupPruningOptions,
): Promise<Omit<LayerReport, 'block'>[]> {
  const reports: Omit<LayerReport, 'block'>[] = [];
  for (const [part, parsed] of byPattern(linears, options))
    reports.push(...(await pruneTogether(model, part, inputs, { ...options, parsed })));
  return linears.map(({ name }) => reports.find((report) => report.name === name)!);
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
): Promise<Omit<LayerReport, 'block'>[]> {
  const began = performance.now();
  const { stream, device, precision } = model;
  const { timed } = options;
  const [{ inputs: width }] = linears as [Linear];
  const outputs = linears.reduce((sum, linear) => sum + linear.outputs, 0);
  using scope = new Scope();
  const weight = scope.hold(device.tensor('float32', [outputs, width], `the weights of ${linears[0]!.name}`));
  await eachRows(linears, weight, (linear, rows) => timed('read', () => copyStored(model, linear, rows)));
  const layers = linears.map(({ name, outputs: count }) => {
    return { name, outputs: count, keep: options.budgets?.get(name)?.keep };
  });
  const seen = inputs && inputs.tokens > 0 ? inputs : undefined;
  const fallback = inputs !== undefined && !seen && options.parsed.method !== 'magnitude';
  const parsed: ParsedPruningOptions = fallback ? { ...options.parsed, comparisonGroup: 'layer' } : options.parsed;
  const result = await timed('solve', async () => {
    if (!seen) return byMagnitude(stream, { layers, weight }, { ...parsed, method: 'magnitude' });
    const { gram, diagonal, moments, dense } = seen;
    // Errors are those of the weights as they are stored, below.
    const unmeasured = { ...parsed, errors: false };
    let target = weight;
    if (dense) {
      const at = (ridge: number) => denseTarget(stream, { layers, weight, gram }, dense, ridge);
      target = scope.hold(await damped(layers, parsed.ridge, at));
    }
    const { place } = options;
    const scales =
      place && choosesAmongRows(parsed)
        ? await rowWeights(model, place, linears, { gram: wholeGram({ layers, gram }), tokens: seen.tokens })
        : undefined;
    const group = { layers, weight: target, gram: dense?.objective ?? gram, diagonal, moments };
    if (!scales) return solveGroup(stream, group, unmeasured, precision);
    const scaled = scope.hold(device.tensor('float32', weight.shape, 'the weighted rows'));
    scaleRows(stream, target, scales, scaled);
    const solved = await solveGroup(stream, { ...group, weight: scaled }, unmeasured, precision);
    scaleRows(
      stream,
      solved.weight,
      scales.map((scale) => 1 / scale),
      solved.weight,
    );
    return solved;
  });
  scope.hold(result.weight);
  scope.hold(result.mask);
  await eachRows(linears, result.weight, (linear, rows) =>
    timed('write', async () => {
      const bytes = await store(model, linear, rows, options.writer);
      options.onStored?.(linear, bytes);
    }),
  );
  const kept = result.layers.map((layer) => layer.kept);
  const errors =
    seen && parsed.errors
      ? await layerErrors(stream, { layers, weight, gram: seen.gram }, result.weight, result.ridge, kept)
      : undefined;
  const { iterations, refineIterations, dampingSteps, capped } = result;
  return linears.map(({ name, outputs: count }, i) => ({
    name,
    outputs: count,
    inputs: width,
    kept: kept[i]!,
    sparsity: result.layers[i]!.sparsity,
    error: errors ? errors[i]!.error : null,
    iterations,
    refineIterations,
    dampingSteps,
    capped,
    ...(fallback ? { fallback: 'magnitude' as const } : {}),
    milliseconds: performance.now() - began,
  }));
}

/** Whether weights of different rows compete: else it does not matter how rows count. */
function choosesAmongRows(parsed: ParsedPruningOptions): boolean {
  return !isNm(parsed.pattern) && !isRowwise(parsed);
}

function scaleRows(stream: Stream, from: F32, scales: Float32Array<ArrayBuffer>, to: F32): void {
  using row = stream.upload('float32', [scales.length], scales);
  stream.scaleRowsColumns(from, { row }, to);
}

/** Calls `use` for each linear with its rows of a matrix that holds all of them. */
async function eachRows(
  linears: readonly Linear[],
  matrix: F32,
  use: (linear: Linear, rows: F32) => Promise<void>,
): Promise<void> {
  let row = 0;
  for (const linear of linears) {
    using rows = matrix.rows(row, row + linear.outputs);
    await use(linear, rows);
    row += linear.outputs;
  }
}

/** Writes a layer's weights in its checkpoint's dtype and layout, and puts what was written (rounded to it) into `rows` and the block. */
async function store(model: DecoderModel, linear: Linear, rows: F32, writer: CheckpointWriter) {
  const { stream, device } = model;
  const { spec } = linear;
  const name = tensorOf(spec);
  using stored = device.tensor(model.storedDtype(name), rows.shape, name);
  stream.copy(rows, stored);
  stream.copy(stored, rows);
  stream.copy(stored, linear.weight);
  linear.isPruned = true;
  const data = await readStored(stream, stored, spec.transposed === true);
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  await writer.queue(name, bytes, spec.expert);
  return bytes;
}

async function readStored(stream: Stream, stored: Tensor, transposed: boolean) {
  if (!transposed) return stream.read(stored);
  const [outputs = 0, inputs = 0] = stored.shape;
  using turned = stream.device.tensor(stored.dtype, [inputs, outputs]);
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
