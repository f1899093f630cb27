import { setImmediate } from 'node:timers/promises';

/** The event loop's turns in a loop that would leave it none. */
export class Turns {
  #last = performance.now();

  /** Whether the last one was 10 ms ago. */
  get isDue(): boolean {
    return performance.now() - this.#last >= 10;
  }

  async take(): Promise<void> {
    await setImmediate();
    this.#last = performance.now();
  }
}
