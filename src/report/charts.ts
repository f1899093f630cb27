import type { TopLevelSpec } from 'vega-lite';

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
  x: string;
  y: string;
  points: ChartPoint[];
  /** Series in the order of the legend; their colours follow it. */
  series: readonly string[];
  logarithmic?: boolean;
  /** A level drawn across, such as the dense model's. */
  rule?: { y: number; label: string };
  /** Bars beside each other instead of lines; `x` is then a name. */
  bars?: boolean;
  /** Number format of the y axis (d3). */
  format?: string;
  /** Whether each point has a mark of its own to point at. Default true; a curve of many points has none. */
  marks?: boolean;
}

export interface Chart {
  title: string;
  wide: TopLevelSpec;
  narrow: TopLevelSpec;
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

function specification(
  options: ChartOptions,
  { width, height, legend }: { width: number; height: number; legend: 'right' | 'bottom' },
): TopLevelSpec {
  const { points, series, bars, rule, logarithmic = false, format, marks = true } = options;
  const used = series.filter((name) => points.some((point) => point.series === name));
  const variants = [...new Set(points.map(({ variant }) => variant ?? ''))];
  const scale = { domain: used, range: used.map((name) => colours[series.indexOf(name) % colours.length]!) };
  const key = { orient: legend, columns: legend === 'bottom' ? 2 : 1, title: null, symbolLimit: 40 } as const;
  const y = {
    field: 'y',
    type: 'quantitative',
    title: options.y,
    scale: logarithmic ? { type: 'log' } : { zero: bars === true },
    axis: { ...(format ? { format } : {}), tickCount: 6 },
  } as const;
  const x = bars
    ? ({ field: 'x', type: 'nominal', title: options.x, sort: null, axis: { labelAngle: 0 } } as const)
    : ({
        field: 'x',
        type: 'quantitative',
        title: options.x,
        scale: { zero: false, nice: false, padding: 12 },
        axis: { tickCount: legend === 'bottom' ? 5 : 8 },
      } as const);
  const colour = { field: 'series', type: 'nominal', scale, legend: key } as const;
  const description = { field: 'tip', type: 'nominal' } as const;
  const dash =
    variants.length > 1
      ? {
          strokeDash: {
            field: 'variant',
            type: 'nominal',
            scale: { domain: variants, range: variants.map((_, i) => (i === 0 ? [1, 0] : i === 1 ? [6, 4] : [2, 3])) },
            legend: { ...key, symbolType: 'stroke' },
          } as const,
        }
      : {};
  const layer = bars
    ? [
        {
          mark: { type: 'bar', cornerRadiusEnd: 2 } as const,
          encoding: { x, y, xOffset: { field: 'series', sort: used }, color: colour, description },
        },
      ]
    : [
        {
          mark: { type: 'line', strokeWidth: 2, aria: false } as const,
          encoding: { x, y, color: colour, ...dash, ...(variants.length > 1 ? { detail: { field: 'variant' } } : {}) },
        },
        ...(marks
          ? [
              {
                mark: { type: 'point', filled: true, size: 55 } as const,
                encoding: { x, y, color: colour, description },
              },
            ]
          : []),
      ];
  const across = rule
    ? [
        {
          data: { values: [{ y: rule.y, tip: rule.label }] },
          mark: { type: 'rule', strokeDash: [3, 3], color: 'currentColor', strokeWidth: 1.5 } as const,
          encoding: { y, description },
        },
        {
          data: { values: [{ y: rule.y, tip: rule.label }] },
          mark: {
            type: 'text',
            align: 'left',
            baseline: 'bottom',
            dx: 4,
            dy: -3,
            color: 'currentColor',
            aria: false,
          } as const,
          encoding: { y, x: { value: 0 }, text: { field: 'tip' } },
        },
      ]
    : [];
  return {
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    description: options.title,
    width,
    height,
    background: 'transparent',
    data: { values: points.map((point) => ({ ...point, variant: point.variant ?? '' })) },
    layer: [...layer, ...across],
    config: theme,
  } as TopLevelSpec;
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
  legend: { labelColor: 'currentColor', titleColor: 'currentColor', labelFontSize: 12, labelLimit: 220 },
  text: { fontSize: 12 },
  view: { stroke: null },
} as const;

/** The drawing of a specification, as the text of an `<svg>` element. */
export async function drawSvg(spec: TopLevelSpec): Promise<string> {
  const [vega, lite] = await Promise.all([import('vega'), import('vega-lite')]);
  const view = new vega.View(vega.parse(lite.compile(spec).spec), { renderer: 'none', logLevel: vega.Error });
  try {
    return await view.toSVG();
  } finally {
    view.finalize();
  }
}
