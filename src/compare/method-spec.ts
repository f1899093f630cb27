import { invalidArgument } from '../errors.js';
import type { PruneOptions } from '../prune.js';
import { describePattern, isNm, type Pattern } from '../pruning/pattern.js';
import { presets } from '../pruning/preset.js';

/** A method as it is written in a list: `wanda`, `sparsegpt+refit`, `alps-published`. */
export interface MethodSpec {
  /** As it was written. */
  id: string;
  /** For display. */
  title: string;
  /** The method without its refit, for colours and order. */
  base: string;
  refit: 'none' | 'pcg' | 'backsolve';
  options: Partial<PruneOptions>;
  /** The same as options of `alps prune`. */
  flags: string;
}

const bases: Record<string, { title: string; options: Partial<PruneOptions>; flags: string }> = {
  mp: { title: 'MP', options: { method: 'magnitude' }, flags: '--method mp' },
  'mp-row': {
    title: 'MP by row',
    options: { method: 'magnitude', comparisonGroup: 'row' },
    flags: '--method mp --comparison-group row',
  },
  wanda: { title: 'Wanda', options: { method: 'wanda' }, flags: '--method wanda' },
  dsnot: { title: 'DSnoT', options: { method: 'dsnot' }, flags: '--method dsnot' },
  'dsnot-mp': {
    title: 'DSnoT on MP',
    options: { method: 'dsnot', dsnot: { initial: 'magnitude' } },
    flags: '--method dsnot --dsnot-initial magnitude',
  },
  'dsnot-sparsegpt': {
    title: 'DSnoT on SparseGPT',
    options: { method: 'dsnot', dsnot: { initial: 'sparsegpt' } },
    flags: '--method dsnot --dsnot-initial sparsegpt',
  },
  sparsegpt: { title: 'SparseGPT', options: { method: 'sparsegpt' }, flags: '--method sparsegpt' },
  alps: { title: 'ALPS', options: { method: 'alps' }, flags: '--method alps' },
  'alps-published': {
    title: 'ALPS as published',
    options: presets.paper,
    flags: '--preset paper',
  },
};

const suffixes = { refit: 'pcg', backsolve: 'backsolve' } as const;

/** Names that {@link parseMethods} takes. */
export const methodNames: readonly string[] = Object.keys(bases);

/** Reads a list of methods, each a name, optionally with `+refit` or `+backsolve` appended. */
export function parseMethods(names: readonly string[]): MethodSpec[] {
  if (!Array.isArray(names) || names.length === 0) throw invalidArgument('methods', 'at least one method', names);
  const specs = names.map((id): MethodSpec => {
    const [name = '', suffix, ...rest] = String(id).split('+');
    const base = Object.hasOwn(bases, name) ? bases[name] : undefined;
    const known = suffix === undefined || Object.hasOwn(suffixes, suffix);
    if (!base || !known || rest.length > 0) {
      const what = `one of ${methodNames.join(', ')}, optionally with +refit or +backsolve appended,`;
      throw invalidArgument('methods', what, id);
    }
    const isAlps = name.startsWith('alps');
    const refit = suffix ? suffixes[suffix as keyof typeof suffixes] : isAlps ? 'pcg' : 'none';
    const shown = suffix ? ` + ${suffix}` : '';
    return {
      id,
      title: base.title + shown,
      base: base.title,
      refit,
      options: { ...base.options, ...(suffix ? { refit } : {}) },
      flags: base.flags + (suffix ? ` --refit ${refit}` : ''),
    };
  });
  const twice = specs.find(({ id }, i) => specs.findIndex((other) => other.id === id) !== i);
  if (twice) throw invalidArgument('methods', 'each method once', twice.id);
  return specs;
}

/** "2:4", or "70 %". */
export function patternTitle(pattern: Pattern): string {
  return isNm(pattern) ? `${pattern.keep}:${pattern.of}` : describePattern(pattern).replace(' sparsity', '');
}

/** A pattern as options of `alps prune`. */
export function patternFlags(pattern: Pattern): string {
  return isNm(pattern) ? `--pattern ${pattern.keep}:${pattern.of}` : `--sparsity ${pattern.sparsity}`;
}
