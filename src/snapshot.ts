import { type Names, optionsObject } from './errors.js';

/** Makes a copy of what an option holds. What the option cannot be stays as it is: whatever checks it refuses it in words. */
export type Copy = (value: unknown) => unknown;

/**
 * A call's own copy of its options, each of them read once: what the caller does with the object afterwards is nothing to the call. Own
 * properties, inherited ones and those of getters count alike; those that are undefined are left out.
 *
 * @param known where a name has a {@link Copy}, what the option holds is copied as well
 * @throws AlpsError `INVALID_ARGUMENT` as {@link optionsObject}
 */
export function snapshot<T extends object>(given: T, known: Names<T>, name = 'options'): T {
  optionsObject(given, known, name);
  const copy: Record<string, unknown> = {};
  for (const [key, copied] of Object.entries(known)) {
    const value = (given as Record<string, unknown>)[key];
    if (value !== undefined) copy[key] = typeof copied === 'function' ? (copied as Copy)(value) : value;
  }
  return copy as T;
}

/** Copies options inside an option. @param name of it, for messages */
export function optionsInside<T extends object>(name: string, known: Names<T>): Copy {
  return (value) => (typeof value === 'object' && value !== null ? snapshot(value as T, known, name) : value);
}

/** Copies a list, which may have millions of items. @param item copies each of its items */
export function listInside(item?: Copy): Copy {
  const copied = (list: unknown[]) => (item ? Array.from(list, (one) => item(one)) : list.slice());
  return (value) => (Array.isArray(value) ? copied(value) : value);
}

/** Copies an object whose keys the caller chooses. */
export const recordInside: Copy = (value) =>
  typeof value === 'object' && value !== null && !Array.isArray(value) ? { ...value } : value;
