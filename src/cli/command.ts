/** What a command is given by main.ts. */
export interface CommandContext {
  /** Fires on Ctrl-C. */
  signal: AbortSignal;
  stdout: NodeJS.WriteStream;
  stderr: NodeJS.WriteStream;
}

/** One of `alps prune`, `alps eval`, ... */
export interface Command {
  /** One line for the list of commands. */
  summary: string;
  /** @returns the exit code */
  run(args: string[], context: CommandContext): Promise<number>;
}
