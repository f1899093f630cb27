/** What a {@link WaitingLine} orders by. */
interface Waiting {
  priority: number;
  key: string;
}

/** Highest priority first; among equal ones the keys in turn; within a key first come, first served. */
export class WaitingLine<T extends Waiting> {
  /** By priority, then by key; the key that is first in its map is the next to be served. */
  readonly #levels = new Map<number, Map<string, T[]>>();
  /** The levels' priorities, the highest last. */
  readonly #priorities: number[] = [];
  #size = 0;

  get size(): number {
    return this.#size;
  }

  add(item: T): void {
    const { priority, key } = item;
    const level = this.#levels.get(priority) ?? new Map<string, T[]>();
    if (level.size === 0) {
      this.#levels.set(priority, level);
      this.#priorities.splice(this.#placeOf(priority), 0, priority);
    }
    const items = level.get(key);
    if (items) items.push(item);
    else level.set(key, [item]);
    this.#size++;
  }

  /** The next one, which stays. */
  peek(): T | undefined {
    if (this.#size === 0) return undefined;
    const [items] = this.#levels.get(this.#priorities.at(-1)!)!.values();
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
    if (level.size === 0) {
      this.#levels.delete(item.priority);
      this.#priorities.splice(this.#placeOf(item.priority), 1);
    }
    this.#size--;
    return true;
  }

  /** How many priorities are lower. */
  #placeOf(priority: number): number {
    let [low, high] = [0, this.#priorities.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#priorities[middle]! < priority) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** All, in no order. */
  items(): T[] {
    return [...this.#levels.values()].flatMap((level) => [...level.values()].flat());
  }
}
