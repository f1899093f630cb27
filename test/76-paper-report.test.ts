import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { chromium } from 'playwright-core';
import { type PaperReport, reproducePaper } from '../src/compare/paper.js';
import { writePaperReport } from '../src/report/paper-report.js';
import { findBrowser } from './helpers/browser.js';

const model = fileURLToPath(new URL('../models/union-4m', import.meta.url));

let out: string;
let report: PaperReport;
beforeAll(async () => {
  out = await mkdtemp(join(tmpdir(), 'alps-paper-'));
  report = await reproducePaper({
    model,
    out,
    methods: ['mp', 'wanda', 'wanda+refit', 'alps'],
    sparsities: [0.5, 0.7],
    patterns: [{ keep: 2, of: 4 }],
    calibration: { text: join(model, 'calibration.txt.gz'), windows: 16, length: 128 },
    texts: [{ name: 'speeches', text: join(model, 'held-out.txt.gz') }],
    length: 128,
    windows: 8,
    refitSparsities: [0.5, 0.8],
  });
  await writePaperReport(report, out, 'alps paper');
});
afterAll(() => rm(out, { recursive: true, force: true }));

describe('the paper’s figures', () => {
  test('the support by iteration: ALPS settles, a small fixed ρ does not, a large one settles at a larger error', () => {
    const { layer, curves } = report.support;
    expect(layer).toBe('model.layers.0.self_attn.k_proj');
    const [published, ladder, small, large] = curves;
    const last = ({ points }: (typeof curves)[number]) => points.at(-1)!;
    expect(published!.points.map(({ iteration }) => iteration)).toEqual(
      Array.from({ length: published!.iterations }, (_, i) => i + 1),
    );
    expect(last(published!).rate).toBeLessThan(0.01);
    expect(last(small!).rate).toBeGreaterThan(0.05);
    expect(last(large!).rate).toBeLessThan(0.01);
    expect(last(published!).error).toBeLessThan(last(large!).error);
    expect(ladder!.finalError).toBeLessThan(last(large!).error);
    expect(small!.points).toHaveLength(100);
  });

  test('PCG is close to the exact refit on the widest layer', () => {
    expect(report.refit.layer).toBe('model.layers.0.mlp.down_proj');
    for (const { plainError, pcgError, backsolveError } of report.refit.rows) {
      expect(backsolveError).toBeLessThan(plainError);
      expect(pcgError / backsolveError).toBeLessThan(1.05);
      expect(pcgError).toBeGreaterThan(backsolveError * (1 - 1e-4));
    }
  });

  test('the tables of the figures', async () => {
    const support = (await readFile(join(out, 'support.csv'), 'utf8')).trim().split('\n');
    expect(support).toHaveLength(1 + report.support.curves.reduce((sum, { points }) => sum + points.length, 0));
    expect((await readFile(join(out, 'refit.csv'), 'utf8')).trim().split('\n')).toHaveLength(3);
  });
});

test('a calibration text that is there only once; times tell their device, shares are rounded for people', async () => {
  async function* once() {
    const said =
      'Fellow citizens of the Senate and of the House of Representatives, the state of the Union is strong. ';
    yield said.repeat(40);
  }
  const folder = join(out, 'once');
  const { comparison, support, refit } = await reproducePaper({
    ...{ model, out: folder, methods: ['mp'], sparsities: [0.5], texts: [], refitSparsities: [0.5] },
    calibration: { text: once(), windows: 2, length: 32 },
    supportSparsity: 0.57,
  });
  expect(support.curves[0]!.points.length).toBeGreaterThan(0);
  expect(refit.device).toBe(comparison.device);
  await writePaperReport({ comparison, support, refit: { ...refit, device: 'a device' } }, folder, 'alps paper');
  const html = await readFile(join(folder, 'report.html'), 'utf8');
  expect(html).toContain(', at 57 %. First: ');
  expect(html).toContain('Times are of the refit alone, on a device.');
});

test('a layer that is not there, a wrong sparsity: told first', async () => {
  const options = {
    model,
    out: join(out, 'no'),
    methods: ['mp'],
    sparsities: [0.5],
    calibration: { text: 'none.txt' },
    texts: [],
  };
  await expect(reproducePaper({ ...options, supportSparsity: 2 })).rejects.toMatchObject({
    message: expect.stringContaining('Expected a number from 0 to 1 for sparsity but received 2'),
  });
  for (const supportSparsity of [0, 0.99999, 1])
    await expect(reproducePaper({ ...options, supportSparsity })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(
        /^Expected a share that keeps some of the \d+ weights of model\.layers\.0\.self_attn\.k_proj, but not all, for supportSparsity/,
      ),
    });
  for (const [refitSparsities, what] of [
    [0.5, 'a list'],
    [[], 'at least one'],
  ])
    await expect(reproducePaper({ ...options, refitSparsities: refitSparsities as never })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(`Expected ${what} for refitSparsities`),
    });
  await expect(reproducePaper({ ...options, supportLayer: 'layers.9' })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining(
      'Expected a layer of the model, such as model.layers.0.self_attn.q_proj, for supportLayer',
    ),
  });
});

const browserPath = findBrowser();
(browserPath ? describe : describe.skip)('the report in a browser', () => {
  test.each([
    ['desktop, light', { width: 1100, height: 900 }, 'light'],
    ['phone, dark', { width: 390, height: 844 }, 'dark'],
  ] as const)('%s: charts are drawn, values are shown, nothing is asked for', async (_name, viewport, colorScheme) => {
    const browser = await chromium.launch({ executablePath: browserPath!, args: ['--no-sandbox'] });
    try {
      const page = await browser.newPage({ viewport, colorScheme });
      const [messages, requests]: [string[], string[]] = [[], []];
      page.on('console', (message) => messages.push(message.text()));
      page.on('pageerror', (error) => messages.push(error.message));
      page.on('request', (request) => requests.push(request.url()));
      const url = pathToFileURL(join(out, 'report.html')).href;
      await page.goto(url);
      // One chart of a pair is shown, with marks, axes' titles and a legend.
      const figures = page.locator('main > section > figure');
      const count = await figures.count();
      expect(count).toBe(2 + 4 + 2 + 1);
      for (let i = 0; i < count; i++) {
        const svg = figures.nth(i).locator('svg:visible');
        expect(await svg.count()).toBe(1);
        const box = (await svg.boundingBox())!;
        expect(box.width).toBeGreaterThan(200);
        expect((await svg.locator('.role-legend-label text').allTextContents()).join()).not.toContain('…');
        expect(box.x + box.width).toBeLessThanOrEqual(viewport.width);
        expect(await svg.locator('[data-tip]').count()).toBeGreaterThan(2);
        expect(await svg.locator('.role-axis-title text').count()).toBeGreaterThanOrEqual(1);
      }
      expect(await figures.nth(0).locator('svg:visible .role-legend-label text').allTextContents()).toEqual(
        expect.arrayContaining(['MP', 'Wanda', 'ALPS']),
      );
      // Values on hover.
      const mark = figures.nth(0).locator('svg:visible [data-tip*="ALPS at 70 %"]').first();
      await mark.scrollIntoViewIfNeeded();
      await mark.hover({ force: true });
      const alps = report.comparison.cells.find(({ method, pattern }) => method === 'alps' && pattern === '70 %')!;
      expect(await page.locator('#tip').textContent()).toContain(`ALPS at 70 %: ${alps.meanError.toPrecision(3)}`);
      expect(await page.locator('#tip').isVisible()).toBe(true);
      // The page itself does not scroll sideways, and its colours follow the scheme.
      expect(await page.evaluate('document.documentElement.scrollWidth <= innerWidth')).toBe(true);
      const background = await page.evaluate('getComputedStyle(document.body).backgroundColor');
      expect(background).toBe(colorScheme === 'dark' ? 'rgb(21, 23, 26)' : 'rgb(255, 255, 255)');
      expect(messages).toEqual([]);
      expect(requests.filter((request) => request !== url && !request.startsWith('data:'))).toEqual([]);
    } finally {
      await browser.close();
    }
  });
});
