import { AlpsError } from '../errors.js';

/**
 * Parses JSON and refuses an object that has a key twice: JSON.parse keeps the last one in silence, and two readers of one file
 * would then see two different files.
 */
export function parseJsonStrictly(text: string, where: string): unknown {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new AlpsError('INVALID_CHECKPOINT', `${where} is not JSON: ${(cause as Error).message}`, { cause });
  }
  const repeated = repeatedKey(text);
  if (repeated !== undefined) {
    throw new AlpsError('INVALID_CHECKPOINT', `${where} has the key ${JSON.stringify(repeated)} twice`);
  }
  return value;
}

/** The first key that stands twice in one object of a valid JSON text. */
function repeatedKey(text: string): string | undefined {
  const scopes: (Set<string> | null)[] = []; // a set for an object, null for an array
  for (let i = 0; i < text.length; i++) {
    const c = text[i]!;
    if (c === '{') scopes.push(new Set());
    else if (c === '[') scopes.push(null);
    else if (c === '}' || c === ']') scopes.pop();
    else if (c === '"') {
      const start = i;
      i = endOfString(text, start);
      let next = i + 1;
      while (next < text.length && ' \t\r\n'.includes(text[next]!)) next++;
      const keys = scopes.at(-1);
      if (text[next] === ':' && keys) {
        const key = JSON.parse(text.slice(start, i + 1)) as string;
        if (keys.has(key)) return key;
        keys.add(key);
      }
    }
  }
  return undefined;
}

/** The first number of a valid JSON text that is not written as an integer, such as `2.0` or `1e3`: JSON.parse cannot tell. */
export function fractionalNumber(text: string): string | undefined {
  const number = /-?\d+[.eE\d+-]*/y;
  for (let i = 0; i < text.length; i++) {
    const c = text[i]!;
    if (c === '"') i = endOfString(text, i);
    else if (c === '-' || (c >= '0' && c <= '9')) {
      number.lastIndex = i;
      const [token] = number.exec(text)!;
      if (/[.eE]/.test(token)) return token;
      i += token.length - 1;
    }
  }
  return undefined;
}

/** Where the closing quote of the string is that opens at `start`. */
function endOfString(text: string, start: number): number {
  let i = start + 1;
  while (text[i] !== '"') i += text[i] === '\\' ? 2 : 1;
  return i;
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
