import { AlpsError, invalidArgument, type Names, optionsObject } from '../errors.js';

/**
 * How many weights are kept.
 * - `{sparsity: 0.7}`: unstructured; 70 % of each matrix becomes zero
 * - `{keep: 2, of: 4}`: 2:4; keeps 2 of every 4 consecutive inputs of an output
 */
export type Pattern = { sparsity: number } | { keep: number; of: number };

export type NmPattern = { keep: number; of: number };

export const patternNames: Names<NmPattern> = { keep: true, of: true };

/** Whether a pattern is N:M. */
export function isNm(pattern: Pattern): pattern is NmPattern {
  return 'of' in pattern;
}

/** "70 % sparsity" or "keeps 2 of 4": the N of N:M is what stays, everywhere in this package. */
export function describePattern(pattern: Pattern): string {
  if (isNm(pattern)) return `keeps ${pattern.keep} of ${pattern.of}`;
  return `${+(pattern.sparsity * 100).toFixed(4)} % sparsity`;
}

/** Checks the two options that name a pattern; exactly one of them must be given. */
export function parsePattern(options: { sparsity?: unknown; pattern?: unknown }): Pattern {
  const { sparsity, pattern } = options;
  if ((sparsity === undefined) === (pattern === undefined)) {
    throw new AlpsError('INVALID_ARGUMENT', 'Expected exactly one of sparsity and pattern');
  }
  if (pattern === undefined) {
    if (typeof sparsity !== 'number' || !(sparsity >= 0 && sparsity <= 1)) {
      throw invalidArgument('sparsity', 'a number from 0 to 1', sparsity);
    }
    return { sparsity };
  }
  if (typeof pattern !== 'object' || pattern === null) throw invalidArgument('pattern', '{keep, of}', pattern);
  optionsObject(pattern, patternNames, 'pattern');
  const { keep, of } = pattern as Partial<NmPattern>;
  if (!Number.isInteger(of) || (of as number) < 1) throw invalidArgument('pattern.of', 'an integer of at least 1', of);
  if (!Number.isInteger(keep) || (keep as number) < 0 || (keep as number) > (of as number)) {
    throw invalidArgument('pattern.keep', `an integer from 0 to pattern.of (${of})`, keep);
  }
  return { keep: keep as number, of: of as number };
}

/** How many weights of each row stay where rows have budgets of their own: all but ⌊n · sparsity⌋, as published for Wanda. */
export function keptPerRow(pattern: { sparsity: number }, inputs: number): number {
  return inputs - Math.floor(inputs * pattern.sparsity);
}

/**
 * How many weights of an `outputs` × `inputs` matrix stay.
 * @throws AlpsError `INVALID_ARGUMENT` when an N:M group does not divide the width
 */
export function keptWeights(pattern: Pattern, outputs: number, inputs: number, name = 'the weight'): number {
  if (!isNm(pattern)) return Math.round((1 - pattern.sparsity) * outputs * inputs);
  if (inputs % pattern.of !== 0) {
    throw new AlpsError(
      'INVALID_ARGUMENT',
      `Expected a width that ${pattern.of} divides but ${name} is [${outputs}, ${inputs}]; choose another pattern or a sparsity`,
    );
  }
  return (outputs * inputs * pattern.keep) / pattern.of;
}
