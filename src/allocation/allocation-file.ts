import { readFile } from 'node:fs/promises';
import { AlpsError, fileSystemError } from '../errors.js';
import { type LayerSparsities, parseLayerSparsities } from './allocation.js';

/** Reads `{"layers": {NAME: SPARSITY, ...}}`; what stands beside is left alone. */
export async function readAllocation(path: string): Promise<LayerSparsities> {
  const text = await readFile(path, 'utf8').catch((error) => {
    throw fileSystemError('read', path, error);
  });
  const refused = (what: string) => new AlpsError('INVALID_ARGUMENT', `${path} is no allocation: ${what}`);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw refused((error as Error).message);
  }
  const layers = (value as { layers?: unknown } | null)?.layers;
  if (layers === undefined) throw refused('it has no "layers"');
  try {
    return parseLayerSparsities(layers)!;
  } catch (error) {
    throw refused((error as Error).message);
  }
}
