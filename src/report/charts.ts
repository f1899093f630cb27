/** A specification of vega-lite. Its own type would bring the types of browsers into the programs of this package's users. */
export type Specification = Readonly<Record<string, unknown>>;

/** One mark's data: where it stands, whose it is, and what is said when it is pointed at. */
export interface ChartPoint {
  x: number | string;
  y: number;
  series: string;
  /** Dashes tell variants of one series' colour apart. */
  variant?: string;
  tip: string;
}

export interface ChartOptions {
  /** For screen readers, and above the chart. */
  title: string;
  /**
   * `lines`: y over x. `dots`, `bars`: y by the name x, which stands on the left; `series` of one name are told apart by colour.
   */
  kind: 'lines' | 'dots' | 'bars';
  x: string;
  y: string;
  points: ChartPoint[];
  /** Series in the order of the legend; their colours follow it. */
  series: readonly string[];
  logarithmic?: boolean;
  /** A level drawn across, such as the dense model's. */
  rule?: { y: number; label: string };
  /** Number format of the values' axis (d3). */
  format?: string;
  /** Lines: whether each point has a mark to point at. Default true; a curve of many points has one now and then. */
  markEvery?: number;
}

export interface Chart {
  title: string;
  wide: Specification;
  narrow: Specification;
}

/** Told apart by most eyes, on white and on black (after Okabe and Ito). */
const colours = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#b8860b', '#56b4e9', '#8a8a8a', '#7a5cc4', '#a0522d'];

/** A chart in two widths: for a page's column and for a phone. */
export function chart(options: ChartOptions): Chart {
  return {
    title: options.title,
    wide: specification(options, { width: 560, height: 320, legend: 'right' }),
    narrow: specification(options, { width: 270, height: 260, legend: 'bottom' }),
  };
}

interface Size {
  width: number;
  height: number;
  legend: 'right' | 'bottom';
}

function specification(options: ChartOptions, size: Size): Specification {
  const { title, points, kind } = options;
  return {
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    description: title,
    width: kind === 'lines' ? size.width : size.width - 40,
    height: kind === 'lines' ? size.height : { step: kind === 'bars' ? 16 : 24 },
    background: 'transparent',
    data: { values: points.map((point) => ({ ...point, variant: point.variant ?? '' })) },
    layer: [...(kind === 'lines' ? lineLayers(options, size) : nameLayers(options, size)), ...ruleLayers(options)],
    config: theme,
  };
}

/** On a phone two columns of short names, or one. */
const legendAt = (legend: Size['legend'], names: readonly string[]) => {
  const columns = legend === 'bottom' && names.every((name) => name.length <= 18) ? 2 : 1;
  return { orient: legend, columns, title: null, symbolLimit: 40 } as const;
};

function colourOf({ series, points }: ChartOptions, { legend }: Size) {
  const used = series.filter((name) => points.some((point) => point.series === name));
  const scale = { domain: used, range: used.map((name) => colours[series.indexOf(name) % colours.length]!) };
  return { field: 'series', type: 'nominal', scale, legend: used.length > 1 ? legendAt(legend, used) : null } as const;
}

/** The values' scale: logarithmic ones end where the values do, as whole decades would leave most of the chart empty. */
function valueScale({ logarithmic, points, rule, kind }: ChartOptions) {
  if (!logarithmic) return { zero: kind === 'bars' };
  const values = [...points.map(({ y }) => y), ...(rule ? [rule.y] : [])].filter((y) => y > 0);
  return { type: 'log', nice: false, domain: [Math.min(...values) * 0.9, Math.max(...values) * 1.1] } as const;
}

const description = { field: 'tip', type: 'nominal' } as const;

function lineLayers(options: ChartOptions, size: Size) {
  const { points, markEvery = 1 } = options;
  const variants = [...new Set(points.map(({ variant }) => variant ?? ''))];
  const scale = valueScale(options);
  const axis = { ...(options.format ? { format: options.format } : {}), tickCount: 6, labelOverlap: true };
  const y = { field: 'y', type: 'quantitative', title: options.y, scale, axis } as const;
  const x = {
    field: 'x',
    type: 'quantitative',
    title: options.x,
    scale: { zero: false, nice: false, padding: 12 },
    axis: { tickCount: size.legend === 'bottom' ? 5 : 8 },
  } as const;
  const color = colourOf(options, size);
  const dashes = [[1, 0], [6, 4], [2, 3]]; // biome-ignore format: three of them
  const dash =
    variants.length > 1
      ? {
          strokeDash: {
            field: 'variant',
            type: 'nominal',
            scale: { domain: variants, range: variants.map((_, i) => dashes[i % 3]!) },
            legend: { ...legendAt(size.legend, variants), symbolType: 'stroke', symbolSize: 700, symbolStrokeWidth: 2 },
          } as const,
          detail: { field: 'variant' },
        }
      : {};
  const marked = points
    .filter((_, i) => i % markEvery === 0)
    .map((point) => ({ ...point, variant: point.variant ?? '' }));
  return [
    { mark: { type: 'line', strokeWidth: 2, aria: false } as const, encoding: { x, y, color, ...dash } },
    {
      data: { values: marked },
      mark: { type: 'point', filled: true, size: markEvery > 1 ? 25 : 55 } as const,
      encoding: { x, y, color, description },
    },
  ];
}

function nameLayers(options: ChartOptions, size: Size) {
  const { points, kind, series } = options;
  const scale = valueScale(options);
  const axis = { ...(options.format ? { format: options.format } : {}), tickCount: 5, labelOverlap: true };
  const x = { field: 'y', type: 'quantitative', title: options.y, scale, axis } as const;
  const names = [...new Set(points.map((point) => point.x))];
  const y = { field: 'x', type: 'nominal', title: null, sort: names, axis: { labelLimit: 180 } } as const;
  const color = colourOf(options, size);
  if (kind === 'dots')
    return [{ mark: { type: 'point', filled: true, size: 70 } as const, encoding: { x, y, color, description } }];
  return [
    {
      mark: { type: 'bar', cornerRadiusEnd: 2 } as const,
      encoding: { x, y, yOffset: { field: 'series', sort: series }, color, description },
    },
  ];
}

function ruleLayers({ rule, kind }: ChartOptions) {
  if (!rule) return [];
  const data = { values: [{ y: rule.y, tip: rule.label }] };
  const place = { field: 'y', type: 'quantitative' } as const;
  const line = { type: 'rule', strokeDash: [3, 3], color: 'currentColor', strokeWidth: 1.5 } as const;
  const text = {
    type: 'text',
    align: 'left',
    baseline: 'bottom',
    dx: 4,
    dy: -3,
    color: 'currentColor',
    aria: false,
  } as const;
  const label = { text: { field: 'tip' } };
  if (kind === 'lines')
    return [
      { data, mark: line, encoding: { y: place, description } },
      // On the right, where most curves have left the level.
      { data, mark: { ...text, align: 'right', dx: -2 }, encoding: { y: place, x: { value: 'width' }, ...label } },
    ];
  return [
    { data, mark: line, encoding: { x: place, description } },
    { data, mark: text, encoding: { x: place, y: { value: 0 }, ...label } },
  ];
}

/** Text and lines take the page's colour, so that one drawing serves light, dark and paper. */
const theme = {
  font: 'system-ui, sans-serif',
  axis: {
    labelColor: 'currentColor',
    titleColor: 'currentColor',
    domainColor: 'currentColor',
    tickColor: 'currentColor',
    gridColor: 'currentColor',
    gridOpacity: 0.14,
    labelFontSize: 12,
    titleFontSize: 12,
    titleFontWeight: 'normal',
  },
  legend: {
    labelColor: 'currentColor',
    titleColor: 'currentColor',
    labelFontSize: 12,
    labelLimit: 0,
    layout: { bottom: { anchor: 'start', direction: 'vertical' } },
  },
  text: { fontSize: 12 },
  view: { stroke: null },
} as const;
