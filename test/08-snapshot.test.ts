import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { searchAllocation } from '../src/allocation/search.js';
import { compare } from '../src/compare/compare.js';
import { reproducePaper } from '../src/compare/paper.js';
import { Device } from '../src/device/device.js';
import { evaluatePerplexity } from '../src/evaluate.js';
import { evaluateTasks } from '../src/evaluate-tasks.js';
import { generateText } from '../src/generate.js';
import { estimateLayerBytes, estimateModelBytes } from '../src/jobs/estimate.js';
import type { JobEvent } from '../src/jobs/events.js';
import { JobQueue } from '../src/jobs/job-queue.js';
import { prune } from '../src/prune.js';
import { pruneLayer } from '../src/pruning/prune-layer.js';
import { listInside, optionsInside, snapshot } from '../src/snapshot.js';
import { syntheticLayer } from './helpers/layers.js';

// Options are the caller's again as soon as a call has returned its promise.

const device = Device.open('cpu', { memoryLimit: (1 << 29) + 8 });
const path = (name: string) => fileURLToPath(new URL(name, import.meta.url));
const tiny = path('fixtures/models/llama-plain');
const words = path('../models/union-4m');
const { weight, gram, activations, shape } = syntheticLayer(8, 16);
const tokenIds = (windows = 3) =>
  Array.from({ length: windows }, (_, i) => Uint32Array.from({ length: 24 }, (_, j) => (i * 31 + j * 7) % 90));

let scratch: string;
let number = 0;
const folder = () => join(scratch, `${number++}`);
const ids = () => join(scratch, 'ids.json');
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'alps-options-'));
  await writeFile(ids(), JSON.stringify(tokenIds().map((one) => [...one])));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

/** The same options by getters of a prototype, each of which may be read once. */
function byGetters<T extends object>(options: T): T {
  const given = {};
  for (const [name, value] of Object.entries(options)) {
    let reads = 0;
    const get = () => {
      if (reads++ > 0) throw new Error(`${name} was read twice`);
      return value;
    };
    Object.defineProperty(given, name, { get });
  }
  return Object.create(given);
}

/** Makes options useless: all that they hold is gone, at every depth. */
function spoil(value: unknown): void {
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value) || value instanceof Device) return;
  for (const inside of Object.values(value)) spoil(inside);
  if (Array.isArray(value)) value.length = 0;
  else for (const name of Object.keys(value)) Object.assign(value, { [name]: 'spoilt' });
}

describe('snapshot', () => {
  const known = {
    shape: listInside(),
    pattern: optionsInside('pattern', { keep: true, of: true }),
    patterns: listInside(optionsInside('patterns', { keep: true })),
    weight: true,
  };

  test('what is inside is copied, typed arrays are not', () => {
    const given = { shape: [1, 2], pattern: { keep: 2, of: 4 }, patterns: [{ keep: 1 }], weight };
    const taken = snapshot(given, known);
    spoil(given);
    expect(taken).toEqual({ shape: [1, 2], pattern: { keep: 2, of: 4 }, patterns: [{ keep: 1 }], weight });
    expect(taken.weight).toBe(weight);
  });

  test('inherited ones and those of getters count, and are read once; undefined ones are left out', () => {
    const given = { shape: [1, 2], pattern: byGetters({ keep: 2, of: 4 }), patterns: undefined, weight };
    const taken = snapshot(byGetters<object>(given), known as never);
    expect(taken).toStrictEqual({ shape: [1, 2], pattern: { keep: 2, of: 4 }, weight });
  });
});

const layer = () => ({
  weight,
  gram,
  shape: [...shape] as [number, number],
  pattern: { keep: 2, of: 4 },
  schedule: 'alps' as const,
  metric: 'diagonal' as const,
  alpsSchedule: { maxIterations: 6 },
});
const model = () => ({
  model: tiny,
  out: folder(),
  pattern: { keep: 2, of: 4 },
  calibration: { tokenIds: tokenIds() },
  denseTarget: { strength: 0.5 },
});
const comparison = () => ({
  model: tiny,
  out: folder(),
  methods: ['mp', 'wanda'],
  sparsities: [0.5],
  patterns: [{ keep: 2, of: 4 }],
  calibration: { text: [ids()] },
  texts: [{ name: 'ids', text: [ids()] }],
  names: { calibration: ['a.json'], texts: { ids: 'b.json' } },
});
const numbersOf = ({ cells }: Awaited<ReturnType<typeof compare>>) =>
  cells.map(({ method, pattern, meanError, perplexity }) => ({ method, pattern, meanError, perplexity }));

/** Calls with options that are not touched, and what they give but for times and folders. */
const calls: [string, () => object, (options: never) => Promise<unknown>][] = [
  ['pruneLayer', () => ({ ...layer(), device }), async (options) => (await pruneLayer(options)).mask],
  [
    'a queue’s pruneLayer',
    layer,
    async (options) => {
      const queue = new JobQueue({ device, concurrency: 1 });
      return (await Promise.all([queue.run(() => 1), queue.pruneLayer(options)]))[1].mask;
    },
  ],
  ['prune', model, async (options) => (await prune(options)).layers],
  [
    'a queue’s prune',
    model,
    async (options) => {
      const queue = new JobQueue({ device, concurrency: 1 });
      return (await Promise.all([queue.run(() => 1), queue.prune(options)]))[1].layers;
    },
  ],
  ['estimateModelBytes', model, (options) => estimateModelBytes(options, device)],
  [
    'evaluatePerplexity',
    () => ({ model: tiny, text: [ids()], windows: 2 }),
    async (options) => (await evaluatePerplexity(options)).perplexity,
  ],
  [
    'evaluateTasks',
    () => ({ model: words, tasks: [{ task: 'piqa', file: path('fixtures/tasks/piqa.jsonl') }], limit: 2 }),
    async (options) => (await evaluateTasks(options)).map(({ task, items, acc }) => ({ task, items, acc })),
  ],
  [
    'generateText',
    () => ({ model: tiny, windows: 2, length: 20, prompts: { tokenIds: tokenIds(2).map((one) => one.slice(0, 4)) } }),
    async (options) => (await generateText(options)).hash,
  ],
  ['compare', comparison, async (options) => numbersOf(await compare(options))],
  [
    'reproducePaper',
    () => ({ ...comparison(), supportSparsity: 0.6, refitSparsities: [0.5] }),
    async (options) => {
      const { comparison: compared, support, refit } = await reproducePaper(options);
      return [numbersOf(compared), support, refit.rows.map(({ sparsity, pcgError }) => ({ sparsity, pcgError }))];
    },
  ],
  [
    'searchAllocation',
    () => ({
      model: tiny,
      work: folder(),
      method: 'magnitude',
      pattern: { keep: 2, of: 4 },
      calibration: { tokenIds: tokenIds(4) },
      evaluation: { tokenIds: tokenIds(4) },
      objective: 'kl',
    }),
    async (options) => (await searchAllocation(options)).layers,
  ],
];

describe.each(calls)('%s', (_, make, call) => {
  const withoutTimes = (value: unknown) =>
    JSON.parse(JSON.stringify(value), (key, inside) => (/milliseconds|time|phases/i.test(key) ? undefined : inside));
  let expected: unknown;
  beforeAll(async () => {
    expected = withoutTimes(await call(make() as never));
  });

  test('has options of its own once it is called', async () => {
    const options = make();
    const running = call(options as never);
    spoil(options);
    expect(withoutTimes(await running)).toEqual(expected);
  });

  test('takes them from getters and prototypes', async () => {
    const options = Object.entries(make()).map(([name, value]) => {
      const isPlain = Object.getPrototypeOf(value) === Object.prototype && name !== 'texts';
      return [name, isPlain ? byGetters(value as object) : value];
    });
    expect(withoutTimes(await call(byGetters(Object.fromEntries(options)) as never))).toEqual(expected);
  });
});

test('one object for many calls, changed between them', async () => {
  const queue = new JobQueue({ device, concurrency: 1 });
  const options = { weight, gram, shape, sparsity: 0, preset: 'balanced' as const };
  const jobs = [0.25, 0.5, 0.75].map((sparsity) => queue.pruneLayer(Object.assign(options, { sparsity })));
  expect((await Promise.all(jobs)).map(({ kept }) => kept)).toEqual([96, 64, 32]);

  const asked = { ...model(), pattern: undefined, method: 'wanda' as const, sparsity: 0, denseTarget: false };
  const runs = [0.25, 0.5, 0.75].map((sparsity) => prune(Object.assign(asked, { sparsity, out: folder() })));
  const models = [0.25, 0.5, 0.75].map((sparsity) => queue.prune(Object.assign(asked, { sparsity, out: folder() })));
  for (const reports of [await Promise.all(runs), await Promise.all(models)])
    expect(reports.map(({ pattern }) => pattern)).toEqual([{ sparsity: 0.25 }, { sparsity: 0.5 }, { sparsity: 0.75 }]);
});

test('what waits in a queue is what its bytes were estimated for', async () => {
  const queue = new JobQueue({ device, concurrency: 1, memoryBudget: estimateLayerBytes({ shape, sparsity: 0.5 }) });
  const options = { weight, gram, shape, sparsity: 0.5 };
  const jobs = [queue.run(() => 1), queue.pruneLayer(options)] as const;
  const large = syntheticLayer(64, 64);
  Object.assign(options, { weight: large.weight, gram: large.gram, shape: large.shape });
  expect((await jobs[1]).weight).toHaveLength(weight.length);
});

test('a job’s options by getters of a class', async () => {
  const queue = new JobQueue({ device, concurrency: 1 });
  const controller = new AbortController();
  const told: string[] = [];
  const { signal } = controller;
  const onEvent = ({ type, job: { name, key, priority } }: JobEvent) => told.push(`${type} ${name} ${key} ${priority}`);
  const started = queue.run(() => 1);
  const job = byGetters({ key: 'me', priority: 3, name: 'mine', bytes: 1e6, signal, onEvent });
  const stopped = queue.pruneLayer({ weight, gram, shape, sparsity: 0.5 }, job);
  controller.abort();
  await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' });
  expect(told).toEqual(['queued mine me 3', 'finished mine me 3']);
  await started;
});

test('a listener of a model is a method of its options', async () => {
  class Run {
    #heard = 0;
    onEvent() {
      this.#heard++;
    }
    get heard() {
      return this.#heard;
    }
  }
  await using queue = new JobQueue({ device });
  const run = Object.assign(new Run(), model());
  await queue.prune(run);
  expect(run.heard).toBeGreaterThan(2);
});

test('those of a layer that is read later', async () => {
  const queue = new JobQueue({ device });
  const read = async () => byGetters({ weight, activations, shape, sparsity: 0.5, preset: 'balanced' as const });
  expect((await queue.pruneLayer(read, { bytes: 1e6 })).kept).toBe(64);
});
