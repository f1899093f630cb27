import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { compare } from '../src/compare/compare.js';
import type { CompareEvent, CompareOptions, Comparison } from '../src/compare/comparison.js';
import { parseMethods } from '../src/compare/method-spec.js';
import { evaluatePerplexity } from '../src/evaluate.js';
import { prune } from '../src/prune.js';
import { writeComparison } from '../src/report/comparison-report.js';
import { cancellingModel } from './helpers/cancelling-model.js';

const model = fileURLToPath(new URL('../models/union-4m', import.meta.url));
const tasks = fileURLToPath(new URL('fixtures/tasks/', import.meta.url));
const heldOut = join(model, 'held-out.txt.gz');
const calibration = { text: join(model, 'calibration.txt.gz'), windows: 8, length: 128 };

let out: string;
beforeAll(async () => {
  out = await mkdtemp(join(tmpdir(), 'alps-compare-'));
});
afterAll(() => rm(out, { recursive: true, force: true }));

const events: CompareEvent[] = [];
const options = (change: Partial<CompareOptions> = {}): CompareOptions => ({
  model,
  out,
  methods: ['mp', 'wanda', 'wanda+refit', 'dsnot', 'sparsegpt', 'alps', 'alps-published'],
  sparsities: [0.5, 0.7],
  patterns: [{ keep: 2, of: 4 }],
  calibration,
  texts: [{ name: 'speeches', text: heldOut }],
  length: 128,
  windows: 12,
  tasks: [{ task: 'piqa', file: join(tasks, 'piqa.jsonl') }],
  onEvent: (event) => events.push(event),
  ...change,
});

const cellsOf = (stored: boolean) => events.filter((event) => event.type === 'cell' && event.stored === stored);

describe('compare', () => {
  let report: Comparison;

  test('a run that is stopped keeps its finished cells and nothing else', async () => {
    const controller = new AbortController();
    const onEvent = (event: CompareEvent) => event.type === 'cell' && event.done === 4 && controller.abort();
    await expect(compare(options({ signal: controller.signal, onEvent }))).rejects.toMatchObject({ code: 'ABORTED' });
    const names = await readdir(join(out, 'cells'));
    expect(names).toHaveLength(4 + 1); // and the dense model's
    expect(names.filter((name) => name.includes('partial'))).toEqual([]);
  });

  test('run again it computes only what is missing', async () => {
    report = await compare(options());
    expect(cellsOf(true)).toHaveLength(4);
    expect(cellsOf(false)).toHaveLength(3 * 7 - 4);
    // Within a cell progress goes on to its end.
    let share = 0;
    for (const event of events) {
      if (event.type === 'cell') {
        if (!event.stored) expect(share).toBe(1);
        share = 0;
      }
      if (event.type !== 'progress') continue;
      expect(event.share).toBeGreaterThanOrEqual(share);
      share = event.share;
    }
    events.length = 0;
    expect(await compare(options())).toEqual(report);
    expect(cellsOf(false)).toEqual([]);
  });

  test('every cell is there; ALPS loses less than SparseGPT, that less than Wanda', () => {
    expect(report.cells).toHaveLength(21);
    const at = (method: string, pattern: string) =>
      report.cells.find((cell) => cell.method === method && cell.pattern === pattern)!;
    for (const pattern of ['50 %', '70 %', '2:4']) {
      const errors = ['alps', 'sparsegpt', 'wanda'].map((method) => at(method, pattern).meanError);
      expect(errors[0]!).toBeLessThan(errors[1]!);
      expect(errors[1]!).toBeLessThan(errors[2]!);
      expect(at('wanda+refit', pattern).meanError).toBeLessThan(at('wanda', pattern).meanError);
    }
    for (const cell of report.cells) {
      expect(cell.layers).toHaveLength(5 * 7);
      expect(cell.perplexity.speeches).toBeGreaterThan(report.dense.perplexity.speeches!);
      expect(cell.tasks.piqa!.items).toBe(4);
      expect(cell.peakBytes).toBeGreaterThan(1e6);
    }
  });

  test('a cell’s numbers are those of its own commands', async () => {
    const cell = report.cells.find(({ method, pattern }) => method === 'wanda+refit' && pattern === '70 %')!;
    expect(cell.commands[0]).toContain('--sparsity 0.7 --method wanda --refit pcg');
    expect(cell.commands[0]).toContain(
      `--precision ${report.precision} --calibration ${calibration.text} --windows 8 `,
    );
    const folder = join(out, 'again');
    const { precision } = report;
    const again = await prune({ model, out: folder, sparsity: 0.7, method: 'wanda', refit: 'pcg', calibration });
    expect(again.meanError).toBe(cell.meanError);
    const { perplexity } = await evaluatePerplexity({
      model: folder,
      text: heldOut,
      length: 128,
      windows: 12,
      precision,
    });
    expect(perplexity).toBe(cell.perplexity.speeches);
    await rm(folder, { recursive: true });
  });

  test('other calibration tokens, another method’s options: other cells', async () => {
    events.length = 0;
    const change = { methods: ['wanda'], sparsities: [0.5], patterns: [], calibration: { ...calibration, seed: 1 } };
    await compare(options(change));
    expect(cellsOf(false)).toHaveLength(1);
  });

  test('times of another run’s device are told as such', async () => {
    const folder = join(out, 'devices');
    const change = { out: folder, methods: ['mp'], sparsities: [0.5], patterns: [], tasks: [] };
    const two = await compare(options({ ...change, threads: 2 }));
    events.length = 0;
    const one = await compare(options({ ...change, methods: ['mp', 'wanda'], threads: 1 }));
    expect(cellsOf(true)).toHaveLength(1);
    expect(one.device).not.toBe(two.device);
    expect([one.dense, ...one.cells].map(({ device }) => device)).toEqual([two.device, two.device, one.device]);
    await writeComparison(one, folder, 'alps compare');
    const html = await readFile(join(folder, 'report.html'), 'utf8');
    expect(html).toContain(`${two.device}; or on ${one.device}; products in `);
    expect(html).toContain(`Mean over the patterns, on ${two.device} (1), ${one.device} (2). `);
    expect(html).toMatch(/<td>MP \(1\)<\/td>/);
    expect(html).toMatch(/<td>Wanda \(2\)<\/td>/);
    expect(await readFile(join(folder, 'report.csv'), 'utf8')).toMatch(/^[^\n]*,peak_tensor_bytes,device\n/);
  });

  test('the command of a mix with a short text asks for as many windows as were asked for', async () => {
    const ids = join(out, 'short.json');
    await writeFile(ids, JSON.stringify([1, 2].map((id) => Array.from({ length: 128 }, () => id))));
    const text = [ids, calibration.text];
    const mix = { text, shares: [1, 1], windows: 12, length: 128 };
    const change = { out: join(out, 'mix'), methods: ['mp'], sparsities: [0.5], patterns: [], tasks: [] };
    const report = await compare(options({ ...change, calibration: mix }));
    expect(report.calibration.windows).toBe(8);
    expect(report.cells[0]!.commands[0]).toContain(' --shares 1,1 --windows 12 --length 128');
  });

  test('windows that the model writes itself are written once, for all cells and the next run', async () => {
    const folder = join(out, 'own');
    const written = { ...calibration, windows: 3, ownWindows: 2, seed: 4 };
    const change = { out: folder, methods: ['mp', 'wanda'], sparsities: [0.5], patterns: [], tasks: [] };
    const writing = () => events.filter(({ type }) => type === 'generate').length;
    const controller = new AbortController();
    const stop = (event: CompareEvent) => event.type === 'generate' && event.share > 0.5 && controller.abort();
    await expect(
      compare(options({ ...change, calibration: written, signal: controller.signal, onEvent: stop })),
    ).rejects.toMatchObject({ code: 'ABORTED' });
    expect(await readdir(join(folder, 'cells'))).toEqual([]);

    events.length = 0;
    const first = await compare(options({ ...change, calibration: written }));
    expect(writing()).toBeGreaterThan(1);
    expect(first.calibration).toMatchObject({ windows: 5, ownWindows: 2, length: 128, tokens: 640, seed: 4 });
    const cell = first.cells.find(({ method }) => method === 'wanda')!;
    expect(cell.commands[0]).toContain(' --windows 3 --own-windows 2 --length 128 --seed 4');
    const pruned = join(out, 'own-again');
    const again = await prune({ model, out: pruned, sparsity: 0.5, method: 'wanda', calibration: written });
    expect(again.calibration!.hash).toBe(first.calibration.hash);
    expect(again.meanError).toBe(cell.meanError);
    await rm(pruned, { recursive: true });

    events.length = 0;
    const methods = ['mp', 'wanda', 'sparsegpt'];
    const second = await compare(options({ ...change, methods, calibration: written }));
    expect(writing()).toBe(0);
    expect(cellsOf(true)).toHaveLength(2);
    expect(cellsOf(false)).toHaveLength(1);
    expect(second.calibration).toEqual(first.calibration);
    await writeComparison(second, folder, 'alps compare');
    expect(await readFile(join(folder, 'report.html'), 'utf8')).toContain(
      '5 windows of 128 tokens, 2 of them the model’s own, seed 4',
    );

    await compare(options({ ...change, calibration: { ...written, seed: 5 } }));
    expect(writing()).toBeGreaterThan(1);
  });

  test('a cell without finite numbers is told and left out; the others and the report are there', async () => {
    const fragile = join(out, 'fragile');
    await cancellingModel(fragile);
    const folder = join(out, 'failing');
    const change = {
      ...{ model: fragile, out: folder, methods: ['mp'], sparsities: [0], patterns: [{ keep: 1, of: 2 }], tasks: [] },
      precision: 'float32',
    } as const;
    events.length = 0;
    const report = await compare(options(change));
    expect(report.cells.map(({ pattern }) => pattern)).toEqual(['0 %']);
    const [failed, ...others] = report.failures;
    expect(failed).toMatchObject({ method: 'mp', pattern: '1:2', code: 'NOT_FINITE' });
    const message = 'of the Gram matrix of model.layers.0.mlp.down_proj are NaN or infinite';
    expect(failed!.message).toContain(message);
    expect(failed!.commands[0]).toContain('--pattern 1:2 --method mp');
    expect(others).toEqual([]);
    const told = events.filter(({ type }) => type === 'failure');
    expect(told).toMatchObject([{ done: 2, cells: 2, method: 'mp', pattern: '1:2' }]);
    expect((await readdir(join(folder, 'cells'))).filter((name) => name.includes('partial'))).toEqual([]);

    events.length = 0;
    expect(await compare(options(change))).toEqual(report);
    expect(cellsOf(true)).toHaveLength(1);
    expect(events.filter(({ type }) => type === 'failure')).toHaveLength(1);
    await writeComparison(report, folder, 'alps compare');
    expect(await readFile(join(folder, 'report.html'), 'utf8')).toContain(`without numbers: ${failed!.message}`);
    expect(await readFile(join(folder, 'report.csv'), 'utf8')).toMatch(/^method.*\ndense,.*\nmp,0 %,[^\n]*\n$/s);
    await expect(compare(options({ ...change, sparsities: [] }))).rejects.toMatchObject({
      code: 'NOT_FINITE',
      message: `No cell gives numbers. ${failed!.title} at 1:2: ${failed!.message}`,
    });
  });

  test('so is one that is pruned, and whose perplexity is not finite then', async () => {
    const fragile = join(out, 'fragile-later');
    await cancellingModel(fragile, 200);
    const report = await compare(
      options({
        ...{ model: fragile, out: join(out, 'failing-later'), methods: ['mp', 'wanda'], sparsities: [0], tasks: [] },
        patterns: [{ keep: 1, of: 2 }],
        precision: 'float32',
        calibration: { tokenIds: [Array.from({ length: 128 }, (_, i) => i)] },
      }),
    );
    expect(report.cells.map(({ method, pattern }) => [method, pattern])).toEqual([
      ['mp', '0 %'],
      ['wanda', '0 %'],
    ]);
    const message = 'The model in PRUNED gives NaN or infinite outputs';
    expect(report.failures).toMatchObject([
      { method: 'mp', pattern: '1:2', message },
      { method: 'wanda', pattern: '1:2', message },
    ]);
  });

  test('the same tokens in shorter windows: other cells', async () => {
    events.length = 0;
    const tokens = { methods: ['mp'], sparsities: [0.5], patterns: [], tasks: [] };
    const shapes = [128, 64].map((length) => ({
      length,
      windows: 512 / length,
      calibration: { ...calibration, length },
    }));
    const [long, short] = [
      await compare(options({ ...tokens, ...shapes[0] })),
      await compare(options({ ...tokens, ...shapes[1] })),
    ];
    expect(short!.texts[0]!.hash).toBe(long!.texts[0]!.hash);
    expect(cellsOf(true)).toEqual([]);
    expect(short!.dense.perplexity.speeches).not.toBe(long!.dense.perplexity.speeches);
  });

  test('reports: JSON, CSV and one HTML file that asks for nothing', async () => {
    const folder = join(out, 'report');
    await writeComparison(report, folder, 'alps compare <&>');
    expect(JSON.parse(await readFile(join(folder, 'report.json'), 'utf8'))).toMatchObject({ cells: report.cells });
    const [header, dense, ...rows] = (await readFile(join(folder, 'report.csv'), 'utf8')).trim().split('\n');
    expect(header).toMatch(/^method,pattern,sparsity,mean_relative_error,perplexity_speeches,/);
    expect(header).toMatch(/,piqa_acc,piqa_acc_norm$/);
    expect(dense).toMatch(/^dense,/);
    expect((await readdir(folder)).sort()).toEqual(['layers.csv', 'report.csv', 'report.html', 'report.json']);
    expect(rows).toHaveLength(21);
    const layers = (await readFile(join(folder, 'layers.csv'), 'utf8')).trim().split('\n');
    expect(layers).toHaveLength(1 + 21 * 35);
    const html = await readFile(join(folder, 'report.html'), 'utf8');
    expect(html).toContain('alps compare &#60;&#38;&#62;');
    expect(html.match(/(?:src|href)="(?!data:)[^"]*"/g)).toBeNull();
    for (const cell of report.cells)
      expect(html).toContain(`${cell.title} at ${cell.pattern}: ${cell.perplexity.speeches!.toFixed(2)}`);
  });

  test.each<[string, Partial<CompareOptions>, string]>([
    ['an unknown method', { methods: ['best'] }, 'Expected one of mp, mp-row, wanda, dsnot'],
    ['an unknown suffix', { methods: ['wanda+tune'] }, 'optionally with +refit or +backsolve appended, for methods'],
    ['a method twice', { methods: ['mp', 'mp'] }, 'Expected each method once for methods'],
    ['no pattern', { sparsities: [], patterns: [] }, 'Expected at least one for sparsities and patterns'],
    ['a wrong sparsity', { sparsities: [50] }, 'Expected a number from 0 to 1 for sparsity'],
    [
      'two texts of one name',
      { texts: [1, 2].map(() => ({ name: 'a', text: heldOut })) },
      'a different name for each text',
    ],
    ['a group that does not divide a width', { patterns: [{ keep: 3, of: 7 }] }, 'Expected a width that 7 divides'],
    ['a sparsity twice', { sparsities: [0.5, 0.5] }, 'Expected each one once for sparsities and patterns'],
    [
      'a task twice',
      { tasks: [1, 2].map((i) => ({ task: 'piqa', file: `${i}` })) },
      'Expected each one once for tasks',
    ],
    ['a wrong propagation', { propagation: 'all' as never }, '"sequential" or "block" for propagation'],
    ['a wrong precision', { precision: 'x' as never }, 'for precision but received "x"'],
    ['no texts', { texts: undefined as never }, 'Expected a list for texts'],
    ['a text that is none', { texts: [null as never] }, 'Expected an object for texts'],
    ['no calibration', { calibration: undefined as never }, 'Expected an object for calibration'],
    ['an output inside the model', { out: join(model, 'no', 'comparison') }, 'must not be the model folder'],
    ['sparsities that are no list', { sparsities: 0.5 as never }, 'Expected a list for sparsities'],
    ['no listener', { onEvent: 5 as never }, 'Expected a function for onEvent'],
    ...[1, '', undefined].map((name): [string, Partial<CompareOptions>, string] => [
      `${JSON.stringify(name)} for a text’s name`,
      { texts: [{ name: name as never, text: heldOut }] },
      'Expected a text that is not empty for texts.name',
    ]),
    ['a task without a file', { tasks: [{ task: 'piqa' } as never] }, 'Expected the path of a file for tasks.file'],
    ['an unknown task', { tasks: [{ task: 'x', file: 'y' }] }, 'for a task but received "x"'],
    ['no windows', { windows: 0 }, 'at least 1 for windows'],
    ['a window of one token', { length: 1 }, 'at least 2 for length'],
    [
      'a wrong protocol',
      { texts: [{ name: 'a', text: heldOut, protocol: 'wiki' as never }] },
      'for protocol but received "wiki"',
    ],
    ...Object.entries({ windows: 0, length: 1, seed: 2 ** 32, maxTokens: 0, ownWindows: -1 }).map(
      ([name, value]): [string, Partial<CompareOptions>, string] => [
        `${value} for calibration.${name}`,
        { calibration: { ...options({}).calibration, [name]: value } },
        `${name} but received ${value}`,
      ],
    ),
  ])('%s is refused before anything is told', async (_name, change, message) => {
    events.length = 0;
    await expect(compare(options(change))).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(message),
    });
    expect(events).toEqual([]);
  });
});

test('a task’s file is read before the dense model is evaluated', async () => {
  events.length = 0;
  const file = join(out, 'no-goal.jsonl');
  await writeFile(file, '{"label": 0}');
  await expect(compare(options({ out: join(out, 'early'), tasks: [{ task: 'piqa', file }] }))).rejects.toMatchObject({
    code: 'INVALID_TEXT',
  });
  expect(events.filter(({ type }) => type !== 'start')).toEqual([]);
});

test('method names: what they stand for', () => {
  const [plain, refitted, exact, published] = parseMethods([
    'sparsegpt',
    'mp+refit',
    'wanda+backsolve',
    'alps-published',
  ]);
  expect(plain).toMatchObject({ title: 'SparseGPT', refit: 'none', flags: '--method sparsegpt' });
  expect(refitted).toMatchObject({ title: 'MP + refit', base: 'MP', refit: 'pcg', flags: '--method mp --refit pcg' });
  expect(exact!.options).toEqual({ method: 'wanda', refit: 'backsolve' });
  expect(published!.options).toMatchObject({ schedule: 'alps', metric: 'diagonal', propagation: 'block' });
});

test.each(['__proto__', 'constructor'])('a text named %s is one as any other', async (name) => {
  const folder = join(out, name);
  const texts = [{ name, text: heldOut }];
  const small = {
    methods: ['mp'],
    sparsities: [0.5],
    patterns: [],
    tasks: [],
    length: 32,
    windows: 2,
    names: { texts: {} },
  };
  const report = await compare(options({ ...small, out: folder, texts }));
  expect(Object.keys(report.dense.perplexity)).toEqual([name]);
  expect(Object.entries(report.cells[0]!.perplexity)).toEqual([[name, expect.any(Number)]]);
  expect(report.dense.commands[0]).toContain(`--text ${heldOut} `);
  await writeComparison(report, folder, 'alps compare');
  expect(await readFile(join(folder, 'report.html'), 'utf8')).toContain(`Perplexity on ${name}`);
  expect(await compare(options({ ...small, out: folder, texts }))).toEqual(report);
});
