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
  /** What is not as it looks, in words, under the chart. */
  note?: string;
  wide: Specification;
  narrow: Specification;
}

/** Told apart by most eyes, on white and on black (after Okabe and Ito). */
const colours = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#b8860b', '#56b4e9', '#8a8a8a', '#7a5cc4', '#a0522d'];

/** A chart in two widths: for a page's column and for a phone. */
export function chart(given: ChartOptions): Chart {
  const { options, note } = drawable(given);
  return {
    title: options.title,
    ...(note === undefined ? {} : { note }),
    wide: specification(options, { width: 560, height: 320, legend: 'right' }),
    narrow: specification(options, { width: 270, height: 260, legend: 'bottom' }),
  };
}

interface Drawn extends ChartOptions {
  /** From the least value to the largest, of points and rule; on a logarithmic scale the ends of the axis. */
  ends: [number, number];
}

/** Where a logarithmic scale has no place for a value, the value moves to its lower edge; where it has none for any, the scale is linear. */
function drawable(given: ChartOptions): { options: Drawn; note?: string } {
  const { points, rule } = given;
  const values = [...points.map(({ y }) => y), ...(rule ? [rule.y] : [])];
  const positive = values.filter((y) => y > 0);
  if (!given.logarithmic || positive.length === 0)
    return { options: { ...given, logarithmic: false, ends: [Math.min(...values), Math.max(...values)] } };
  const [least, most] = [Math.min(...positive), Math.max(...positive)];
  const misses = positive.length < values.length;
  const edge = misses ? Math.min(0.8 * least, least * (least / most) ** 0.08) : 0.9 * least;
  const moved = <T extends { y: number }>(one: T): T => ({ ...one, y: one.y > 0 ? one.y : edge });
  const options: Drawn = {
    ...given,
    points: points.map(moved),
    ...(rule ? { rule: moved(rule) } : {}),
    ends: [edge, 1.1 * most],
  };
  if (!misses) return { options };
  const missed = values.every((y) => y >= 0) ? '0' : '0 or less';
  return { options, note: `A logarithmic axis has no place for ${missed}: such points stand at its lower edge.` };
}

interface Size {
  width: number;
  height: number;
  legend: 'right' | 'bottom';
}

function specification(options: Drawn, size: Size): Specification {
  const { title, points, kind } = options;
  return {
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    description: title,
    width: kind === 'lines' ? size.width : nameWidth(size),
    height: kind === 'lines' ? size.height : { step: kind === 'bars' ? 16 : 24 },
    background: 'transparent',
    data: { values: points.map((point) => ({ ...point, variant: point.variant ?? '' })) },
    layer: [...(kind === 'lines' ? lineLayers(options, size) : nameLayers(options, size)), ...ruleLayers(options)],
    config: theme,
  };
}

/** Names take more room than numbers. */
const nameWidth = ({ width }: Size) => width - 40;

/** On a phone two columns of short names, or one. */
const legendAt = (legend: Size['legend'], names: readonly string[]) => {
  const columns = legend === 'bottom' && names.every((name) => name.length <= 18) ? 2 : 1;
  return { orient: legend, columns, title: null, symbolLimit: 40 } as const;
};

function colourOf({ series, points }: Drawn, { legend }: Size) {
  const used = series.filter((name) => points.some((point) => point.series === name));
  const scale = { domain: used, range: used.map((name) => colours[series.indexOf(name) % colours.length]!) };
  return { field: 'series', type: 'nominal', scale, legend: used.length > 1 ? legendAt(legend, used) : null } as const;
}

/** The values' scale: logarithmic ones end where the values do, as whole decades would leave most of the chart empty. */
function valueScale({ logarithmic, ends, kind }: Drawn) {
  if (logarithmic) return { type: 'log', nice: false, domain: ends } as const;
  // Where all values are 0 a scale would have no length.
  return ends[0] === 0 && ends[1] === 0 ? { domain: [0, 1] } : { zero: kind === 'bars' };
}

/** The values' axis. @param pixels its length, across or upright */
function valueAxis({ logarithmic, ends, format = '~g' }: Drawn, pixels: { across: number } | { upright: number }) {
  const across = 'across' in pixels;
  const ticks = logarithmic ? { values: logTicks(ends, pixels) } : { tickCount: across ? 5 : 6 };
  return { ...ticks, ...labelsIn(format), labelOverlap: true };
}

/** Every tick's number in a format of d3, which axes that are given the format change by their ticks: as 1e+2, or to nothing. */
const labelsIn = (format: string) => ({ labelExpr: `format(datum.value, '${format}')` });

/** As wide as a digit, about, and what is left free between labels. */
const [digit, gap] = [7, 8];

/** As a tick's label shows a number. */
const shownTick = (value: number) => String(Number(value.toPrecision(6)));

/** Whether labels at these places, in pixels, leave one another room. */
function haveRoom(ticks: readonly number[], placeOf: (tick: number) => number, across: boolean): boolean {
  const half = (tick: number) => (across ? digit * shownTick(tick).length : 12) / 2;
  return ticks.every((tick, i) => {
    const last = ticks[i - 1];
    return last === undefined || placeOf(tick) - placeOf(last) >= half(tick) + half(last) + gap;
  });
}

/** 1, 2 and 5 in each decade, or fewer where there is no room for them; as on a linear axis where these would be less than three. */
export function logTicks([low, high]: [number, number], pixels: { across: number } | { upright: number }): number[] {
  const across = 'across' in pixels;
  const length = across ? pixels.across : pixels.upright;
  const placeOf = (value: number) => (length * Math.log(value / low)) / Math.log(high / low);
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const decades = Array.from({ length: last - first + 1 }, (_, i) => first + i);
  const within = (value: number) => value >= low && value <= high;
  const of = (digits: number[], every = 1) =>
    decades
      .filter((decade) => decade % every === 0)
      .flatMap((decade) => digits.map((one) => Number(`${one}e${decade}`)))
      .filter(within);
  const logarithmic = high / low < 4 ? [] : [of([1, 2, 5]), of([1, 3]), ...[1, 2, 3, 5, 10].map((n) => of([1], n))];
  // Steps from a hundredth of the length up.
  const begin = Math.floor(Math.log10(high - low)) - 2;
  const linear = [...Array(9).keys()].map((i) => {
    const step = Number(`${[1, 2, 5][i % 3]}e${begin + Math.floor(i / 3)}`);
    const from = Math.ceil(low / step);
    return Array.from({ length: Math.floor(high / step) - from + 1 }, (_, j) =>
      Number(((from + j) * step).toPrecision(12)),
    );
  });
  const good = (ticks: number[], least: number) =>
    ticks.length >= least && ticks.length <= 10 && haveRoom(ticks, placeOf, across);
  return [3, 2, 1].flatMap((least) => [...logarithmic, ...linear].filter((ticks) => good(ticks, least)))[0] ?? [];
}

const description = { field: 'tip', type: 'nominal' } as const;

/** The axis of numbers that points stand over: at each of them where they are few. */
function placeAxis({ points }: Drawn, { width, legend }: Size) {
  const places = [...new Set(points.map(({ x }) => Number(x)))].sort((a, b) => a - b);
  const [first, last] = [places[0]!, places.at(-1)!];
  const placeOf = (x: number) => (last === first ? 0 : ((width - 24) * (x - first)) / (last - first));
  const few = places.length <= 12 && haveRoom(places, placeOf, true);
  return {
    ...labelsIn('~g'),
    tickCount: legend === 'bottom' ? 5 : 8,
    ...(places.every(Number.isInteger) ? { tickMinStep: 1 } : {}),
    ...(few ? { values: places } : {}),
  };
}

function lineLayers(options: Drawn, size: Size) {
  const { points, markEvery = 1 } = options;
  const variants = [...new Set(points.map(({ variant }) => variant ?? ''))];
  const scale = valueScale(options);
  const axis = valueAxis(options, { upright: size.height });
  const y = { field: 'y', type: 'quantitative', title: options.y, scale, axis } as const;
  const x = {
    field: 'x',
    type: 'quantitative',
    title: options.x,
    scale: { zero: false, nice: false, padding: 12 },
    axis: placeAxis(options, size),
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

function nameLayers(options: Drawn, size: Size) {
  const { points, kind, series } = options;
  const scale = valueScale(options);
  const axis = valueAxis(options, { across: nameWidth(size) });
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

function ruleLayers({ rule, kind, ends, logarithmic }: Drawn) {
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
  const [low, level, high] = [ends[0], rule.y, ends[1]].map((y) => (logarithmic ? Math.log(y) : y)) as [
    number,
    number,
    number,
  ];
  // To the left of a level on the right, as the label would leave the drawing.
  const side = level - low > (high - low) / 1.5 ? ({ align: 'right', dx: -4 } as const) : {};
  return [
    { data, mark: line, encoding: { x: place, description } },
    { data, mark: { ...text, ...side }, encoding: { x: place, y: { value: 0 }, ...label } },
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
