import { rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { makeFolder } from '../checkpoint/output-folder.js';
import type { Comparison } from '../compare/comparison.js';
import { fileSystemError } from '../errors.js';
import { patternsOf, seriesOf, unique, variantOf } from './comparison-charts.js';
import { costSection, errorSections, perplexitySections, taskSections } from './comparison-sections.js';
import { csv } from './csv.js';
import { type Page, renderPage } from './page.js';

/**
 * Writes report.json, report.csv, layers.csv and report.html into a folder, which is created if needed; existing reports are replaced.
 *
 * @param folder may be the `out` of {@link compare}
 * @param command shown in the report as the command that made it, such as an `alps compare` command line; it is not run
 * @throws AlpsError `FILE_SYSTEM` if a file cannot be written
 */
export async function writeComparison(comparison: Comparison, folder: string, command: string): Promise<void> {
  const files = {
    'report.json': `${JSON.stringify({ ...comparison, command }, null, 1)}\n`,
    ...comparisonCsvs(comparison),
    'report.html': await renderPage(comparisonPage(comparison, command)),
  };
  await writeReports(folder, files);
}

export function comparisonCsvs(comparison: Comparison): Record<string, string> {
  return { 'report.csv': cellsCsv(comparison), 'layers.csv': layersCsv(comparison) };
}

export async function writeReports(folder: string, files: Record<string, string>): Promise<void> {
  try {
    await makeFolder(folder);
    for (const [name, text] of Object.entries(files)) {
      const path = join(folder, name);
      const partial = `${path}.${process.pid}.partial`;
      try {
        await writeFile(partial, text);
        await rename(partial, path);
      } finally {
        await rm(partial, { force: true });
      }
    }
  } catch (cause) {
    throw fileSystemError('write the reports in', folder, cause);
  }
}

function cellsCsv({ cells, texts, tasks, dense }: Comparison): string {
  const measures = tasks.flatMap(({ task }) =>
    (['acc', 'accNorm', 'perplexity'] as const)
      .filter((name) => dense.tasks[task]![name] !== undefined)
      .map((name) => ({ task, name })),
  );
  const words = { acc: 'acc', accNorm: 'acc_norm', perplexity: 'perplexity' };
  const header = [
    'method', 'pattern', 'sparsity', 'mean_relative_error', ...texts.map(({ name }) => `perplexity_${name}`),
    'seconds_prune', 'seconds_forward', 'seconds_solve', 'seconds_evaluate', 'peak_tensor_bytes', 'device',
    ...measures.map(({ task, name }) => `${task}_${words[name]}`),
  ]; // biome-ignore format: a list of columns
  const rows = cells.map((cell) => [
    cell.method,
    cell.pattern,
    cell.sparsity,
    cell.meanError,
    ...texts.map(({ name }) => cell.perplexity[name]!),
    ...(['prune', 'forward', 'solve', 'evaluate'] as const).map((phase) => cell.milliseconds[phase] / 1000),
    cell.peakBytes,
    cell.device,
    ...measures.map(({ task, name }) => cell.tasks[task]![name]!),
  ]);
  const denseRow = [
    'dense',
    '',
    0,
    0,
    ...texts.map(({ name }) => dense.perplexity[name]!),
    '',
    '',
    '',
    dense.milliseconds / 1000,
    '',
    dense.device,
    ...measures.map(({ task, name }) => dense.tasks[task]![name]!),
  ];
  return csv(header, [denseRow, ...rows]);
}

function layersCsv({ cells }: Comparison): string {
  const rows = cells.flatMap((cell) =>
    cell.layers.map(({ block, name, error, sparsity }) => [
      cell.method,
      cell.pattern,
      block,
      name,
      error ?? '',
      sparsity,
    ]),
  );
  return csv(['method', 'pattern', 'block', 'layer', 'relative_error', 'sparsity'], rows);
}

/** The page of a comparison, in sections that other pages use as well. */
export function comparisonPage(comparison: Comparison, command: string): Page {
  const { model, cells } = comparison;
  const name =
    model.folder
      .replace(/[\\/]+$/, '')
      .split(/[\\/]/)
      .pop() ?? model.folder;
  const methods = seriesOf(cells).length;
  const refits = cells.some((cell) => variantOf(cell) !== 'own weights') ? ' with refits' : '';
  return {
    title: `${name}: pruning methods compared`,
    summary:
      `${methods} ${methods === 1 ? 'method' : 'methods'}${refits} at ${patternsOf(cells).join(', ')}: perplexity, relative error of each layer, ` +
      'time and memory. All from the same calibration tokens.',
    facts: factsOf(comparison, command),
    sections: [
      ...perplexitySections(comparison),
      ...taskSections(comparison),
      ...errorSections(comparison),
      costSection(comparison),
    ],
    data: comparison,
  };
}

export function factsOf(comparison: Comparison, command: string): [string, string][] {
  const { model, dense, cells, precision, propagation, calibration, texts, failures, version } = comparison;
  const devices = unique([dense, ...cells].map(({ device }) => device));
  const own = calibration.ownWindows > 0 ? `, ${calibration.ownWindows} of them the model’s own` : '';
  return [
    ['Model', `${model.folder} (${model.type}, ${model.blocks} blocks, SHA-256 ${model.fingerprint.slice(0, 12)}…)`],
    [
      'Calibration',
      `${calibration.windows} windows of ${calibration.length} tokens${own}, seed ${calibration.seed}` +
        `${calibration.note ? `; ${calibration.note}` : ''}`,
    ],
    ...texts.map(({ name, protocol }): [string, string] => [`Text “${name}”`, protocol]),
    ['Propagation', `${propagation}, unless the method says otherwise`],
    ['Computed on', `${devices.join('; or on ')}; products in ${precision}`],
    ...failures.map(({ title, pattern, message }): [string, string] => [
      `${title} at ${pattern}`,
      `without numbers: ${message}`,
    ]),
    ['Made by', `${command} (alps-prune ${version})`],
  ];
}
