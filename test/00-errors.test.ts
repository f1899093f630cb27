import { constants } from 'node:os';
import { AlpsError, fileSystemError, invalidArgument, describe as show, throwIfAborted } from '../src/errors.js';

describe('errors', () => {
  test('invalidArgument says what was expected and what came', () => {
    const error = invalidArgument('sparsity', 'a number from 0 to 1', '50');
    expect(error).toBeInstanceOf(AlpsError);
    expect(error.code).toBe('INVALID_ARGUMENT');
    expect(error.message).toBe('Expected a number from 0 to 1 for sparsity but received "50" of type string');
  });

  test('values are shown short', () => {
    expect(show('x'.repeat(200)).length).toBeLessThan(85);
    expect(show(new Float32Array(3))).toBe('Float32Array(3)');
  });

  test('a system error keeps its cause and names the path', () => {
    const cause = Object.assign(new Error('no space'), { code: 'ENOSPC', errno: -constants.errno.ENOSPC });
    const error = fileSystemError('write', '/x', cause);
    expect(error.message).toBe('Could not write /x: no space left on device (ENOSPC)');
    expect(error.cause).toBe(cause);
  });

  test('an aborted signal becomes an ABORTED error', () => {
    expect(() => throwIfAborted(AbortSignal.abort('enough'))).toThrow(expect.objectContaining({ code: 'ABORTED' }));
  });
});
