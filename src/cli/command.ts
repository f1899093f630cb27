/** What main.ts passes to a command. */
export interface CommandContext {
  /** Fires on SIGINT (Ctrl-C) and SIGTERM. */
  signal: AbortSignal;
  stdout: NodeJS.WriteStream;
  stderr: NodeJS.WriteStream;
}

/** One of `alps prune`, `alps eval`, ... */
export interface Command {
  /** One line for the list of commands. */
  summary: string;
  /** What is true after an interruption, for the message; none for a command without output files. */
  whenInterrupted?: string;
  /** @returns the exit code */
  run(args: string[], context: CommandContext): Promise<number>;
}
