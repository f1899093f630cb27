import { onAbort } from '../abort.js';
import { aborted } from '../errors.js';

interface Waiter {
  resolve(): void;
  reject(error: unknown): void;
}

/** Those who wait for a place, let in one a place, in their order. */
export class Room {
  readonly #places: () => number;
  readonly #waiting = new Set<Waiter>();
  /** Places of those who were let in and have not taken them yet; forgotten when the event loop turns. */
  #promised = 0;
  #turning = false;

  /** @param places how many places are free now */
  constructor(places: () => number) {
    this.#places = places;
  }

  wait(signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(aborted(signal));
      const stop = () => {
        this.#waiting.delete(waiter);
        reject(aborted(signal));
      };
      const release = onAbort(signal, stop);
      const waiter: Waiter = {
        resolve: () => {
          release();
          resolve();
        },
        reject: (error) => {
          release();
          reject(error);
        },
      };
      this.#waiting.add(waiter);
      this.changed();
    });
  }

  /** To be called when somebody takes a place. Whether it was promised to one who was let in. */
  taken(): boolean {
    if (this.#promised === 0) return false;
    this.#promised--;
    return true;
  }

  /** To be called when a place may have become free. */
  changed(): void {
    let free = this.#places() - this.#promised;
    for (const waiter of this.#waiting) {
      if (free-- <= 0) break;
      this.#waiting.delete(waiter);
      this.#promised++;
      waiter.resolve();
    }
    if (this.#promised === 0 || this.#turning) return;
    this.#turning = true;
    setImmediate(() => {
      this.#turning = false;
      this.#promised = 0;
      if (this.#waiting.size > 0) this.changed();
    });
  }

  close(error: unknown): void {
    for (const waiter of this.#waiting) waiter.reject(error);
    this.#waiting.clear();
  }
}
