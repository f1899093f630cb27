import { duration } from './format.js';

/** Where a progress line is drawn. */
export interface Terminal {
  isTTY?: boolean;
  columns?: number;
  write(text: string): unknown;
}

const barWidth = 24;

/** One line on a terminal, redrawn in place: a bar, the current step, the time left. Draws nothing without a terminal. */
export class Progress {
  readonly #terminal: Terminal;
  readonly #enabled: boolean;
  readonly #color: boolean;
  #began = performance.now();
  #drawn = false;
  #lastDraw = Number.NEGATIVE_INFINITY;

  constructor(terminal: Terminal, options: { enabled?: boolean; env?: NodeJS.ProcessEnv } = {}) {
    this.#terminal = terminal;
    this.#enabled = (options.enabled ?? true) && terminal.isTTY === true;
    const env = options.env ?? process.env;
    this.#color = !env.NO_COLOR && env.TERM !== 'dumb';
  }

  /** @param share share of the work that is done, from 0 to 1 */
  update(share: number, text: string): void {
    const now = performance.now();
    if (!this.#enabled || (now - this.#lastDraw < 50 && share < 1)) return;
    this.#lastDraw = now;
    const filled = Math.round(barWidth * share);
    const bar = '█'.repeat(filled) + '░'.repeat(barWidth - filled);
    const elapsed = now - this.#began;
    const left = share > 0.01 ? `, ${duration((elapsed * (1 - share)) / share)} left` : '';
    const line = `${(share * 100).toFixed(0).padStart(3)} %  ${text}  ${duration(elapsed)}${left}`;
    const room = (this.#terminal.columns ?? 80) - barWidth - 2;
    const shown = line.length > room ? line.slice(0, Math.max(room, 0)) : line;
    this.#terminal.write(`\r\x1b[2K${this.#color ? `\x1b[36m${bar}\x1b[0m` : bar} ${shown}`);
    this.#drawn = true;
  }

  /** Progress of the text that the model writes before it is pruned; timed separately. @param share share of the text that is written */
  writing(share: number): void {
    if (share === 0 || share === 1) this.#began = performance.now();
    if (share < 1) this.update(share, 'writing calibration text');
  }

  /** Removes the line. */
  clear(): void {
    if (!this.#drawn) return;
    this.#terminal.write('\r\x1b[2K');
    this.#drawn = false;
  }
}
