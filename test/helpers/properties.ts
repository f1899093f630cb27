import fc from 'fast-check';
import { AlpsError } from '../../src/errors.js';

/** Executions of each property of this process, by its name. */
export const executions: Record<string, number> = {};

/**
 * Checks a property on `runs` random inputs, times ALPS_FUZZ_RUNS. The seed is fixed unless ALPS_FUZZ_SEED gives one; what fails is shrunk
 * and printed with the path that repeats it.
 */
export async function check<T>(
  name: string,
  { runs, input }: { runs: number; input: fc.Arbitrary<T> },
  property: (value: T) => Promise<void> | void,
): Promise<void> {
  executions[name] = 0;
  const numRuns = Math.ceil(runs * Number(process.env.ALPS_FUZZ_RUNS ?? 1));
  const seed = Number(process.env.ALPS_FUZZ_SEED ?? 1);
  const counted = async (value: T) => {
    executions[name]!++;
    await property(value);
  };
  await fc.assert(fc.asyncProperty(input, counted), { numRuns, seed, endOnFailure: Number(numRuns) > runs });
}

/** The code of the AlpsError that a call fails with, or undefined when it succeeds. Any other error is passed on. */
export async function codeOf(call: () => Promise<unknown> | unknown): Promise<string | undefined> {
  try {
    await call();
    return undefined;
  } catch (error) {
    if (error instanceof AlpsError && error.code !== 'INTERNAL') return error.code;
    throw error;
  }
}

/** A value of a JSON text with up to `most` of its parts, keys included, replaced by others of any type, left out or doubled. */
export function mutatedJson(base: unknown, most = 4): fc.Arbitrary<unknown> {
  const odd = fc.oneof(
    { arbitrary: fc.constantFrom(...oddValues), weight: 3 },
    { arbitrary: fc.double(), weight: 1 },
    { arbitrary: fc.string({ maxLength: 6 }), weight: 1 },
    { arbitrary: fc.jsonValue({ maxDepth: 2 }), weight: 1 },
  );
  const change = fc.record({ at: fc.nat(), how: fc.constantFrom('set', 'set', 'drop', 'swap', 'wrap'), value: odd });
  return fc.array(change, { minLength: 1, maxLength: most }).map((changes) => {
    const value = structuredClone(base);
    for (const { at, how, value: other } of changes) {
      const places = placesOf(value);
      if (places.length === 0) break;
      const { holder, key } = places[at % places.length]!;
      const second = places[(at * 7 + 3) % places.length]!;
      if (how === 'drop') {
        if (Array.isArray(holder)) holder.splice(Number(key), 1);
        else delete holder[key];
      } else if (how === 'swap') holder[key] = structuredClone(second.holder[second.key]);
      else holder[key] = how === 'wrap' ? [holder[key]] : structuredClone(other);
    }
    return value;
  });
}

const oddValues: unknown[] = [
  null,
  true,
  0,
  -1,
  -0,
  0.5,
  2 ** 31,
  2 ** 40,
  1e308,
  '',
  '0',
  '__proto__',
  '\ud800',
  [],
  {},
  [null],
  [[]],
  { type: 'Sequence' },
  'x'.repeat(1000),
];

/** Where a JSON value has others in it. Large lists and vocabularies count with their first entries only. */
function placesOf(value: unknown): { holder: Record<string, unknown>; key: string }[] {
  if (typeof value !== 'object' || value === null) return [];
  const holder = value as Record<string, unknown>;
  return Object.keys(holder)
    .slice(0, 40)
    .flatMap((key) => [{ holder, key }, ...placesOf(holder[key])]);
}
