import { spawnSync } from 'node:child_process';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readAllocation } from '../src/allocation/allocation-file.js';
import { searchAllocation } from '../src/allocation/search.js';
import type {
  AllocationSearch,
  AllocationSearchEvent,
  AllocationSearchOptions,
} from '../src/allocation/search-options.js';
import { logSensitivities, nextGain, sparsitiesAt, type Unit, type UnitSensitivity } from '../src/allocation/units.js';
import { type CalibrationOptions, loadCalibration } from '../src/calibration/calibration.js';
import { join as joined } from '../src/calibration/windows.js';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { SafetensorsFile, writeSafetensors } from '../src/checkpoint/safetensors.js';
import { Device } from '../src/device/device.js';
import type { Stream } from '../src/device/stream.js';
import { evaluatePerplexity } from '../src/evaluate.js';
import { meanDivergences, runBehind } from '../src/evaluation/divergence.js';
import { Activations, type Windows } from '../src/model/block-run.js';
import { DecoderModel, readArchitecture } from '../src/model/decoder.js';
import { eachLogits, rowsAtOnce } from '../src/model/head.js';
import { titleOf } from '../src/model/shapes.js';
import { prune } from '../src/prune.js';
import { logSoftmax } from './helpers/log-softmax.js';

const folder = (path: string) => fileURLToPath(new URL(`../${path}`, import.meta.url));
const model = folder('models/union-4m');
const calibration = { text: join(model, 'calibration.txt.gz'), windows: 4, length: 64 };
const wanda = { model, calibration, method: 'wanda', sparsity: 0.6, comparisonGroup: 'layer' } as const;
const device = Device.open('cpu');

let scratch: string;
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'alps-search-'));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));
afterEach(() => expect(device.info().memoryUsed).toBe(0));

const at = (name: string) => join(scratch, name);
const search = (name: string, options: Partial<AllocationSearchOptions> = {}) =>
  searchAllocation({ ...wanda, device, work: at(name), ...options });
/** A tiny model of two blocks, for what has to be done again and again. */
const small: Partial<AllocationSearchOptions> = {
  model: folder('test/fixtures/models/llama-plain'),
  calibration: { tokenIds: windowsOfIds(6) },
  objective: 'kl', // its weights are random: text means nothing to it
};

function windowsOfIds(windows: number): number[][] {
  return Array.from({ length: windows }, (_, w) => Array.from({ length: 32 }, (_, i) => (w * 37 + i * i * 11) % 90));
}

describe('the rule', () => {
  const measured = (...rows: [weights: number, sensitivity: number][]): UnitSensitivity[] =>
    rows.map(([weights, sensitivity], block) => ({
      block,
      layers: [],
      weights,
      sensitivity,
      divergence: weights * sensitivity,
    }));

  test('logs of sensitivities, centred by weights', () => {
    const logs = logSensitivities(measured([10, 1], [30, 5], [10, 3]));
    const mean = (30 * Math.log(5) + 10 * Math.log(3)) / 50;
    for (const [i, log] of [0, Math.log(5), Math.log(3)].entries()) expect(logs[i]).toBeCloseTo(log - mean, 12);
  });

  test('none counts less than a hundredth of the model’s', () => {
    const [a, b, c] = logSensitivities(measured([1, 0], [1, 8], [2, 4])) as [number, number, number];
    expect(b - a).toBeCloseTo(Math.log(200), 12);
    expect(b - c).toBeCloseTo(Math.log(2), 12);
  });

  test('where nothing diverges, nothing is known', () => {
    expect(logSensitivities(measured([1, 0], [5, 0]))).toEqual([0, 0]);
  });

  test('a unit’s layers get the sparsity less gain times log, at most 0.2 from the mean and at most 0.99', () => {
    const units: Unit[] = ['a', 'b', 'c'].map((name) => ({ block: 0, layers: [name], weights: 1 }));
    const all = sparsitiesAt(0.1, 0.7, [{ ...units[0]!, layers: ['a', 'a2'] }, ...units.slice(1)], [1, -0.5, -3]);
    expect(all.a).toBeCloseTo(0.6, 12);
    expect(all.a2).toBe(all.a);
    expect(all.b).toBeCloseTo(0.75, 12);
    expect(all.c).toBeCloseTo(0.9, 12);
    expect(sparsitiesAt(0.1, 0.95, units, [0, 0, -3]).c).toBe(0.99);
    expect(sparsitiesAt(0.1, 0.1, units, [3, 0, 0]).a).toBe(0);
    expect(sparsitiesAt(0, 0.7, units, [1, 2, 3])).toEqual({ a: 0.7, b: 0.7, c: 0.7 });
  });

  test.each<[string, (gain: number) => number, number[]]>([
    ['upwards while it falls', (gain) => 3 - gain, [0.08, 0.16]],
    ['upwards, and worse there', (gain) => Math.abs(gain - 0.08), [0.08, 0.16]],
    ['downwards where the first is worse', (gain) => 1 + gain, [0.08, 0.04]],
    ['downwards where it is equal', () => 1, [0.08, 0.04]],
  ])('gains are tried %s', (_what, loss, expected) => {
    const losses = new Map([[0, loss(0)]]);
    const tried: number[] = [];
    for (let gain = nextGain(losses); gain !== undefined; gain = nextGain(losses)) {
      tried.push(gain);
      losses.set(gain, loss(gain));
    }
    expect(tried).toEqual(expected);
  });
});

describe('a search', () => {
  let found: AllocationSearch;
  const events: AllocationSearchEvent[] = [];
  beforeAll(async () => {
    found = await search('found', { onEvent: (event) => events.push(event) });
  });

  test('prunes and measures what it needs, and takes the best', async () => {
    expect(events.filter(({ type }) => type !== 'prune').map(({ type }) => type)).toEqual([
      ...['start', 'evaluation', 'candidate'],
      ...Array(5).fill('block'),
      ...['candidate', 'candidate', 'done'],
    ]);
    const pruned = events.filter((event) => event.type === 'prune' && event.event.type === 'done');
    expect(pruned).toHaveLength(4);
    expect(found).toMatchObject({ ended: 'done', pattern: { sparsity: 0.6 }, objective: 'crossEntropy' });
    expect(found.candidates.map(({ gain }) => gain).slice(0, 2)).toEqual([0, 0.08]);
    expect(found.gain).toBe(found.candidates.reduce((a, b) => (b.loss < a.loss ? b : a)).gain);
    expect(found.sensitivities.flatMap(({ layers }) => layers)).toEqual(Object.keys(found.layers));
    expect(found.sensitivities.map(({ block }) => block)).toEqual([...Array(35).keys()].map((i) => Math.floor(i / 7)));
    expect(await readdir(at('found'))).toEqual(['search.json']);
  });

  test('prune takes the result: the total is exact, and more sensitive layers keep more', async () => {
    expect(found.gain).toBeGreaterThan(0);
    const even = await prune({ ...wanda, out: at('even') });
    const { layers } = await prune({ ...wanda, out: at('pruned'), allocation: found.layers });
    const total = (all: { kept: number }[]) => all.reduce((sum, { kept }) => sum + kept, 0);
    expect(total(layers)).toBe(total(even.layers));
    const logs = logSensitivities(found.sensitivities);
    const units = found.sensitivities.map((unit, i) => ({
      log: logs[i]!,
      sparsity: layers.find(({ name }) => name === unit.layers[0])!.sparsity,
    }));
    units.sort((a, b) => a.log - b.log);
    for (const [i, { sparsity }] of units.slice(1).entries()) expect(sparsity).toBeLessThan(units[i]!.sparsity + 1e-4); // a layer has whole weights
    expect(units[0]!.sparsity - units.at(-1)!.sparsity).toBeGreaterThan(0.05);
  });

  test('a sensitivity is how far a checkpoint with the unit swapped is from the base', async () => {
    const { sensitivities, evaluation } = found;
    const base = at('even');
    await prune({ ...wanda, out: at('next'), sparsity: 0.65 });
    // The windows for the sensitivities are every second one of those with the seed behind the calibration's.
    const checkpoint = await Checkpoint.open(model);
    const { config } = readArchitecture(checkpoint);
    await checkpoint.close();
    const drawn = await loadCalibration(model, config, { ...calibration, windows: 4, seed: 1 });
    expect(evaluation).toEqual({ windows: [2, 2], length: 64, hash: drawn.hash });
    const file = at('tokens.json');
    const windows = [0, 1, 2, 3].map((i) => Array.from(drawn.tokens.subarray(64 * i, 64 * (i + 1))));
    const name = 'model.layers.1.mlp.up_proj';
    await swapped(base, at('next'), at('swapped'), `${name}.weight`);
    const tokens = Uint32Array.from([windows[0], windows[2]].flat() as number[]);
    using stream = device.stream();
    const run = (path: string) => behindLastBlock(path, stream, { tokens, windows: 2, length: 64 });
    const [from, to] = [await run(base), await run(at('swapped'))];
    const [divergence = 0] = await meanDivergences(from, to.model, [to.residual]);
    for (const { dispose } of [from, to]) await dispose();
    expect(divergence).toBeGreaterThan(0);
    const weights = 688 * 256;
    const measured = { block: 1, layers: [name], weights, divergence, sensitivity: divergence / weights };
    expect(sensitivities.find(({ layers }) => layers[0] === name)).toEqual(measured);

    // The others choose.
    await writeFile(file, JSON.stringify({ evaluation: [windows[1], windows[3]] }));
    const losses = new Map(found.candidates.map(({ gain, loss }) => [gain, loss]));
    for (const [gain, name] of [
      [0, 'even'],
      [found.gain, 'pruned'],
    ] as const)
      expect(losses.get(gain)).toBe((await evaluatePerplexity({ model: at(name), text: file, device: 'cpu' })).meanNll);
  });

  test.each<[string, (event: AllocationSearchEvent) => boolean, again: number]>([
    ['in the base', (event) => event.type === 'prune' && event.what === 'base' && event.event.type === 'block', 1],
    ['between the base and the next level', (event) => event.type === 'candidate' && event.gain === 0, 0],
    ['among the sensitivities', (event) => event.type === 'block' && event.block === 0, 0],
    [
      'in a candidate',
      (event) => event.type === 'prune' && event.gain !== undefined && event.event.type === 'block',
      3,
    ],
    ['between two candidates', (event) => event.type === 'candidate' && event.gain > 0, 1],
  ])('stopped %s goes on with the same result', async (where, when, again) => {
    const work = `stopped ${where}`;
    const stop = new AbortController();
    const onEvent = (event: AllocationSearchEvent) => when(event) && stop.abort();
    await expect(search(work, { ...small, signal: stop.signal, onEvent })).rejects.toMatchObject({ code: 'ABORTED' });
    expect(device.info().memoryUsed).toBe(0);
    const events: AllocationSearchEvent[] = [];
    const resumed = await search(work, { ...small, onEvent: (event) => events.push(event) });
    expect(resumed).toEqual(await search('small', small));
    // What was done is not done again.
    expect(events.filter(when)).toHaveLength(again);
    expect(events.some((event) => event.type === 'resume' || isInnerResume(event))).toBe(true);
    expect(await readdir(at(work))).toEqual(['search.json']);
  });

  test('at the time limit it ends with what it has; the next call goes on', async () => {
    const expected = await search('small', small);
    const first = await search('timed', { ...small, timeLimit: 0 });
    expect(first).toMatchObject({
      ended: 'time',
      gain: 0,
      candidates: expected.candidates.slice(0, 1),
      sensitivities: [],
    });
    expect(new Set(Object.values(first.layers))).toEqual(new Set([0.6]));
    expect(Object.keys(first.layers)).toEqual(Object.keys(expected.layers));
    expect(await search('timed', small)).toEqual(expected);
    // A finished one is read, not done again.
    const events: AllocationSearchEvent[] = [];
    const again = await search('timed', { ...small, timeLimit: 0, onEvent: (event) => events.push(event) });
    expect(again).toEqual(expected);
    expect(events.some(({ type }) => type === 'prune')).toBe(false);
  });

  test('what a killed process left behind a finished step is removed', async () => {
    await search('left', small);
    for (const name of ['base', 'candidate-0.08', '.next.unfinished']) {
      await mkdir(join(at('left'), name));
      await writeFile(join(at('left'), name, 'config.json'), '{}');
    }
    expect(await search('left', small)).toEqual(await search('small', small));
    expect(await readdir(at('left'))).toEqual(['search.json']);
  });

  test('is not gone on with by another one: what differs is told, a restart drops it', async () => {
    await search('other', { ...small, timeLimit: 0 });
    const changed = {
      ...small,
      objective: 'crossEntropy',
      evaluation: { windows: 1 },
      sparsity: 0.5,
      timeLimit: 0,
    } as const;
    await expect(search('other', changed)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(
        /^A search is in .*other, and it differs in pattern .*, objective \(kl then, crossEntropy now\), evaluation .*--restart/,
      ),
    });
    const restarted = await search('other', { ...changed, restart: true });
    expect(restarted).toMatchObject({ objective: 'crossEntropy', pattern: { sparsity: 0.5 } });
    await writeFile(join(at('other'), 'search.json'), '{}');
    await expect(search('other', small)).rejects.toMatchObject({
      message: expect.stringContaining('is not what a search leaves'),
    });
  });

  test('two at once in one folder: the second is refused', async () => {
    let second: unknown;
    const onEvent = ({ type }: AllocationSearchEvent) => {
      if (type === 'candidate') second ??= search('shared', small).catch((error: unknown) => error);
    };
    await search('shared', { ...small, onEvent });
    expect(await second).toMatchObject({
      code: 'FILE_SYSTEM',
      message: expect.stringContaining(`Another run works on the search in ${at('shared')}`),
    });
  });

  test('models that it did not make are left alone', async () => {
    await mkdir(join(at('foreign'), 'base'), { recursive: true });
    await expect(search('foreign', { restart: true })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('holds base, but no search.json'),
    });
    expect(await readdir(at('foreign'))).toEqual(['base']);
  });

  test('of token ids as calibration other windows choose than those that the model is pruned with', async () => {
    const ids = windowsOfIds(8);
    const events: AllocationSearchEvent[] = [];
    const onEvent = (event: AllocationSearchEvent) => events.push(event);
    const evaluated = async (name: string, given: CalibrationOptions, windows = 2) => {
      const options = { ...small, calibration: given, evaluation: { windows }, timeLimit: 0, onEvent } as const;
      return (await search(name, options)).evaluation;
    };
    const hashOf = (windows: number[][]) =>
      joined(
        windows.map((window) => Uint32Array.from(window)),
        32,
      ).hash;
    const first = { tokenIds: ids, windows: 3 };
    expect(await evaluated('behind', first)).toEqual({ windows: [2, 2], length: 32, hash: hashOf(ids.slice(3, 7)) });
    expect(events.find(({ type }) => type === 'prune')).toBeDefined();
    const made = events.flatMap((event) => (event.type === 'prune' ? event.event : []));
    expect(made.find(({ type }) => type === 'calibration')).toMatchObject({
      windows: 3,
      hash: hashOf(ids.slice(0, 3)),
    });
    expect(await evaluated('fewer', first, 3)).toEqual({
      ...{ windows: [3, 2], length: 32, hash: hashOf(ids.slice(3)) },
      note: 'tokenIds has 5 windows besides those that the model is pruned with, not 6',
    });
    events.length = 0;
    const note =
      'tokenIds has no windows besides those that the model is pruned with, so these measure the candidates as well';
    expect(await evaluated('none', { tokenIds: ids })).toEqual({
      ...{ windows: [2, 2], length: 32, hash: hashOf(ids.slice(0, 4)) },
      note,
    });
    expect(events).toContainEqual(expect.objectContaining({ type: 'evaluation', note }));
    expect((await evaluated('one', { tokenIds: ids, windows: 7 })).note).toContain(
      'tokenIds has too few windows besides',
    );
    // The same for each text of a mix.
    const [a, b] = [at('a.json'), at('b.json')];
    await writeFile(a, JSON.stringify(ids));
    await writeFile(b, JSON.stringify(ids.slice(0, 2)));
    expect(await evaluated('mix', { text: [a, b], shares: [1, 1], windows: 4 })).toEqual({
      ...{ windows: [2, 2], length: 32, hash: hashOf([...ids.slice(2, 4), ...ids.slice(0, 2)]) },
      note: `${b} has no windows besides those that the model is pruned with, so these measure the candidates as well`,
    });
  });

  test('a loss has its standard error between the windows, if there are several', async () => {
    const ids = windowsOfIds(6);
    for (const objective of ['kl', 'crossEntropy'] as const) {
      const options = { ...small, objective, timeLimit: 0, evaluation: { tokenIds: ids, windows: 3 } };
      const { candidates } = await search(`errors-${objective}`, options);
      // Each second window chooses; by themselves they have these losses.
      const losses: number[] = [];
      for (const [i, of] of [1, 3, 5].entries()) {
        const evaluation = { tokenIds: [ids[0]!, ids[of]!], windows: 1 };
        const alone = await search(`errors-${objective}-${i}`, { ...options, evaluation });
        expect(alone.candidates).toEqual([{ gain: 0, loss: expect.any(Number) }]);
        losses.push(alone.candidates[0]!.loss);
      }
      const mean = losses.reduce((sum, loss) => sum + loss, 0) / 3;
      const variance = losses.reduce((sum, loss) => sum + (loss - mean) ** 2, 0) / 2;
      expect(candidates[0]!.loss).toBeCloseTo(mean, 6);
      expect(candidates[0]!.standardError).toBeCloseTo(Math.sqrt(variance / 3), 6);
    }
  });

  test('experts: those that do the same are one unit; N:M', async () => {
    const experts = folder('test/fixtures/models/qwen3-moe-fused');
    const options = { model: experts, method: 'magnitude', pattern: { keep: 2, of: 4 } } as const;
    const found = await searchAllocation({
      ...options,
      device,
      work: at('experts'),
      evaluation: { tokenIds: windowsOfIds(4) },
    });
    expect(found).toMatchObject({ ended: 'done', evaluation: { windows: [2, 2], length: 32 } });
    expect(found.sensitivities.map(({ weights }) => weights)).toEqual(
      [0, 1].flatMap(() => [96 * 48, 32 * 48, 32 * 48, 48 * 96, 6 * 64 * 48, 6 * 48 * 32]),
    );
    const base = at('experts-base');
    await prune({ ...options, out: base });
    await prune({ ...options, out: at('experts-next'), pattern: { keep: 1, of: 4 } });
    const checkpoint = await Checkpoint.open(experts);
    const { block } = readArchitecture(checkpoint);
    await checkpoint.close();
    const { attention, mlp } = block(1);
    const gateUp = mlp.map(([inputs]) => titleOf(inputs[0]!));
    const down = mlp.map(([, output]) => titleOf(output));
    const names = [...attention[0], attention[1]].map((spec) => [titleOf(spec)]);
    expect(found.sensitivities.slice(6).map(({ layers }) => layers)).toEqual([...names, gateUp, down]);
    // The experts' matrices are one tensor.
    await swapped(base, at('experts-next'), at('experts-swapped'), 'model.layers.1.mlp.experts.gate_up_proj');
    using stream = device.stream();
    const tokens = Uint32Array.from([windowsOfIds(4)[0], windowsOfIds(4)[2]].flat() as number[]);
    const run = (path: string) => behindLastBlock(path, stream, { tokens, windows: 2, length: 32 });
    const [from, to] = [await run(base), await run(at('experts-swapped'))];
    expect(await meanDivergences(from, to.model, [to.residual])).toEqual([found.sensitivities[10]!.divergence]);
    for (const { dispose } of [from, to]) await dispose();
    const report = await prune({ ...options, out: at('experts-pruned'), allocation: found.layers });
    expect(report.layers.map(({ name }) => name).sort()).toEqual(Object.keys(found.layers).sort());
  });
});

/** A copy of a checkpoint with one tensor of another. */
async function swapped(base: string, next: string, out: string, name: string): Promise<void> {
  await cp(base, out, { recursive: true });
  const [own, other] = await Promise.all(
    [base, next].map((path) => SafetensorsFile.open(join(path, 'model.safetensors'))),
  );
  const tensors = await Promise.all(
    [...own!.tensors.values()].map(async (tensor) => ({
      ...tensor,
      bytes: await (tensor.name === name ? other! : own!).read(tensor.name),
    })),
  );
  await writeSafetensors(join(out, 'model.safetensors'), tensors);
  await Promise.all([own!.close(), other!.close()]);
}

async function behindLastBlock(path: string, stream: Stream, windows: Windows) {
  const checkpoint = await Checkpoint.open(path);
  const behind = await runBehind(DecoderModel.open(checkpoint, stream), windows);
  const dispose = async () => {
    behind.residual.dispose();
    await checkpoint.close();
  };
  return { ...behind, dispose };
}

const isInnerResume = (event: AllocationSearchEvent) => event.type === 'prune' && event.event.type === 'resume';

describe('KL', () => {
  test('of a base that lost nothing is 0, and above 0 with each unit', async () => {
    const options = { ...small, method: 'magnitude', sparsity: 0 } as const;
    const { candidates, sensitivities, gain } = await search('kl', options);
    expect(candidates.map(({ loss }) => loss)).toEqual([0, 0, 0]);
    expect(gain).toBe(0);
    expect(Math.min(...sensitivities.map(({ divergence }) => divergence))).toBeGreaterThan(0);
  });

  test('is what the logits of both models, each with its own last norm, give in double', async () => {
    const tokens = Uint32Array.from({ length: 40 }, (_, i) => (i * 7) % 90);
    const windows = { tokens, windows: 2, length: 20 };
    const gemma = folder('test/fixtures/models/gemma2'); // caps its logits
    const tokenIds = windowsOfIds(6);
    await prune({ model: gemma, out: at('gemma'), sparsity: 0.7, calibration: { tokenIds }, device });
    using stream = device.stream();
    const run = async (path: string) => {
      const checkpoint = await Checkpoint.open(path);
      const decoder = DecoderModel.open(checkpoint, stream);
      const { vocabulary } = decoder.config;
      const activations = await Activations.create(decoder, windows);
      await activations.runAll();
      const logits = new Float32Array(40 * vocabulary);
      await eachLogits(decoder, activations, async (piece, first) => {
        logits.set(await stream.read(piece), first * vocabulary);
      });
      const logProbabilities = Array.from({ length: 40 }, (_, t) =>
        logSoftmax(logits.subarray(t * vocabulary, (t + 1) * vocabulary)),
      );
      return { checkpoint, model: decoder, residual: activations.residual, activations, logProbabilities };
    };
    const [dense, pruned] = [await run(gemma), await run(at('gemma'))];
    let expected = 0;
    for (const [t, row] of dense.logProbabilities.entries())
      for (const [i, p] of row.entries()) expected += (Math.exp(p) * (p - pruned.logProbabilities[t]![i]!)) / 40;
    expect(expected).toBeGreaterThan(0.01);
    // Two streams at once; the dense one goes through the pruned model's norm.
    const [divergence, other] = await meanDivergences(dense, pruned.model, [pruned.residual, dense.residual]);
    expect(divergence).toBeCloseTo(expected, 6);
    expect(other).toBeLessThan(expected / 2);
    expect(await meanDivergences(dense, pruned.model, [dense.residual, pruned.residual])).toEqual([other, divergence]);
    for (const { activations, checkpoint } of [dense, pruned]) {
      activations.dispose();
      await checkpoint.close();
    }
  });

  test('of more tokens than logits are held at once is the mean of its parts', async () => {
    const half = at('half');
    await prune({ model, out: half, method: 'magnitude', sparsity: 0.5, device });
    const ids = Uint32Array.from({ length: 47 * 64 }, (_, i) => (i * i * 7 + 11 * i) % 3072);
    using stream = device.stream();
    const divergenceOf = async (first: number, end: number) => {
      const windows = { tokens: ids.slice(64 * first, 64 * end), windows: end - first, length: 64 };
      const [from, to] = [await behindLastBlock(model, stream, windows), await behindLastBlock(half, stream, windows)];
      expect(rowsAtOnce(to.model, ids.length, 2)).toBeLessThan(ids.length);
      const [divergence] = await meanDivergences(from, to.model, [to.residual]);
      for (const { dispose } of [from, to]) await dispose();
      return divergence!;
    };
    const [all, front, back] = [await divergenceOf(0, 47), await divergenceOf(0, 20), await divergenceOf(20, 47)];
    expect(all).toBeCloseTo((20 * front + 27 * back) / 47, 7);
    expect(Math.abs(front - back)).toBeGreaterThan(1e-3);
  });
});

test.each<[string, object, string]>([
  ['no work folder', { work: undefined }, 'the path of a folder for work'],
  ['no model', { model: '' }, 'the path of a folder for model'],
  ['an objective of another name', { objective: 'accuracy' }, '"crossEntropy" or "kl" for objective'],
  ['a time limit below 0', { timeLimit: -1 }, 'for timeLimit'],
  ['no windows', { evaluation: { windows: 0 } }, 'an integer of at least 1 for evaluation.windows'],
  ['windows of one token', { evaluation: { length: 1 } }, 'evaluation.length'],
  ['a seed of more than 32 bits', { evaluation: { seed: 2 ** 32 } }, 'at most 4294967295 for evaluation.seed'],
  ['a seed that is none', { evaluation: { seed: 0.5 } }, 'evaluation.seed'],
  ['text and ids', { evaluation: { text: 'a.txt', tokenIds: [[1, 2]] } }, 'at most one of'],
  ['shares of no texts', { evaluation: { shares: [1, 2] } }, 'none without evaluation.text for evaluation.shares'],
  ['nothing to measure on', { method: 'magnitude', calibration: undefined }, 'for evaluation'],
  ['a percentage', { sparsity: 60 }, 'a number from 0 to 1 for sparsity'],
  ['a pattern that does not divide', { sparsity: undefined, pattern: { keep: 2, of: 7 } }, 'a width that 7 divides'],
  ['a work folder in the model', { work: join(model, 'work') }, 'must not be the model folder'],
])('%s is refused before the text is read', async (_what, options, message) => {
  const missing = { text: '/nowhere.txt' };
  await expect(search('refused', { calibration: missing, ...options })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining(message),
  });
  expect(await readdir(scratch)).not.toContain('refused');
});

test('one window is not enough to measure and to choose', async () => {
  await expect(search('one', { evaluation: { tokenIds: [[1, 2, 3]] } })).rejects.toMatchObject({
    code: 'INVALID_TEXT',
    message: expect.stringContaining('at least two'),
  });
});

test('alps allocate writes what alps prune --allocation reads', async () => {
  const out = at('out/allocation.json');
  const flags = '--sparsity 0.6 --method wanda --comparison-group layer --windows 4 --length 64'.split(' ');
  const pruning = [...flags, '--calibration', calibration.text];
  const alps = (...args: string[]) => {
    const { status, stdout, stderr } = spawnSync(process.execPath, [folder('lib/cli/main.js'), ...args], {
      encoding: 'utf8',
    });
    return { code: status, stderr, events: stdout.trim().split('\n') };
  };
  const allocated = alps('allocate', model, '--out', out, '--work', at('cli'), ...pruning, '--evaluation-windows', '1');
  expect(allocated).toMatchObject({ code: 0, stderr: '' });
  expect(JSON.parse(allocated.events.at(-1)!)).toEqual({ type: 'written', out });
  const written = JSON.parse(await readFile(out, 'utf8'));
  expect(written).toMatchObject({ ended: 'done', pattern: { sparsity: 0.6 }, evaluation: { windows: [1, 1] } });
  expect(await readAllocation(out)).toEqual(written.layers);
  expect(alps('prune', model, '--out', at('cli-pruned'), ...pruning, '--allocation', out)).toMatchObject({ code: 0 });
  const config = join(model, 'config.json');
  const refused = alps('allocate', model, '--out', config, '--work', at('cli'), ...pruning);
  expect(refused).toMatchObject({ code: 2, stderr: expect.stringContaining('is no allocation') });
});
