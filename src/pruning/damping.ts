import { AlpsError } from '../errors.js';
import { namesOf } from './layer-problem.js';

const maxDampingSteps = 5;

/**
 * Does what factorises a Gram matrix with its ridge, and again with ten times the ridge when that fails, at most five times.
 * @param layers whose Gram matrix it is
 * @throws AlpsError `NOT_POSITIVE_DEFINITE` after that
 */
export async function damped<T>(
  layers: readonly { name: string }[],
  ridge: number,
  action: (ridge: number, dampingSteps: number) => Promise<T>,
): Promise<T> {
  for (let dampingSteps = 0; ; dampingSteps++) {
    try {
      return await action(ridge, dampingSteps);
    } catch (error) {
      if (!(error instanceof AlpsError) || error.code !== 'NOT_POSITIVE_DEFINITE') throw error;
      if (dampingSteps === maxDampingSteps) {
        throw new AlpsError(
          'NOT_POSITIVE_DEFINITE',
          `The Gram matrix of ${namesOf({ layers })} is not positive semi-definite: factorising failed with a ridge of up to ${ridge} times its ` +
            'mean diagonal. Was it accumulated from real inputs, without overflow?',
          { cause: error },
        );
      }
      ridge = Math.max(ridge * 10, 1e-4);
    }
  }
}
