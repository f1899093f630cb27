/** What a {@link WaitingLine} orders by. */
interface Waiting {
  priority: number;
  key: string;
}

/** One who waits, between those of the same key. */
interface Place<T> {
  item: T;
  before: Place<T> | undefined;
  behind: Place<T> | undefined;
}

/** Those of one key, as they came. It is never empty. */
interface Row<T> {
  first: Place<T>;
  last: Place<T>;
}

/** Highest priority first; among equal ones the keys in turn; within a key first come, first served. */
export class WaitingLine<T extends Waiting> {
  /** By priority, then by key; the key that is first in its map is the next to be served. */
  readonly #levels = new Map<number, Map<string, Row<T>>>();
  /** The levels' priorities, the highest last, and among them `#gone` that have no level any more. */
  #priorities: number[] = [];
  #gone = 0;
  readonly #places = new Map<T, Place<T>>();

  get size(): number {
    return this.#places.size;
  }

  add(item: T): void {
    const { priority, key } = item;
    const level = this.#levels.get(priority) ?? this.#addLevel(priority);
    const row = level.get(key);
    const place: Place<T> = { item, before: row?.last, behind: undefined };
    this.#places.set(item, place);
    if (!row) level.set(key, { first: place, last: place });
    else {
      row.last.behind = place;
      row.last = place;
    }
  }

  /** The next one, which stays. */
  peek(): T | undefined {
    if (this.size === 0) return undefined;
    const [row] = this.#levels.get(this.#highest())!.values();
    return row!.first.item;
  }

  /** Takes the next one; its key goes behind the others of its priority. */
  take(): T | undefined {
    const next = this.peek();
    if (!next) return undefined;
    const level = this.#levels.get(next.priority)!;
    const row = level.get(next.key)!;
    level.delete(next.key);
    level.set(next.key, row);
    this.remove(next);
    return next;
  }

  /** Takes one from wherever it stands. Whether it was there. */
  remove(item: T): boolean {
    const place = this.#places.get(item);
    if (!place) return false;
    this.#places.delete(item);
    const { before, behind } = place;
    const level = this.#levels.get(item.priority)!;
    const row = level.get(item.key)!;
    if (before) before.behind = behind;
    else if (behind) row.first = behind;
    else level.delete(item.key);
    if (behind) behind.before = before;
    else if (before) row.last = before;
    if (level.size === 0) this.#removeLevel(item.priority);
    return true;
  }

  #addLevel(priority: number): Map<string, Row<T>> {
    const level = new Map<string, Row<T>>();
    this.#levels.set(priority, level);
    const at = this.#placeOf(priority);
    if (this.#priorities[at] === priority) this.#gone--;
    else this.#priorities.splice(at, 0, priority);
    return level;
  }

  /** The priority stays in its list until most of that is gone: taking out each by itself would move all above it. */
  #removeLevel(priority: number): void {
    this.#levels.delete(priority);
    this.#gone++;
    if (2 * this.#gone < this.#priorities.length) return;
    this.#priorities = this.#priorities.filter((one) => this.#levels.has(one));
    this.#gone = 0;
  }

  /** The highest priority that has a level. */
  #highest(): number {
    while (!this.#levels.has(this.#priorities.at(-1)!)) {
      this.#priorities.pop();
      this.#gone--;
    }
    return this.#priorities.at(-1)!;
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
    return [...this.#levels.values()].flatMap((level) => [...level.values()].flatMap(itemsOf));
  }
}

function itemsOf<T>({ first }: Row<T>): T[] {
  const items: T[] = [];
  for (let place: Place<T> | undefined = first; place; place = place.behind) items.push(place.item);
  return items;
}
