import { keptWeights, parsePattern } from '../src/pruning/pattern.js';

describe('pattern', () => {
  test.each([
    [{ sparsity: 0.7 }, { sparsity: 0.7 }],
    [{ sparsity: 0 }, { sparsity: 0 }],
    [{ sparsity: 1 }, { sparsity: 1 }],
    [{ pattern: { keep: 2, of: 4 } }, { keep: 2, of: 4 }],
    [{ pattern: { keep: 1, of: 1 } }, { keep: 1, of: 1 }],
    [{ pattern: { keep: 0, of: 4 } }, { keep: 0, of: 4 }],
  ])('%j is accepted', (options, expected) => {
    expect(parsePattern(options)).toEqual(expected);
  });

  test.each([
    [{ sparsity: Number.NaN }, 'Expected a number from 0 to 1 for sparsity but received NaN of type number'],
    [{ sparsity: '50' }, 'Expected a number from 0 to 1 for sparsity but received "50" of type string'],
    [{ sparsity: 50 }, 'Expected a number from 0 to 1 for sparsity but received 50 of type number'],
    [{ sparsity: -0.1 }, 'Expected a number from 0 to 1 for sparsity but received -0.1 of type number'],
    [{}, 'Expected exactly one of sparsity and pattern'],
    [{ sparsity: 0.5, pattern: { keep: 2, of: 4 } }, 'Expected exactly one of sparsity and pattern'],
    [{ pattern: '2:4' }, 'Expected {keep, of} for pattern but received "2:4" of type string'],
    [
      { pattern: { keep: 5, of: 4 } },
      'Expected an integer from 0 to pattern.of (4) for pattern.keep but received 5 of type number',
    ],
    [{ pattern: { keep: 0, of: 0 } }, 'Expected an integer of at least 1 for pattern.of but received 0 of type number'],
    [
      { pattern: { keep: 1.5, of: 4 } },
      'Expected an integer from 0 to pattern.of (4) for pattern.keep but received 1.5 of type number',
    ],
  ])('%j is refused', (options, message) => {
    expect(() => parsePattern(options)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message }));
  });

  test('the number of kept weights is rounded to the nearest', () => {
    expect(keptWeights({ sparsity: 0.999999 }, 10, 10)).toBe(0);
    expect(keptWeights({ sparsity: 0.7 }, 576, 576)).toBe(Math.round(0.3 * 576 * 576));
    expect(keptWeights({ keep: 2, of: 4 }, 3, 8)).toBe(12);
  });

  test('a width that the group does not divide is refused by name', () => {
    expect(() => keptWeights({ keep: 2, of: 4 }, 3, 30, 'model.layers.0.mlp.down_proj')).toThrow(
      'Expected a width that 4 divides but model.layers.0.mlp.down_proj is [3, 30]',
    );
  });
});
