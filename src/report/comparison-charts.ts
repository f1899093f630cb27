import type { ComparisonCell } from '../compare/comparison.js';
import { type ChartPoint, chart } from './charts.js';
import type { Table } from './page.js';

export const unique = <T>(values: T[]): T[] => [...new Set(values)];
export const seriesOf = (cells: ComparisonCell[]) => unique(cells.map(({ base }) => base));
export const patternsOf = (cells: ComparisonCell[]) => unique(cells.map(({ pattern }) => pattern));
export const variantOf = ({ refit, base }: ComparisonCell) =>
  refit === 'none' || (refit === 'pcg' && base.startsWith('ALPS'))
    ? 'own weights'
    : refit === 'pcg'
      ? 'refitted by PCG'
      : 'refitted by backsolve';

/** A line chart of the unstructured cells and bars of the N:M ones. */
export function chartsOf(
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
export function gridOf(
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
  // As shown: of two numbers that look alike neither is better.
  const best = patterns.flatMap((pattern, column): [number, number][] => {
    const values = methods.map((method) => find(method, pattern)).map((cell) => (cell ? value(cell) : undefined));
    const least = show(Math.min(...values.filter((one) => one !== undefined)));
    const rows = [...values.keys()].filter((row) => values[row] !== undefined && show(values[row]) === least);
    return methods.length > 1 ? rows.map((row) => [row + (dense === undefined ? 0 : 1), column + 1]) : [];
  });
  const first = dense === undefined ? [] : [['dense', ...patterns.map(() => dense)]];
  return { caption, header: ['Method', ...patterns], rows: [...first, ...rows], best };
}
