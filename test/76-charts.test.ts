import type { Comparison, ComparisonCell } from '../src/compare/comparison.js';
import { type ChartOptions, chart, logTicks, type Specification } from '../src/report/charts.js';
import { gridOf } from '../src/report/comparison-charts.js';
import { comparisonPage } from '../src/report/comparison-report.js';
import { drawHere } from '../src/report/draw.js';
import { renderPage } from '../src/report/page.js';

const points = (values: [x: number | string, y: number][]) =>
  values.map(([x, y]) => ({ x, y, series: 'A', tip: `is ${y}` }));
const options = (given: Partial<ChartOptions> & Pick<ChartOptions, 'points'>): ChartOptions => ({
  title: 'Title',
  kind: 'lines',
  x: 'X',
  y: 'Y',
  series: ['A'],
  ...given,
});
const svgOf = async (spec: Specification) => (await drawHere([spec]))[0]!;

/** Labels of the axes, in the order of the drawing. */
function labelsOf(svg: string): string[] {
  const groups = [...svg.matchAll(/role-axis-label"[^>]*>(.*?)<\/g>/gs)];
  return groups.flatMap(([, group]) =>
    [...group!.matchAll(/<text[^>]*>([^<]*)<\/text>/g)].flatMap(([text, label]) =>
      text.includes('opacity="0"') ? [] : [label!],
    ),
  );
}

/** Where a point's mark stands. */
function placeOf(svg: string, tip: string): [x: number, y: number] {
  const found = new RegExp(`aria-label="${tip}"[^>]*transform="translate\\(([\\d.]+),([\\d.]+)\\)"`).exec(svg);
  return [Number(found![1]), Number(found![2])];
}

describe('values that a logarithmic axis has no place for', () => {
  test('lines: 0 is drawn below all others, and told as it is', async () => {
    const { wide, note } = chart(
      options({ logarithmic: true, points: points([[0, 0], [1, 1e-6], [2, 0.7]]) }), // biome-ignore format: a list
    );
    expect(note).toBe('A logarithmic axis has no place for 0: such points stand at its lower edge.');
    const svg = await svgOf(wide);
    const [none, little, much] = ['is 0', 'is 0.000001', 'is 0.7'].map((tip) => placeOf(svg, tip)[1]);
    expect(none).toBeGreaterThan(little! + 5);
    expect(little).toBeGreaterThan(much! + 100);
    const html = await renderPage({
      title: 'T',
      summary: '',
      facts: [],
      sections: [{ heading: 'H', charts: [{ title: 'Title', note: note!, wide, narrow: wide }] }],
      data: {},
    });
    expect(html).toContain(`<p class="note">${note}</p></figure>`);
  });

  test('dots: 0 stands left of all others, by itself', async () => {
    const values = points([['a', 0], ['b', 1e-3], ['c', 1]]); // biome-ignore format: a list
    const svg = await svgOf(chart(options({ kind: 'dots', logarithmic: true, points: values })).wide);
    expect(placeOf(svg, 'is 0')[0]).toBeLessThan(placeOf(svg, 'is 0.001')[0] - 5);
  });

  test.each(['lines', 'dots'] as const)('%s: where nothing is above 0 the axis is linear', async (kind) => {
    const { wide, note } = chart(options({ kind, logarithmic: true, points: points([[0, 0], [1, 0]]) })); // biome-ignore format: a list
    expect(note).toBeUndefined();
    expect(JSON.stringify(wide)).not.toContain('[null');
    const svg = await svgOf(wide);
    expect(svg).not.toContain('NaN');
    expect(labelsOf(svg)).toEqual(expect.arrayContaining(['0', '1']));
  });

  test('without such values there is no note', () => {
    expect(chart(options({ logarithmic: true, points: points([[0, 1]]) })).note).toBeUndefined();
  });
});

describe('labels of axes', () => {
  test.each([
    [[50], ['50']],
    [
      [0, 100],
      ['0', '100'],
    ],
    [
      [0, 1, 2, 3, 4],
      ['0', '1', '2', '3', '4'],
    ],
    [
      [50, 62.5, 75],
      ['50', '62.5', '75'],
    ],
  ])('places %j', async (places, labels) => {
    const { wide, narrow } = chart(options({ points: points(places.map((x) => [x, 5 + x])) }));
    for (const spec of [wide, narrow]) expect(labelsOf(await svgOf(spec)).slice(0, labels.length)).toEqual(labels);
  });

  test('many blocks have whole numbers', async () => {
    const places = [...Array(40).keys()];
    for (const spec of Object.values(chart(options({ points: points(places.map((x) => [x, 1])) }))).slice(1)) {
      const labels = labelsOf(await svgOf(spec as Specification));
      expect(labels.slice(0, 3)).toEqual(['0', expect.stringMatching(/^\d+$/), expect.stringMatching(/^\d+$/)]);
    }
  });

  test.each([
    [[0.0001, 0.05], { upright: 320 }, [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05]],
    [[0.0001, 0.05], { across: 230 }, [0.0001, 0.001, 0.01]],
    [[50, 66], { upright: 320 }, [50, 52, 54, 56, 58, 60, 62, 64, 66]],
    [[2.1, 8.5], { upright: 320 }, [3, 4, 5, 6, 7, 8]],
    [[0.9, 1.1], { upright: 320 }, [0.9, 0.95, 1, 1.05, 1.1]],
  ] as [[number, number], Parameters<typeof logTicks>[1], number[]][])(
    'ticks of a logarithmic axis, %j',
    (ends, pixels, ticks) => {
      expect(logTicks(ends, pixels)).toEqual(ticks);
    },
  );

  test('every tick of a narrow logarithmic axis has its label', async () => {
    for (const kind of ['lines', 'dots'] as const)
      for (const most of [1.2, 3, 9, 40, 1e3, 1e6, 1e12]) {
        const { wide, narrow } = chart(
          options({ kind, logarithmic: true, points: points([[0, 2e-5], [1, 2e-5 * most]]) }), // biome-ignore format: a list
        );
        for (const spec of [wide, narrow]) {
          const labels = labelsOf(await svgOf(spec));
          expect(labels).not.toContain('');
          expect(labels.length - 2).toBeGreaterThanOrEqual(2);
        }
      }
  });
});

test.each([
  [9.9, 'end'],
  [1, 'start'],
])('the label of a level at %d of names’ axes stays in the drawing', async (level, anchor) => {
  const rule = { y: level, label: 'the dense level' };
  const { narrow } = chart(options({ kind: 'dots', rule, points: points([['a', 1], ['b', 10]]) })); // biome-ignore format: a list
  const svg = await svgOf(narrow);
  expect(svg).toMatch(new RegExp(`<text text-anchor="${anchor}"[^>]*>the dense level</text>`));
});

describe('a comparison’s page', () => {
  const cellOf = (title: string, meanError: number, refit: ComparisonCell['refit'] = 'none') =>
    ({ title, base: title.split(' ')[0], refit, pattern: '50 %', meanError, layers: [], perplexity: {}, tasks: {}, commands: [''], milliseconds: {}, nm: false }) as unknown as ComparisonCell; // biome-ignore format: one line
  const pageOf = (cells: ComparisonCell[]) =>
    comparisonPage(
      {
        ...{ cells, texts: [], tasks: [], failures: [], model: { folder: 'm', fingerprint: '' }, calibration: {} },
        dense: { perplexity: {}, tasks: {}, commands: [] },
      } as unknown as Comparison,
      '',
    ).summary;

  test('tells of refits only where there are some', () => {
    expect(pageOf([cellOf('MP', 1), cellOf('ALPS', 1, 'pcg')])).toMatch(/^2 methods at 50 %/);
    expect(pageOf([cellOf('MP', 1), cellOf('MP + refit', 1, 'pcg')])).toMatch(/^1 method with refits at 50 %/);
  });

  test('all that are the best as shown are marked', () => {
    const cells = [cellOf('A', 0.71401), cellOf('B', 0.9), cellOf('C', 0.714)];
    const table = (dense?: string) => gridOf('', cells, ({ meanError }) => meanError, (value) => value.toPrecision(3), dense); // biome-ignore format: one line
    expect(table().best).toEqual([[0, 1], [2, 1]]); // biome-ignore format: a list
    expect(table('0').best).toEqual([[1, 1], [3, 1]]); // biome-ignore format: a list
  });
});
