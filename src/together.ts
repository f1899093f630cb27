/**
 * `Promise.all` that waits for all of them before it throws the first failure, by their order: what they hold is free then, and the error of a
 * stream comes from the first of its awaits.
 */
export async function together<T extends readonly unknown[] | []>(
  promises: T,
): Promise<{ -readonly [K in keyof T]: Awaited<T[K]> }> {
  const results = await Promise.allSettled(promises);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
  return results.map((result) => (result as PromiseFulfilledResult<unknown>).value) as never;
}

/** A promise that is awaited later; should something else fail first, nobody awaits it. */
export function handled<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => undefined);
  return promise;
}
