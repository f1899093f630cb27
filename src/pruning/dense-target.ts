import type { Stream } from '../device/stream.js';
import type { Tensor } from '../device/tensor.js';
import { AlpsError, invalidArgument, type Names, optionsObject } from '../errors.js';
import { checkedDiagonal, type LayerGroup, lambdaOf, wholeGram } from './layer-problem.js';
import { numberIn, type ParsedPruningOptions } from './options.js';
import { isNm, type Pattern } from './pattern.js';

type F32 = Tensor<'float32'>;

/** How much of the dense model's activations the layers reproduce; see docs/algorithm.md, "Dense targets". */
export interface DenseTargetOptions {
  /**
   * α, from 0 to 1: share of the dense model's activations to reproduce. 0: a layer's outputs with its own dense weights on the pruned model's
   * inputs; 1: the dense layer's outputs on the dense model's inputs. Default 0.5 from 70 % sparsity, 0.25 up to 50 % and for 2:4, linear between.
   */
  strength?: number;
  /**
   * β, from 0 to 1: share of the residual stream's difference from the dense model's that the layers which add to the stream undo. The default is that
   * of `strength`, whatever `strength` is given.
   */
  residualStrength?: number;
  /**
   * κ, from 0 to 1000: weight of errors already in the inputs, that is of their differences from the dense model's inputs, when a layer is solved. On
   * other text these errors are larger. For the last layer of an MLP only each input's squared errors count, not their correlations. Default 1.
   */
  errorWeight?: number;
}

/** {@link DenseTargetOptions} with their defaults. */
export type DenseTarget = Required<DenseTargetOptions>;

export const denseTargetNames: Names<DenseTargetOptions> = {
  strength: true,
  residualStrength: true,
  errorWeight: true,
};

/** What a group of layers sees of the dense model, summed over the tokens. */
export interface DenseInputs {
  /**
   * `cross`: the sum is X_pᵀ(X_d − X_p), the pruned model's inputs against their differences to the dense model's. `outputs`: it is
   * (α X_d Ŵᵀ + β (h_d − h_p))ᵀ X_p, for a layer whose outputs are added to the residual stream h as they are.
   */
  kind: 'cross' | 'outputs';
  /** float32, [n, n] or [m, n]. */
  sum: F32;
  /** α */
  strength: number;
  /**
   * G + κ Σ (x_p − x_d)(x_p − x_d)ᵀ, for the last layer of an MLP with the sum's diagonal alone, float32 [n, n]: what the solve goes by in place of G;
   * undefined for κ = 0.
   */
  objective: F32 | undefined;
}

/**
 * Reads the option; undefined where layers reproduce their own weights, which is the default of all methods but ALPS.
 * @throws AlpsError `INVALID_ARGUMENT` for a method that leaves the kept weights as they are
 */
export function parseDenseTarget(
  given: boolean | DenseTargetOptions | undefined,
  { method, refit, pattern }: Pick<ParsedPruningOptions, 'method' | 'refit' | 'pattern'>,
): DenseTarget | undefined {
  const isObject = typeof given === 'object' && given !== null;
  if (given !== undefined && typeof given !== 'boolean' && !isObject)
    throw invalidArgument('denseTarget', 'true, false or { strength, residualStrength, errorWeight }', given);
  if (isObject) optionsObject(given, denseTargetNames, 'denseTarget');
  const usual = usualStrength(pattern);
  const { strength = usual, residualStrength = usual, errorWeight = 1 } = isObject ? given : {};
  numberIn('denseTarget.strength', strength, 0, 1);
  numberIn('denseTarget.residualStrength', residualStrength, 0, 1);
  numberIn('denseTarget.errorWeight', errorWeight, 0, 1000);
  if (!(given ?? method === 'alps') || (strength === 0 && residualStrength === 0)) return undefined;
  if (refit === 'none' && method !== 'alps' && method !== 'sparsegpt') {
    throw new AlpsError(
      'INVALID_ARGUMENT',
      `${method} leaves the kept weights as they are: denseTarget needs method "alps" or "sparsegpt", or refit "pcg"`,
    );
  }
  return { strength, residualStrength, errorWeight };
}

/** Measured: where less is lost, less is to be undone, and the calibration's noise is as large (docs/quality.md). */
function usualStrength(pattern: Pattern): number {
  const sparsity = isNm(pattern) ? 1 - pattern.keep / pattern.of : pattern.sparsity;
  return Math.max(0.25, 0.5 - 1.25 * Math.max(0, 0.7 - sparsity));
}

/**
 * The weights that a group is asked to reproduce on the pruned model's inputs,
 *
 *     T = Ŵ + (α Ŵ (C − G)ᵀ + β Rᵀ) (G + λI)⁻¹,   G = X_pᵀX_p,  C = X_pᵀX_d,  R = X_pᵀ(h_d − h_p)
 *
 * For α = β = 1 and λ = 0 it is the least-squares fit of X_d Ŵᵀ + h_d − h_p. Sums of `kind` `cross` are C − G, and R is 0; those of kind `outputs`
 * are α Ŵ Cᵀ + β Rᵀ.
 *
 * @param group Ŵ and G
 * @param ridge λ as a share of G's mean diagonal
 * @returns T, float32 [m, n], which is queued: the next await tells with `NOT_POSITIVE_DEFINITE` when G + λI cannot be factorised. The caller
 * disposes it
 * @throws AlpsError `NOT_FINITE` when a weight or G holds NaN or infinity
 */
export async function denseTarget(
  stream: Stream,
  group: LayerGroup,
  { kind, sum, strength }: Omit<DenseInputs, 'objective'>,
  ridge: number,
): Promise<F32> {
  const { device } = stream;
  const { weight } = group;
  const gram = wholeGram(group);
  stream.enterPhase('target');
  using right = differenceFirst(kind, weight)
    ? undefined
    : device.empty('float32', weight.shape, 'the target’s right-hand side');
  if (right) makeRightHandSide(stream, group, { kind, sum, strength }, right);
  // Waits for what was queued, so that memory that it alone took is free for the inverse.
  const lambda = lambdaOf(await checkedDiagonal(stream, group), ridge);
  using inverse = device.empty('float32', gram.shape, 'the inverse of the Gram matrix');
  stream.copy(gram, inverse);
  stream.addDiagonal(inverse, lambda);
  stream.cholesky(inverse);
  stream.choleskyInverse(inverse);
  const target = device.empty('float32', weight.shape, 'the target');
  try {
    stream.copy(weight, target);
    if (!right) {
      using factor = device.empty('float32', gram.shape, 'the target’s factor');
      stream.gemm(sum, inverse, factor, { transposeA: true, alpha: strength, split: true });
      stream.gemm(weight, factor, target, { beta: 1, split: true });
    } else {
      stream.gemm(right, inverse, target, { beta: 1, split: true });
    }
    return target;
  } catch (error) {
    target.dispose();
    throw error;
  }
}

/** Whether (C − G)ᵀ is multiplied by the inverse before Ŵ is: fewer operations where a layer has more outputs than inputs. */
function differenceFirst(kind: DenseInputs['kind'], { shape: [m = 0, n = 0] }: F32): boolean {
  return kind === 'cross' && m > n;
}

/** out = α Ŵ (C − G)ᵀ + β Rᵀ, [m, n]. */
function makeRightHandSide(
  stream: Stream,
  group: LayerGroup,
  { kind, sum, strength }: Omit<DenseInputs, 'objective'>,
  out: F32,
): void {
  const { weight } = group;
  if (kind === 'cross') {
    stream.gemm(weight, sum, out, { transposeB: true, alpha: strength, split: true });
    return;
  }
  stream.copy(sum, out);
  stream.gemm(weight, wholeGram(group), out, { alpha: -strength, beta: 1, split: true });
}
