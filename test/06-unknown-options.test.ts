import { searchAllocation } from '../src/allocation/search.js';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { SafetensorsFile } from '../src/checkpoint/safetensors.js';
import { compare } from '../src/compare/compare.js';
import { reproducePaper } from '../src/compare/paper.js';
import { Device, type DeviceOptions } from '../src/device/device.js';
import { evaluatePerplexity } from '../src/evaluate.js';
import { evaluateTasks } from '../src/evaluate-tasks.js';
import { generateText } from '../src/generate.js';
import { inspectModel } from '../src/inspect.js';
import { estimateLayerBytes, estimateModelBytes } from '../src/jobs/estimate.js';
import { JobQueue } from '../src/jobs/job-queue.js';
import type { JobQueueOptions } from '../src/jobs/options.js';
import { type PruneOptions, prune } from '../src/prune.js';
import { type PruneLayerOptions, pruneLayer } from '../src/pruning/prune-layer.js';
import { syntheticLayer } from './helpers/layers.js';

const { weight, gram, shape } = syntheticLayer(12, 8);
const device = Device.open('cpu');
const layer = { weight, gram, shape, sparsity: 0.5, device } as const;
const model = { model: 'no such model', out: 'out', sparsity: 0.5, calibration: { text: ['words'] } };
const comparison = {
  model: 'no such model',
  out: 'out',
  methods: ['mp'],
  sparsities: [0.5],
  calibration: { text: 'a.txt' },
  texts: [{ name: 'a', text: 'a.txt' }],
};
const { out: _out, ...searched } = { ...model, work: 'work' };
const evaluated = { model: 'no such model', text: 'a.txt' };
const tasks = { model: 'no such model', tasks: [{ task: 'piqa', file: 'a.jsonl' }] };

/** What a caller without types may give. */
const loosely = <T>(options: T, more: object): T => ({ ...options, ...more });

describe('an option that is not known is refused, whatever the call', () => {
  const queue = new JobQueue({ device });
  afterAll(() => queue.close());

  test.each<[string, (more: object) => unknown]>([
    ['pruneLayer', (more) => pruneLayer(loosely<PruneLayerOptions>(layer, more))],
    ['prune', (more) => prune(loosely<PruneOptions>(model, more))],
    ['compare', (more) => compare(loosely(comparison, more))],
    ['reproducePaper', (more) => reproducePaper(loosely(comparison, more))],
    ['searchAllocation', (more) => searchAllocation(loosely(searched, more))],
    ['evaluatePerplexity', (more) => evaluatePerplexity(loosely(evaluated, more))],
    ['evaluateTasks', (more) => evaluateTasks(loosely(tasks, more))],
    ['generateText', (more) => generateText(loosely({ model: 'no such model' }, more))],
    ['inspectModel', (more) => inspectModel('no such model', more)],
    ['Checkpoint.open', (more) => Checkpoint.open('no such model', more)],
    ['SafetensorsFile.open', (more) => SafetensorsFile.open('no such file', more)],
    ['estimateLayerBytes', (more) => estimateLayerBytes(loosely(layer, more))],
    ['estimateModelBytes', (more) => estimateModelBytes(loosely<PruneOptions>(model, more), device)],
    ['Device.open', (more) => Device.open('cpu', loosely<DeviceOptions>({ threads: 1 }, more))],
    ['a queue', (more) => new JobQueue(loosely<JobQueueOptions>({ device }, more))],
    ['a queue’s ready', (more) => queue.ready(more)],
    ['a queue’s close', (more) => queue.close(more)],
    ['a job', (more) => queue.run(() => 1, more)],
  ])('%s', async (_, call) => {
    await expect(async () => call({ sparsty: 0.7 })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(/^Unknown option "sparsty"( of job)?; the options are [a-zA-Z, ]+$/),
    });
  });

  test.each<[string, string, () => unknown]>([
    ['dsnot', 'cycles', () => pruneLayer({ ...layer, dsnot: loosely({}, { cycles: 3 }) })],
    ['alpsSchedule', 'rho', () => pruneLayer({ ...layer, alpsSchedule: loosely({}, { rho: 3 }) })],
    ['pattern', 'n', () => pruneLayer({ ...layer, sparsity: undefined, pattern: { keep: 2, of: 4, n: 2 } } as never)],
    ['calibration', 'tokens', () => prune({ ...model, calibration: loosely(model.calibration, { tokens: 9 }) })],
    ['denseTarget', 'alpha', () => prune({ ...model, denseTarget: loosely({}, { alpha: 1 }) })],
    ['prompts', 'windows', () => generateText({ model: 'm', prompts: loosely({ text: 'a.txt' }, { windows: 2 }) })],
    ['evaluation', 'text2', () => searchAllocation({ ...searched, evaluation: loosely({}, { text2: 'a' }) })],
    ['texts', 'file', () => compare({ ...comparison, texts: [{ name: 'a', text: 'a.txt', file: 'b' }] } as never)],
    ['tasks', 'limit', () => evaluateTasks({ ...tasks, tasks: [{ task: 'piqa', file: 'a', limit: 1 }] } as never)],
  ])('inside %s', async (where, name, call) => {
    await expect(async () => call()).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(`Unknown option "${name}" of ${where}; the options are `),
    });
  });

  test('what the queue gives a job itself', async () => {
    const { device: _, ...plain } = layer;
    for (const name of ['device', 'signal'])
      await expect(queue.pruneLayer(loosely(plain, { [name]: 1 }))).rejects.toThrow(`Unknown option "${name}"`);
    for (const name of ['device', 'signal', 'threads', 'memoryLimit'])
      await expect(queue.prune(loosely(model, { [name]: 1 }))).rejects.toThrow(`Unknown option "${name}"`);
  });

  test('one that is undefined is none', async () => {
    const { kept } = await pruneLayer(loosely(layer, { sparsty: undefined }));
    expect(kept).toBe(48);
    const alpsSchedule = { initialRho: undefined } as never;
    expect((await pruneLayer({ ...layer, schedule: 'alps', metric: 'diagonal', alpsSchedule })).kept).toBe(48);
  });
});

test.each<[string, object]>([
  ['overwrite', model],
  ['resume', model],
  ['restart', model],
  ['finalNorm', model],
  ['method', model],
  ['propagation', comparison],
  ['tasks', comparison],
  ['names', comparison],
  ['onEvent', searched],
  ['signal', {}],
])('null is no %s', async (name, options) => {
  const given = loosely(options, { [name]: null });
  const call = () => {
    if (options === model) return prune(given as PruneOptions);
    if (options === comparison) return compare(given as typeof comparison);
    return options === searched ? searchAllocation(given as typeof searched) : inspectModel('no such model', given);
  };
  await expect(call()).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining(`for ${name} but received null`),
  });
});
