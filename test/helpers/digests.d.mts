export function digests(folder: string): Record<string, string>;
