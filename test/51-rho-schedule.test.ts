import {
  type AlpsState,
  alpsDefaults,
  checkAlps,
  furtherRung,
  hasSettled,
  parseAlpsSchedule,
  restartedRungs,
  rungsOf,
} from '../src/pruning/rho-schedule.js';

const fresh: AlpsState = { rho: 0.1, grew: false };
const grown: AlpsState = { rho: 0.1, grew: true };

describe('the published schedule of rho', () => {
  test.each([
    ['a large change', fresh, 200, 'continue', 0.13, true],
    ['a middling change', fresh, 50, 'continue', 0.12, true],
    ['a small change before any growth', fresh, 3, 'restart', 0.02, false],
    ['no change before any growth', fresh, 0, 'continue', 0.02, false],
    ['a small change after growth', grown, 3, 'continue', 0.11, true],
    ['no change after growth', grown, 0, 'stop', 0.1, true],
  ])('%s', (_name, state, changed, action, rho, grew) => {
    const decision = checkAlps(state, 3, changed, 1000);
    expect(decision.action).toBe(action);
    expect(decision.state.rho).toBeCloseTo(rho, 12);
    expect(decision.state.grew).toBe(grew);
  });

  test('after 30 iterations a change below 3e-4 of k ends the run', () => {
    expect(checkAlps(grown, 30, 2, 10000).action).toBe('continue');
    expect(checkAlps(grown, 33, 2, 10000).action).toBe('stop');
    expect(checkAlps(grown, 33, 3, 10000).action).toBe('continue');
  });

  test('the iteration cap ends it, rho stays at its cap', () => {
    expect(checkAlps(grown, 300, 500, 1000).action).toBe('stop');
    expect(checkAlps({ rho: 9e5, grew: true }, 3, 500, 1000).state.rho).toBe(1e6);
  });

  test('rho never reaches zero, however often it shrinks', () => {
    let state = fresh;
    for (let i = 0; i < 100; i++) state = checkAlps(state, 3, 0, 1000).state;
    expect(state.rho).toBe(1e-7);
  });

  test.each([
    ['ladder', { sparsity: 0.5 }, 28, 4],
    ['ladder', { sparsity: 0.7 }, 28, 4],
    ['ladder', { sparsity: 0.71 }, 36, 5],
    ['ladder', { keep: 2, of: 4 }, 36, 5],
    ['short', { sparsity: 0.9 }, 22, 3],
  ] as const)('%s at %j has %d iterations and %d values', (name, pattern, iterations, values) => {
    const rungs = rungsOf(name, pattern);
    expect(rungs.reduce((sum, [, count]) => sum + count, 0)).toBe(iterations);
    expect(rungs).toHaveLength(values);
  });

  test('a ladder goes on while more than a share of the support changes, up to the cap of rho', () => {
    for (const [schedule, most] of [['ladder', 70] as const, ['short', 250] as const]) {
      expect(hasSettled(schedule, most, 1000)).toBe(true);
      expect(hasSettled(schedule, most + 1, 1000)).toBe(false);
    }
    expect(furtherRung(2)).toEqual([3, 4]);
    expect(furtherRung(9e5)).toBeUndefined();
  });

  test('a ladder whose second look finds the support frozen starts again with smaller values', () => {
    const rungs = rungsOf('short', { sparsity: 0.5 });
    expect(restartedRungs(rungs, [100, 6, 0], 1000, 2000)).toBeUndefined();
    expect(restartedRungs(rungs, [100, 5, 0], 1000, 1400)).toBeUndefined(); // few go
    expect(restartedRungs(rungs, [100, 3, 0], 1000, 1500)).toBeUndefined();
    expect(restartedRungs(rungs, [100, 2, 0], 1000, 1500)).toBeDefined();
    const restarted = restartedRungs(rungs, [100, 5, 0], 1000, 2000)!;
    expect(restarted.map(([rho]) => rho)).toEqual([0.8 / 5, 1.2 / 5, 2 / 5]);
    expect(restarted.map(([, iterations]) => iterations)).toEqual([8, 8, 6]);
  });

  test('constants are checked', () => {
    expect(parseAlpsSchedule()).toEqual(alpsDefaults);
    expect(() => parseAlpsSchedule({ initialRho: 0 })).toThrow('initialRho');
    expect(() => parseAlpsSchedule({ maxIterations: 1.5 })).toThrow('maxIterations');
  });
});
