/** What a {@link WaitingLine} orders by. */
interface Waiting {
  priority: number;
  key: string;
}

/** Highest priority first; among equal ones the keys in turn; within a key first come, first served. */
export class WaitingLine<T extends Waiting> {
  /** By priority, then by key; the key that is first in its map is the next to be served. */
  readonly #levels = new Map<number, Map<string, T[]>>();
  #size = 0;

  get size(): number {
    return this.#size;
  }

  add(item: T): void {
    const { priority, key } = item;
    const level = this.#levels.get(priority) ?? new Map<string, T[]>();
    this.#levels.set(priority, level);
    const items = level.get(key);
    if (items) items.push(item);
    else level.set(key, [item]);
    this.#size++;
  }

  /** The next one, which stays. */
  peek(): T | undefined {
    if (this.#size === 0) return undefined;
    let highest = Number.NEGATIVE_INFINITY;
    for (const priority of this.#levels.keys()) highest = Math.max(highest, priority);
    const [items] = this.#levels.get(highest)!.values();
    return items![0];
  }

  /** Takes the next one; its key goes behind the others of its priority. */
  take(): T | undefined {
    const next = this.peek();
    if (!next) return undefined;
    const level = this.#levels.get(next.priority)!;
    const items = level.get(next.key)!;
    level.delete(next.key);
    level.set(next.key, items);
    this.remove(next);
    return next;
  }

  /** Takes one from wherever it stands. Whether it was there. */
  remove(item: T): boolean {
    const level = this.#levels.get(item.priority);
    const items = level?.get(item.key);
    const at = items?.indexOf(item) ?? -1;
    if (!level || !items || at < 0) return false;
    items.splice(at, 1);
    if (items.length === 0) level.delete(item.key);
    if (level.size === 0) this.#levels.delete(item.priority);
    this.#size--;
    return true;
  }

  /** All, in no order. */
  items(): T[] {
    return [...this.#levels.values()].flatMap((level) => [...level.values()].flat());
  }
}
