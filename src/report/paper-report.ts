import { patternTitle } from '../compare/method-spec.js';
import type { PaperReport } from '../compare/paper.js';
import { chart } from './charts.js';
import { comparisonCsvs, factsOf, writeReports } from './comparison-report.js';
import { costSection, errorSections, perplexitySections, taskSections } from './comparison-sections.js';
import { csv } from './csv.js';
import { type Page, renderPage, type Section } from './page.js';

/**
 * Writes report.json, report.csv, layers.csv, support.csv, refit.csv and report.html into a folder, which is created if needed; existing reports
 * are replaced.
 *
 * @param folder may be the `out` of {@link reproducePaper}
 * @param command shown in the report as the command that made it, such as an `alps paper` command line; it is not run
 * @throws AlpsError `FILE_SYSTEM` if a file cannot be written
 */
export async function writePaperReport(report: PaperReport, folder: string, command: string): Promise<void> {
  await writeReports(folder, {
    'report.json': `${JSON.stringify({ ...report, command }, null, 1)}\n`,
    ...comparisonCsvs(report.comparison),
    'support.csv': supportCsv(report),
    'refit.csv': refitCsv(report),
    'report.html': await renderPage(paperPage(report, command)),
  });
}

function supportCsv({ support }: PaperReport): string {
  const rows = support.curves.flatMap(({ title, points }) =>
    points.map(({ iteration, rho, rate, error }) => [title, iteration, rho, rate, error]),
  );
  return csv(['schedule', 'iteration', 'rho', 'share_of_support_changed', 'relative_error_with_ridge'], rows);
}

function refitCsv({ refit }: PaperReport): string {
  const rows = refit.rows.map((row) => [
    row.sparsity,
    row.plainError,
    row.pcgError,
    row.backsolveError,
    row.pcgSeconds,
    row.backsolveSeconds,
  ]);
  return csv(['sparsity', 'error_magnitude', 'error_pcg', 'error_backsolve', 'seconds_pcg', 'seconds_backsolve'], rows);
}

function paperPage(report: PaperReport, command: string): Page {
  const { comparison } = report;
  const name = comparison.model.folder.split(/[\\/]/).filter(Boolean).pop() ?? comparison.model.folder;
  return {
    title: `${name}: the figures and tables of the ALPS paper`,
    summary:
      'What “ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models” (NeurIPS 2024) shows, measured on this ' +
      'model: errors of layers and perplexities by method and sparsity, the support by iteration, conjugate gradients against the exact refit.',
    facts: factsOf(comparison, command),
    sections: [
      ...errorSections(comparison),
      supportSection(report, command),
      refitSection(report, command),
      ...perplexitySections(comparison),
      ...taskSections(comparison),
      costSection(comparison),
    ],
    data: report,
  };
}

const shown = (value: number) => value.toPrecision(3);

function supportSection({ support }: PaperReport, command: string): Section {
  const { layer, shape, sparsity, curves } = support;
  const series = curves.map(({ title }) => title);
  const percent = (rate: number) => `${(rate * 100).toPrecision(2)} %`;
  const first = (title: string) => {
    const { points } = curves.find((curve) => curve.title === title)!;
    const settled = points.findIndex((_, i) => points.slice(i).every(({ rate }) => rate < 0.001));
    return settled < 0 ? 'never' : String(points[settled]!.iteration);
  };
  return {
    heading: 'The support by iteration',
    text: [
      `${layer}, ${shape.join(' × ')}, at ${patternTitle({ sparsity })}. First: entries of the support that differ from the iteration before, as a share ` +
        'of the weights kept. Second: the relative error (with ridge) that stopping there would give, before the refit.',
    ],
    charts: [
      chart({
        kind: 'lines',
        title: 'Rate of change of the support',
        x: 'Iteration',
        y: 'Changed entries, % of the support',
        series,
        markEvery: 5,
        points: curves.flatMap(({ title, points }) =>
          points.map(({ iteration, rate, rho }) => ({
            x: iteration,
            y: rate * 100,
            series: title,
            tip: `${title}, iteration ${iteration}, ρ ${shown(rho)}: ${percent(rate)} changed`,
          })),
        ),
      }),
      chart({
        kind: 'lines',
        title: 'Error by iteration',
        x: 'Iteration',
        y: 'Relative error, with ridge',
        series,
        logarithmic: true,
        markEvery: 5,
        format: '~g',
        points: curves.flatMap(({ title, points }) =>
          points.map(({ iteration, error }) => ({
            x: iteration,
            y: error,
            series: title,
            tip: `${title}, iteration ${iteration}: error ${shown(error)}`,
          })),
        ),
      }),
    ],
    tables: [
      {
        caption: 'Schedules',
        header: ['Schedule', 'iterations', 'rate below 0.1 % from', 'error before refit', 'error after refit'],
        rows: curves.map(({ title, iterations, points, finalError }) => [
          title,
          String(iterations),
          first(title),
          shown(points.at(-1)!.error),
          shown(finalError),
        ]),
      },
    ],
    commands: [command],
  };
}

function refitSection({ refit }: PaperReport, command: string): Section {
  const { layer, shape, rows, iterations, device } = refit;
  const x = 'Sparsity (%)';
  const at = (sparsity: number) => patternTitle({ sparsity });
  const series = ['MP, as it is', `PCG, ${iterations} iterations`, 'backsolve'];
  return {
    heading: 'Conjugate gradients against backsolve',
    text: [
      `${layer}, ${shape.join(' × ')}: the weights on the support of magnitude pruning, refitted by ${iterations} iterations of the conjugate ` +
        'gradient on all outputs at once, and exactly by one dense solve an output. ' +
        `Times are of the refit alone, on ${device}.`,
    ],
    charts: [
      chart({
        kind: 'lines',
        title: 'Time of the refit',
        x,
        y: 'Seconds',
        series: series.slice(1),
        logarithmic: true,
        format: '~g',
        points: rows.flatMap(({ sparsity, pcgSeconds, backsolveSeconds }) => [
          {
            x: sparsity * 100,
            y: pcgSeconds,
            series: series[1]!,
            tip: `PCG at ${at(sparsity)}: ${shown(pcgSeconds)} s`,
          },
          {
            x: sparsity * 100,
            y: backsolveSeconds,
            series: series[2]!,
            tip: `Backsolve at ${at(sparsity)}: ${shown(backsolveSeconds)} s`,
          },
        ]),
      }),
      chart({
        kind: 'lines',
        title: 'Error after the refit',
        x,
        y: 'Relative error, with ridge',
        series,
        logarithmic: true,
        format: '~g',
        points: rows.flatMap(({ sparsity, plainError, pcgError, backsolveError }) =>
          [plainError, pcgError, backsolveError].map((y, i) => ({
            x: sparsity * 100,
            y,
            series: series[i]!,
            tip: `${series[i]} at ${at(sparsity)}: ${shown(y)}`,
          })),
        ),
      }),
    ],
    tables: [
      {
        caption: 'Time and error',
        header: [
          'Sparsity',
          'PCG, s',
          'backsolve, s',
          'speed-up',
          'error MP',
          'error PCG',
          'error backsolve',
          'PCG / backsolve',
        ],
        rows: rows.map((row) => [
          at(row.sparsity),
          shown(row.pcgSeconds),
          shown(row.backsolveSeconds),
          `${(row.backsolveSeconds / row.pcgSeconds).toPrecision(3)} ×`,
          shown(row.plainError),
          shown(row.pcgError),
          shown(row.backsolveError),
          (row.pcgError / row.backsolveError).toFixed(4),
        ]),
      },
    ],
    commands: [command],
  };
}
