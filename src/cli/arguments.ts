import { type ParseArgsConfig, parseArgs } from 'node:util';
import type { DeviceName } from '../device/device.js';

/** A command line that cannot be run; the message is for the person who typed it. Exit code 2. */
export class UsageError extends Error {}

type Options = NonNullable<ParseArgsConfig['options']>;
export type Values = Record<string, string | boolean | string[] | undefined>;

/** Options that every command takes. */
export const commonOptions: Options = {
  json: { type: 'boolean' },
  help: { type: 'boolean', short: 'h' },
};

/** Options of commands that compute. */
export const deviceOptions: Options = {
  device: { type: 'string' },
  threads: { type: 'string' },
  'memory-limit': { type: 'string' },
  precision: { type: 'string' },
};

/** Options of commands that prune. */
export const calibrationOptions: Options = {
  calibration: { type: 'string', multiple: true },
  shares: { type: 'string' },
  field: { type: 'string' },
  windows: { type: 'string' },
  'own-windows': { type: 'string' },
  length: { type: 'string' },
  seed: { type: 'string' },
};

/** Parses a command's arguments; `positionals` names the arguments without a dash. */
export function parse(
  args: string[],
  options: Options,
  positionals: string[],
): { values: Values; positional: string[] } {
  let parsed: { values: Values; positionals: string[] };
  try {
    parsed = parseArgs({ args, options: { ...commonOptions, ...options }, allowPositionals: true, strict: true }) as {
      values: Values;
      positionals: string[];
    };
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
  if (!parsed.values.help && parsed.positionals.length !== positionals.length) {
    const expected = positionals.length === 0 ? 'no arguments' : positionals.join(' ');
    const received = parsed.positionals.length === 0 ? 'none' : parsed.positionals.join(' ');
    throw new UsageError(`Expected ${expected} but received ${received}`);
  }
  return { values: parsed.values, positional: parsed.positionals };
}

/** A number option, or undefined when it was not given. */
export function number(values: Values, name: string): number | undefined {
  const text = values[name];
  if (text === undefined) return undefined;
  const value = typeof text === 'string' && text.trim() !== '' ? Number(text) : Number.NaN;
  if (Number.isNaN(value)) throw new UsageError(`Expected a number for --${name} but received "${text}"`);
  return value;
}

/** The value of an option as a list of numbers separated by commas. */
export function numbers(values: Values, name: string): number[] | undefined {
  const text = values[name];
  if (text === undefined) return undefined;
  return String(text)
    .split(',')
    .map((part) => number({ [name]: part }, name)!);
}

/** `2:4`: keeps 2 of every 4. */
export function pattern(values: Values): { keep: number; of: number } | undefined {
  const text = values.pattern;
  if (text === undefined) return undefined;
  return nmPattern(String(text), '--pattern');
}

export function nmPattern(text: string, name: string): { keep: number; of: number } {
  const match = /^(\d+):(\d+)$/.exec(text);
  if (!match) throw new UsageError(`Expected N:M (keeps N of every M, such as 2:4) for ${name} but received "${text}"`);
  return { keep: Number(match[1]), of: Number(match[2]) };
}

/** Bytes with an optional K, M, G or T (powers of 1024). */
export function bytes(values: Values, name: string): number | undefined {
  const text = values[name];
  if (text === undefined) return undefined;
  const match = /^(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?$/i.exec(String(text));
  if (!match) throw new UsageError(`Expected a size such as 12G for --${name} but received "${text}"`);
  const power = ['', 'K', 'M', 'G', 'T'].indexOf(match[2]!.toUpperCase());
  const size = Math.floor(Number(match[1]) * 1024 ** power);
  if (size === 0) throw new UsageError(`Expected a size above 0 for --${name} but received "${text}"`);
  return size;
}

export function string(values: Values, name: string): string | undefined {
  return values[name] as string | undefined;
}

/** The value of a required option. @param what its value and meaning, for the message */
export function required(values: Values, name: string, what: string): string {
  const text = string(values, name);
  if (!text) throw new UsageError(`Expected --${name} ${what}`);
  return text;
}

/** Refuses options that would have no effect. @param need what they need, for the message */
export function onlyWith(values: Values, names: readonly string[], need: string): void {
  const given = names.find((name) => values[name] !== undefined);
  if (given !== undefined) throw new UsageError(`Expected --${given} only with ${need}`);
}

/** A repeatable option's values. */
export function list(values: Values, name: string): string[] {
  return (values[name] as string[] | undefined) ?? [];
}

/** `--device cuda:0,cuda:1`: one device, or a list of them. */
export function devices(values: Values): DeviceName | DeviceName[] | undefined {
  const text = string(values, 'device') as DeviceName | undefined;
  return text?.includes(',') ? (text.split(',') as DeviceName[]) : text;
}

/** The options of {@link deviceOptions}, as the library takes them. */
export function device(values: Values) {
  return {
    device: string(values, 'device') as DeviceName | undefined,
    threads: number(values, 'threads'),
    memoryLimit: bytes(values, 'memory-limit'),
    precision: string(values, 'precision') as 'auto' | 'float32' | 'bfloat16' | undefined,
  };
}
