import type { Stream } from './stream.js';

/** The time that a stream spends in phases, which nobody has to wait for in between. */
export class PhaseClock<Phase extends string> {
  readonly #stream: Stream;
  readonly #added = new Map<Phase, number>();
  readonly #entered: { phase: Phase | undefined; time: () => number }[] = [];

  constructor(stream: Stream) {
    this.#stream = stream;
  }

  /** What is queued from here on, and waiting for it, counts for a phase. */
  enter(phase: Phase): void {
    this.#stream.enterPhase(phase);
    this.#entered.push({ phase, time: this.#stream.mark() });
  }

  /** What is queued from here on counts for none. */
  leave(): void {
    this.#entered.push({ phase: undefined, time: this.#stream.mark() });
  }

  /** Time that the host spent, beside what the stream does. */
  add(phase: Phase, milliseconds: number): void {
    this.#added.set(phase, (this.#added.get(phase) ?? 0) + milliseconds);
  }

  /** Milliseconds in a phase until the last call of {@link leave}. Known once something behind that was awaited. */
  spent(phase: Phase): number {
    let sum = this.#added.get(phase) ?? 0;
    for (const [i, { phase: entered, time }] of this.#entered.entries()) {
      const end = this.#entered[i + 1]?.time;
      if (entered === phase && end) sum += end() - time();
    }
    return sum;
  }
}
