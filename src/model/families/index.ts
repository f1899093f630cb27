import { AlpsError, describe } from '../../errors.js';
import { expertsFamily } from './experts.js';
import type { Family } from './family.js';
import { gemmaFamily } from './gemma.js';
import { gpt2Family } from './gpt2.js';
import { llamaFamily } from './llama.js';
import { optFamily } from './opt.js';
import { phi3Family } from './phi3.js';

const families: readonly Family[] = [llamaFamily, phi3Family, gemmaFamily, expertsFamily, optFamily, gpt2Family];

/** Every `model_type` that can be run. */
export const knownModelTypes: readonly string[] = families.flatMap((family) => family.modelTypes);

/** @throws AlpsError `UNSUPPORTED_MODEL` for a type that no family names */
export function familyOf(config: Readonly<Record<string, unknown>>): Family {
  const type = config.model_type;
  const family = families.find(({ modelTypes }) => modelTypes.includes(type as string));
  if (!family) {
    throw new AlpsError(
      'UNSUPPORTED_MODEL',
      `config.json: the model_type ${describe(type)} is not supported; known are ${knownModelTypes.join(', ')}`,
    );
  }
  return family;
}
