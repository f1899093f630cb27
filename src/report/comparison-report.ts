import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Comparison, ComparisonCell, TaskScore } from '../compare/compare.js';
import { fileSystemError } from '../errors.js';
import { type ChartPoint, chart } from './charts.js';
import { csv } from './csv.js';
import { type Page, renderPage, type Section, type Table } from './page.js';

/** Writes report.json, report.csv, layers.csv and report.html into a folder. */
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
    await mkdir(folder, { recursive: true });
    for (const [name, text] of Object.entries(files)) await writeFile(join(folder, name), text);
  } catch (cause) {
    throw fileSystemError('write the reports in', folder, cause);
  }
}

function cellsCsv({ cells, texts, dense }: Comparison): string {
  const header = [
    'method', 'pattern', 'sparsity', 'mean_relative_error', ...texts.map(({ name }) => `perplexity_${name}`),
    'seconds_prune', 'seconds_forward', 'seconds_solve', 'seconds_evaluate', 'peak_tensor_bytes',
  ]; // biome-ignore format: a list of columns
  const rows = cells.map((cell) => [
    cell.method,
    cell.pattern,
    cell.sparsity,
    cell.meanError,
    ...texts.map(({ name }) => cell.perplexity[name]!),
    ...(['prune', 'forward', 'solve', 'evaluate'] as const).map((phase) => cell.milliseconds[phase] / 1000),
    cell.peakBytes,
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
  return {
    title: `${name}: pruning methods compared`,
    summary:
      `${seriesOf(cells).length} methods and their refits at ${patternsOf(cells).join(', ')}: perplexity, relative error of each layer, ` +
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
  const { model, device, precision, propagation, calibration, texts, version } = comparison;
  return [
    ['Model', `${model.folder} (${model.type}, ${model.blocks} blocks, SHA-256 ${model.fingerprint.slice(0, 12)}…)`],
    [
      'Calibration',
      `${calibration.windows} windows of ${calibration.length} tokens, seed ${calibration.seed}` +
        `${calibration.note ? `; ${calibration.note}` : ''}`,
    ],
    ...texts.map(({ name, protocol }): [string, string] => [`Text “${name}”`, protocol]),
    ['Propagation', `${propagation}, unless the method says otherwise`],
    ['Computed on', `${device}; products in ${precision}`],
    ['Made by', `${command} (alps-prune ${version})`],
  ];
}

const unique = <T>(values: T[]): T[] => [...new Set(values)];
export const seriesOf = (cells: ComparisonCell[]) => unique(cells.map(({ base }) => base));
const patternsOf = (cells: ComparisonCell[]) => unique(cells.map(({ pattern }) => pattern));
const variantOf = ({ refit, base }: ComparisonCell) =>
  refit === 'none' || base.startsWith('ALPS')
    ? 'own weights'
    : refit === 'pcg'
      ? 'refitted by PCG'
      : 'refitted by backsolve';

/** A line chart of the unstructured cells and bars of the N:M ones. */
function chartsOf(
  cells: ComparisonCell[],
  options: {
    title: string;
    y: string;
    value(cell: ComparisonCell): number;
    show(value: number): string;
    logarithmic?: boolean;
    rule?: { y: number; label: string };
    format?: string;
  },
) {
  const { title, y, value, show, logarithmic, rule, format } = options;
  const series = seriesOf(cells);
  const point = (cell: ComparisonCell, x: number | string): ChartPoint => ({
    x,
    y: value(cell),
    series: cell.base,
    variant: variantOf(cell),
    tip: `${cell.title} at ${cell.pattern}: ${show(value(cell))}`,
  });
  const lines = cells.filter(({ nm }) => !nm);
  const groups = cells.filter(({ nm }) => nm);
  const shared = { y, logarithmic, ...(rule ? { rule } : {}), ...(format ? { format } : {}) };
  const x = 'Sparsity (% of the blocks’ weights)';
  const drawn = [];
  if (lines.length > 0) {
    const points = lines.map((cell) => point(cell, asked(cell)));
    drawn.push(chart({ ...shared, kind: 'lines', title, series, x, points }));
  }
  if (groups.length > 0) {
    const points = groups.map((cell) => ({ ...point(cell, cell.title), series: cell.pattern, variant: '' }));
    drawn.push(
      chart({ ...shared, kind: 'dots', title: `${title}, N:M`, series: patternsOf(groups), x: 'Method', points }),
    );
  }
  return drawn;
}

/** The sparsity that was asked for, in percent. */
const asked = ({ pattern }: ComparisonCell) => Number.parseFloat(pattern);

/** Methods down, patterns across. */
function gridOf(
  caption: string,
  cells: ComparisonCell[],
  value: (cell: ComparisonCell) => number,
  show: (value: number) => string,
  dense?: string,
): Table {
  const patterns = patternsOf(cells);
  const methods = unique(cells.map(({ title }) => title));
  const find = (method: string, pattern: string) =>
    cells.find((cell) => cell.title === method && cell.pattern === pattern);
  const rows = methods.map((method) => [
    method,
    ...patterns.map((pattern) => {
      const cell = find(method, pattern);
      return cell ? show(value(cell)) : '–';
    }),
  ]);
  const best = patterns.flatMap((pattern, column): [number, number][] => {
    const values = methods
      .map((method) => find(method, pattern))
      .map((cell) => (cell ? value(cell) : Number.POSITIVE_INFINITY));
    const row = values.indexOf(Math.min(...values));
    return methods.length > 1 ? [[row + (dense === undefined ? 0 : 1), column + 1]] : [];
  });
  const first = dense === undefined ? [] : [['dense', ...patterns.map(() => dense)]];
  return { caption, header: ['Method', ...patterns], rows: [...first, ...rows], best };
}

export const shownPerplexity = (value: number) =>
  value >= 1000 ? Math.round(value).toLocaleString('en-US') : value.toFixed(2);
const shownError = (value: number) => value.toPrecision(3);

export function perplexitySections({ cells, texts, dense }: Comparison): Section[] {
  return texts.map(({ name, protocol }) => {
    const level = dense.perplexity[name]!;
    return {
      heading: `Perplexity on ${name}`,
      text: [`${protocol}. Lower is better; the axis is logarithmic. The dense model has ${shownPerplexity(level)}.`],
      charts: chartsOf(cells, {
        title: `Perplexity on ${name}`,
        y: 'Perplexity',
        value: (cell) => cell.perplexity[name]!,
        show: shownPerplexity,
        logarithmic: true,
        rule: { y: level, label: `dense ${shownPerplexity(level)}` },
        format: '~s',
      }),
      tables: [
        gridOf(
          `Perplexity on ${name}`,
          cells,
          (cell) => cell.perplexity[name]!,
          shownPerplexity,
          shownPerplexity(level),
        ),
      ],
      commands: [...dense.commands, ...unique(cells.flatMap(({ commands }) => commands.slice(0, 1)))],
    };
  });
}

/** The mean error, and each layer's. */
export function errorSections({ cells }: Comparison): Section[] {
  const mean: Section = {
    heading: 'Relative error of the layers’ outputs',
    text: ['tr((W−Ŵ) XᵀX (W−Ŵ)ᵀ) / tr(Ŵ XᵀX Ŵᵀ) on the calibration inputs that the layer saw, mean over all layers.'],
    charts: chartsOf(cells, {
      title: 'Mean relative error',
      y: 'Mean relative error',
      value: ({ meanError }) => meanError,
      show: shownError,
      logarithmic: true,
      format: '~g',
    }),
    tables: [gridOf('Mean relative error', cells, ({ meanError }) => meanError, shownError)],
    commands: unique(cells.flatMap(({ commands }) => commands.slice(0, 1))),
  };
  const layers = patternsOf(cells).map((pattern): Section => {
    const some = cells.filter((cell) => cell.pattern === pattern);
    return {
      heading: `Each layer at ${pattern}`,
      folded: true,
      charts: [layerChart(some, pattern)],
      tables: [layerTable(some, pattern)],
    };
  });
  return [mean, ...layers];
}

function kindOf(name: string): string {
  const last = name.split('.').pop() ?? name;
  return last.replace(/\[\d+\]$/, '');
}

/** Mean error of a block's layers along the depth. */
function layerChart(cells: ComparisonCell[], pattern: string) {
  const points = cells.flatMap((cell) => {
    const blocks = unique(cell.layers.map(({ block }) => block));
    return blocks.map((block): ChartPoint => {
      const y = meanOf(cell.layers.filter((layer) => layer.block === block));
      return {
        x: block,
        y,
        series: cell.base,
        variant: variantOf(cell),
        tip: `${cell.title}, block ${block}: ${shownError(y)}`,
      };
    });
  });
  return chart({
    kind: 'lines',
    title: `Mean error of each block at ${pattern}`,
    x: 'Block',
    y: 'Mean relative error',
    points,
    series: seriesOf(cells),
    logarithmic: true,
    format: '~g',
  });
}

function meanOf(layers: ComparisonCell['layers']): number {
  const errors = layers.flatMap(({ error }) => (error === null ? [] : [error]));
  return errors.reduce((sum, error) => sum + error, 0) / Math.max(errors.length, 1);
}

function layerTable(cells: ComparisonCell[], pattern: string): Table {
  const kinds = unique(cells.flatMap(({ layers }) => layers.map(({ name }) => kindOf(name))));
  return {
    caption: `Mean error of each kind of layer at ${pattern}`,
    header: ['Method', ...kinds],
    rows: cells.map((cell) => [
      cell.title,
      ...kinds.map((kind) => shownError(meanOf(cell.layers.filter(({ name }) => kindOf(name) === kind)))),
    ]),
  };
}

/** Accuracies of the zero-shot tasks: normalised where the task has them so. */
export function taskSections({ cells, tasks, dense }: Comparison): Section[] {
  if (tasks.length === 0) return [];
  const accuracy = (scores: Record<string, TaskScore>, task: string) => scores[task]!.accNorm ?? scores[task]!.acc;
  const mean = (scores: Record<string, TaskScore>) =>
    tasks.reduce((sum, { task }) => sum + accuracy(scores, task), 0) / tasks.length;
  const percent = (value: number) => (value * 100).toFixed(1);
  const patterns = patternsOf(cells).map((pattern): Table => {
    const some = cells.filter((cell) => cell.pattern === pattern);
    const rowOf = (title: string, scores: Record<string, TaskScore>) => [
      title,
      ...tasks.map(({ task }) => percent(accuracy(scores, task))),
      percent(mean(scores)),
    ];
    return {
      caption: `Accuracy at ${pattern}, %`,
      header: ['Method', ...tasks.map(({ task }) => task), 'mean'],
      rows: [rowOf('dense', dense.tasks), ...some.map((cell) => rowOf(cell.title, cell.tasks))],
    };
  });
  const items = tasks.map(({ task }) => `${task} (${dense.tasks[task]!.items})`).join(', ');
  const { protocol } = tasks[0]!;
  return [
    {
      heading: 'Zero-shot tasks',
      text: [
        `${items} records; ${protocol}. Normalised by the answers’ length where the task is usually reported so. Higher is better.`,
      ],
      charts: chartsOf(cells, {
        title: 'Mean accuracy of the tasks',
        y: 'Mean accuracy, %',
        value: (cell) => mean(cell.tasks) * 100,
        show: (value) => `${value.toFixed(1)} %`,
        rule: { y: mean(dense.tasks) * 100, label: `dense ${percent(mean(dense.tasks))} %` },
      }),
      tables: patterns,
      commands: dense.commands.slice(-1),
    },
  ];
}

export function costSection({ cells, device }: Comparison): Section {
  const seconds = (value: number) => (value / 1000).toFixed(1);
  const rows = unique(cells.map(({ title }) => title)).map((title) => {
    const some = cells.filter((cell) => cell.title === title);
    const mean = (phase: keyof ComparisonCell['milliseconds']) =>
      some.reduce((sum, cell) => sum + cell.milliseconds[phase], 0) / some.length;
    const peak = Math.max(...some.map(({ peakBytes }) => peakBytes));
    return { title, prune: mean('prune'), forward: mean('forward'), solve: mean('solve'), peak };
  });
  return {
    heading: 'Time and memory',
    text: [
      `Mean over the patterns, on ${device}. Pruning includes reading, the calibration tokens’ way through the model (forward), the method ` +
        'itself (solve) and writing. Memory is what tensors took at most while pruning.',
    ],
    charts: [
      chart({
        kind: 'bars',
        title: 'Time to prune',
        x: 'Method',
        y: 'Seconds',
        series: ['forward', 'solve'],
        points: rows.flatMap(({ title, forward, solve }) => [
          { x: title, y: forward / 1000, series: 'forward', tip: `${title}: forward ${seconds(forward)} s` },
          { x: title, y: solve / 1000, series: 'solve', tip: `${title}: solve ${seconds(solve)} s` },
        ]),
      }),
    ],
    tables: [
      {
        caption: 'Time to prune and peak memory',
        header: ['Method', 'prune, s', 'forward, s', 'solve, s', 'peak, MB'],
        rows: rows.map(({ title, prune, forward, solve, peak }) => [
          title,
          seconds(prune),
          seconds(forward),
          seconds(solve),
          (peak / 1e6).toFixed(0),
        ]),
      },
    ],
  };
}
