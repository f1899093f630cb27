import type { Comparison, ComparisonCell, TaskScore } from '../compare/comparison.js';
import { meanErrorOf } from '../prune.js';
import { type ChartPoint, chart } from './charts.js';
import { chartsOf, gridOf, patternsOf, seriesOf, unique, variantOf } from './comparison-charts.js';
import type { Section, Table } from './page.js';

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
      commands: [...dense.commands, ...pruneCommands(cells), ...(cells[0]?.commands.slice(1) ?? [])],
    };
  });
}

const pruneCommands = (cells: ComparisonCell[]) => unique(cells.map(({ commands }) => commands[0]!));

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
    commands: pruneCommands(cells),
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
      const y = meanErrorOf(cell.layers.filter((layer) => layer.block === block));
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

function layerTable(cells: ComparisonCell[], pattern: string): Table {
  const kinds = unique(cells.flatMap(({ layers }) => layers.map(({ name }) => kindOf(name))));
  return {
    caption: `Mean error of each kind of layer at ${pattern}`,
    header: ['Method', ...kinds],
    rows: cells.map((cell) => [
      cell.title,
      ...kinds.map((kind) => shownError(meanErrorOf(cell.layers.filter(({ name }) => kindOf(name) === kind)))),
    ]),
  };
}

/** Accuracies of the zero-shot tasks: normalised where the task has them so. */
export function taskSections({ cells, tasks, dense }: Comparison): Section[] {
  if (tasks.length === 0) return [];
  const accuracy = (scores: Record<string, TaskScore>, task: string) => scores[task]!.accNorm ?? scores[task]!.acc;
  const measureOf = (task: string) => (dense.tasks[task]!.accNorm === undefined ? 'acc' : 'acc_norm');
  const errors = tasks.map(({ task }) => {
    const p = accuracy(dense.tasks, task);
    return (100 * Math.sqrt((p * (1 - p)) / Math.max(dense.tasks[task]!.items - 1, 1))).toFixed(1);
  });
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
      header: ['Method', ...tasks.map(({ task }) => `${task}, ${measureOf(task)}`), 'mean'],
      rows: [rowOf('dense', dense.tasks), ...some.map((cell) => rowOf(cell.title, cell.tasks))],
    };
  });
  const items = tasks.map(({ task, protocol }) => `${task} (${dense.tasks[task]!.items} records): ${protocol}`);
  return [
    {
      heading: 'Zero-shot tasks',
      text: [
        ...items,
        'acc_norm chooses by the likelihood divided by the answer’s length, as these tasks are usually reported. Higher is better. ' +
          `The dense model’s accuracies have standard errors of ${errors.join(', ')} %.`,
      ],
      charts: chartsOf(cells, {
        title: 'Mean accuracy of the tasks',
        y: 'Mean accuracy, %',
        value: (cell) => mean(cell.tasks) * 100,
        show: (value) => `${value.toFixed(1)} %`,
        rule: { y: mean(dense.tasks) * 100, label: `dense ${percent(mean(dense.tasks))} %` },
      }),
      tables: patterns,
      commands: [...dense.commands.slice(-1), ...pruneCommands(cells), ...(cells[0]?.commands.slice(-1) ?? [])],
    },
  ];
}

/** Cells that were computed on different devices are told apart by the device's number. */
export function costSection({ cells }: Comparison): Section {
  const seconds = (value: number) => (value / 1000).toFixed(1);
  const devices = unique(cells.map(({ device }) => device));
  const numbered = (text: string, device: string) =>
    devices.length > 1 ? `${text} (${devices.indexOf(device) + 1})` : text;
  const titleOf = ({ title, device }: ComparisonCell) => numbered(title, device);
  const rows = unique(cells.map(titleOf)).map((title) => {
    const some = cells.filter((cell) => titleOf(cell) === title);
    const mean = (phase: keyof ComparisonCell['milliseconds']) =>
      some.reduce((sum, cell) => sum + cell.milliseconds[phase], 0) / some.length;
    const peak = Math.max(...some.map(({ peakBytes }) => peakBytes));
    return { title, prune: mean('prune'), forward: mean('forward'), solve: mean('solve'), peak };
  });
  return {
    heading: 'Time and memory',
    text: [
      `Mean over the patterns, on ${devices.map((device) => numbered(device, device)).join(', ')}. ` +
        'Pruning includes reading, the calibration tokens’ way through the model (forward), the method itself (solve) and writing. ' +
        'Memory is what tensors took at most while pruning.',
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
