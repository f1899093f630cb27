import type { Device } from '../device/device.js';
import type { Segments, Stream } from '../device/stream.js';
import { Scope, type Tensor } from '../device/tensor.js';
import { AlpsError } from '../errors.js';
import { together } from '../together.js';
import type { InputMoments } from './input-moments.js';
import { isNm, keptPerRow, keptWeights, type Pattern } from './pattern.js';

type F32 = Tensor<'float32'>;

/** One linear layer of a group: its name for messages and its place among the group's rows. */
export interface LayerPlace {
  name: string;
  /** Output neurons. */
  outputs: number;
  /** Weights that stay, where the pattern does not say it. By row: the same for every row of the group. */
  keep?: number | undefined;
}

/** Layers that share their input, as one matrix of concatenated rows, with the Gram matrix of that input. */
export interface LayerGroup {
  layers: LayerPlace[];
  /** Ŵ, float32 [m, n]: the layers' weights one below the other. */
  weight: F32;
  /** XᵀX, float32 [n, n], both triangles; undefined where `diagonal` is enough ({@link needsGram}). */
  gram: F32 | undefined;
  /** Of XᵀX, in place of it. */
  diagonal?: Float32Array<ArrayBuffer> | undefined;
  /** What {@link checkedDiagonal} gives, where it was called before. */
  checked?: Float32Array<ArrayBuffer> | undefined;
  /** For DSnoT. */
  moments?: InputMoments | undefined;
}

/**
 * The problem in the scaled variables that ADMM and the conjugate gradient work in (docs/algorithm.md, "Scaling"):
 * H = XᵀX + λ₂I, E = diag(H)^-½, H' = E H E with unit diagonal, B₀ = Ŵ E⁻¹.
 */
export class LayerProblem {
  readonly stream: Stream;
  readonly group: LayerGroup;
  readonly segments: Segments;
  /** λ₂ */
  readonly ridge: number;
  /** The diagonal of XᵀX. */
  readonly diagonal: Float32Array<ArrayBuffer>;
  /** What a scaled weight is multiplied by to give the layer's weight, per input; 0 for a dead input. */
  scale: Float32Array<ArrayBuffer>;
  readonly #scope = new Scope();
  #gram: F32 | undefined;
  #base: F32 | undefined;
  /** Of each watched matrix the entries that are NaN or infinite. */
  readonly #watched: Tensor<'uint32'>[] = [];

  private constructor(
    stream: Stream,
    group: LayerGroup,
    segments: Segments,
    ridge: number,
    diagonal: Float32Array<ArrayBuffer>,
    scale: Float32Array<ArrayBuffer>,
  ) {
    this.stream = stream;
    this.group = group;
    this.segments = segments;
    this.ridge = ridge;
    this.diagonal = diagonal;
    this.scale = scale;
  }

  get device(): Device {
    return this.stream.device;
  }
  /** Inputs. */
  get n(): number {
    return this.group.weight.shape[1]!;
  }
  /** Outputs of all layers. */
  get m(): number {
    return this.group.weight.shape[0]!;
  }

  /**
   * @param ridge λ₂ as a share of the mean diagonal
   * @throws AlpsError `NOT_FINITE` when a weight or the Gram matrix holds NaN or infinity
   */
  static async create(stream: Stream, group: LayerGroup, segments: Segments, ridge: number): Promise<LayerProblem> {
    stream.enterPhase('prepare');
    const diagonal = group.checked ?? (await checkedDiagonal(stream, group));
    const lambda = lambdaOf(diagonal, ridge);
    // A dead input (nothing ever arrives on it) costs nothing to prune: its scaled weights are 0, so they are never preferred.
    const scale = diagonal.map((d) => (d > 0 ? 1 / Math.sqrt(d + lambda) : 0));
    return new LayerProblem(stream, group, segments, lambda, diagonal, scale);
  }

  /** H', float32 [n, n]; made when it is first asked for. Scaled in place by {@link scaleColumns}. */
  get gram(): F32 {
    this.#gram ??= this.#scaledGram();
    return this.#gram;
  }

  /** B₀, float32 [m, n]; made when it is first asked for. Scaled in place by {@link scaleColumns}. */
  get base(): F32 {
    if (!this.#base) {
      this.#base = this.#scope.hold(this.scaled(this.group.weight));
      this.watch(this.#base);
    }
    return this.#base;
  }

  /** Has {@link checkFinite} know whether a matrix, as it is now, holds NaN or infinity. */
  watch(matrix: F32): void {
    this.#watched.push(this.#scope.hold(nonFiniteCount(this.stream, matrix)));
  }

  /** @throws AlpsError `NOT_FINITE` where a matrix that was watched holds NaN or infinity: weights and inputs alone are finite */
  async checkFinite(): Promise<void> {
    const counts = await together(this.#watched.map((count) => this.stream.read(count)));
    if (counts.every(([bad]) => bad === 0)) return;
    throw new AlpsError(
      'NOT_FINITE',
      `The weights of ${namesOf(this.group)} times its inputs are too large for float32`,
    );
  }

  #scaledGram(): F32 {
    const { stream, device, n, ridge } = this;
    const dead = 1 / Math.sqrt(ridge || 1);
    using columns = stream.upload(
      'float32',
      [n],
      this.scale.map((e) => (e > 0 ? e : dead)),
    );
    const gram = this.#scope.hold(device.empty('float32', [n, n], 'the scaled Gram matrix'));
    stream.copy(wholeGram(this.group), gram);
    stream.addDiagonal(gram, ridge);
    stream.scaleRowsColumns(gram, { row: columns, column: columns }, gram);
    return gram;
  }

  /** Changes the variables once more: column j of B₀ is multiplied by factor[j], row and column j of H' divided by it. */
  scaleColumns(factor: Float32Array<ArrayBuffer>, ...variables: F32[]): void {
    const { stream } = this;
    using scope = new Scope();
    const up = scope.hold(stream.upload('float32', [this.n], factor));
    const down = scope.hold(
      stream.upload(
        'float32',
        [this.n],
        factor.map((f) => 1 / f),
      ),
    );
    stream.scaleRowsColumns(this.gram, { row: down, column: down }, this.gram);
    for (const matrix of [this.base, ...variables]) stream.scaleRowsColumns(matrix, { column: up }, matrix);
    this.scale = this.scale.map((e, j) => e / factor[j]!);
  }

  /** The scaled weights for the layers' own; 0 for dead inputs. */
  scaled(weight: F32): F32 {
    const { stream, device } = this;
    using inverse = stream.upload(
      'float32',
      [this.n],
      this.scale.map((e) => (e > 0 ? 1 / e : 0)),
    );
    const b = device.empty('float32', weight.shape, 'the scaled weights');
    stream.scaleRowsColumns(weight, { column: inverse }, b);
    return b;
  }

  /** The layers' weights for scaled ones, in place. */
  unscale(b: F32): void {
    const { stream } = this;
    using scale = stream.upload('float32', [this.n], this.scale);
    stream.scaleRowsColumns(b, { column: scale }, b);
  }

  dispose(): void {
    this.#scope.dispose();
  }
}

/**
 * λ₂ from the diagonal of XᵀX.
 * @param ridge as a share of the mean diagonal
 */
export function lambdaOf(diagonal: Float32Array, ridge: number): number {
  const mean = diagonal.reduce((sum, d) => sum + d, 0) / diagonal.length;
  // Where no input is alive every weight costs nothing; any λ₂ keeps the arithmetic finite.
  return mean > 0 ? ridge * mean : 1;
}

/**
 * The rows and budgets of a group's layers.
 * @param byRow whether every row has the same budget
 */
export function segmentsOf(group: Pick<LayerGroup, 'layers' | 'weight'>, pattern: Pattern, byRow = false): Segments {
  const [m = 0, n = 0] = group.weight.shape;
  const rowEnds: number[] = [];
  const keep: number[] = [];
  let end = 0;
  for (const { name, outputs, keep: own } of group.layers) {
    end += outputs;
    rowEnds.push(end);
    if (own !== undefined) keep.push(own);
    else if (byRow && !isNm(pattern)) keep.push(outputs * keptPerRow(pattern, n));
    else keep.push(keptWeights(pattern, outputs, n, name));
  }
  if (end !== m) throw new AlpsError('INTERNAL', `The group's layers have ${end} outputs, its weight ${m}`);
  return { rowEnds, keep };
}

/** See {@link productsTogether}: on a processor. */
export const fewestTogether = 2 ** 34;
/** Floating-point operations that one op may take up with its products: on a processor it holds the device so long, on a GPU it is queued. */
export const productsTogether = (device: Device) => (device.name === 'cpu' ? fewestTogether : 2 ** 43);

/** Weights that all layers keep together. */
export function keptOf({ keep }: Segments): number {
  return keep.reduce((sum, k) => sum + k, 0);
}

/** The pattern as native ops take it. */
export function nativePattern(pattern: Pattern): { keep: number; of: number } | null {
  return isNm(pattern) ? { keep: pattern.keep, of: pattern.of } : null;
}

/**
 * The diagonal of a group's Gram matrix, once its numbers and its weights' are known to be finite.
 * @throws AlpsError `NOT_FINITE`; `NOT_POSITIVE_DEFINITE` for a negative entry
 */
export async function checkedDiagonal(stream: Stream, group: LayerGroup): Promise<Float32Array<ArrayBuffer>> {
  const names = namesOf(group);
  const [values, badGram] = await together([
    group.diagonal ?? diagonalOf(stream, wholeGram(group)),
    group.gram ? nonFinite(stream, group.gram) : 0,
    checkWeights(stream, group),
  ]);
  if (badGram > 0) {
    throw new AlpsError(
      'NOT_FINITE',
      `${badGram} entries of the Gram matrix of ${names} are NaN or infinite: so are its inputs`,
    );
  }
  const bad = values.findIndex((d) => !Number.isFinite(d));
  if (bad >= 0) throw new AlpsError('NOT_FINITE', `Input ${bad} of ${names} is NaN or infinite`);
  const negative = values.findIndex((d) => d < 0);
  if (negative >= 0) {
    throw new AlpsError(
      'NOT_POSITIVE_DEFINITE',
      `The Gram matrix of ${names} has the negative diagonal entry ${values[negative]} at ${negative}`,
    );
  }
  return values;
}

/** @throws AlpsError `NOT_FINITE` when a weight is NaN or infinite */
export async function checkWeights(stream: Stream, group: Pick<LayerGroup, 'layers' | 'weight'>): Promise<void> {
  const bad = await nonFinite(stream, group.weight);
  if (bad === 0) return;
  throw new AlpsError('NOT_FINITE', `${bad} weights of ${namesOf(group)} are NaN or infinite`);
}

/** Entries that are NaN or infinite. */
async function nonFinite(stream: Stream, matrix: F32): Promise<number> {
  using count = nonFiniteCount(stream, matrix);
  const [found = 0] = await stream.read(count);
  return found;
}

function nonFiniteCount(stream: Stream, matrix: F32): Tensor<'uint32'> {
  const count = stream.device.tensor('uint32', [1]);
  stream.countNonFinite(matrix, count);
  return count;
}

/** A group's layers, for messages. */
export function namesOf({ layers }: { layers: readonly { name: string }[] }): string {
  return layers.map(({ name }) => name).join(', ');
}

export async function diagonalOf(stream: Stream, gram: F32): Promise<Float32Array<ArrayBuffer>> {
  using diagonal = stream.device.tensor('float32', [gram.shape[0]!]);
  stream.diagonal(gram, diagonal);
  return await stream.read(diagonal);
}

/** The Gram matrix of a group that must have it. */
export function wholeGram(group: Pick<LayerGroup, 'gram' | 'layers'>): F32 {
  if (group.gram) return group.gram;
  throw new AlpsError('INTERNAL', `The Gram matrix of ${namesOf(group)} was not collected`);
}
