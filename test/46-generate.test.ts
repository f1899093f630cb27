import { createHash } from 'node:crypto';
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { searchAllocation } from '../src/allocation/search.js';
import { loadCalibration } from '../src/calibration/calibration.js';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { Device } from '../src/device/device.js';
import { type GenerateOptions, generateText } from '../src/generate.js';
import { Activations } from '../src/model/block-run.js';
import { DecoderModel } from '../src/model/decoder.js';
import { eachLogits } from '../src/model/head.js';
import { keyValueBytes } from '../src/model/memory.js';
import { type PruneEvent, type PruneReport, prune } from '../src/prune.js';
import { instructionSets, threadCounts } from './helpers/numbers.js';
import { failure, temporaryFolder } from './helpers/safetensors-files.js';

const models = fileURLToPath(new URL('fixtures/models/', import.meta.url));
const llama = join(models, 'llama-plain');

/** The likeliest token behind each of these windows' tokens, by the forward pass over whole windows. */
async function likeliest(folder: string, tokenIds: readonly Uint32Array[]): Promise<number[][]> {
  await using checkpoint = await Checkpoint.open(folder);
  using stream = Device.open('cpu').stream();
  const model = DecoderModel.open(checkpoint, stream);
  const length = tokenIds[0]!.length;
  const tokens = Uint32Array.from(tokenIds.flatMap((ids) => [...ids]));
  using activations = await Activations.create(model, { tokens, windows: tokenIds.length, length });
  await activations.runAll();
  const best: number[] = [];
  await eachLogits(model, activations, async (piece) => {
    const values = await stream.read(piece);
    const { vocabulary } = model.config;
    for (let row = 0; row < values.length; row += vocabulary) {
      const logits = values.subarray(row, row + vocabulary);
      best.push(logits.indexOf(logits.reduce((a, b) => Math.max(a, b))));
    }
  });
  return tokenIds.map((_, window) => best.slice(window * length, (window + 1) * length));
}

const ids = ({ tokenIds }: { tokenIds: readonly Uint32Array[] }) => tokenIds.map((window) => [...window]);

describe('token by token as the forward pass over whole windows', () => {
  test.each(readdirSync(models))(
    '%s: at temperature 0 each token is the likeliest behind those before it',
    async (name) => {
      const model = join(models, name);
      const written = await generateText({
        model,
        windows: 3,
        length: 24,
        temperature: 0,
        device: 'cpu',
        precision: 'float32',
      });
      const expected = await likeliest(model, written.tokenIds);
      expect(written.tokenIds).toHaveLength(3);
      for (const [window, tokens] of written.tokenIds.entries()) {
        expect(tokens).toHaveLength(24);
        expect([...tokens.subarray(1)]).toEqual(expected[window]!.slice(0, -1));
      }
    },
  );

  test('with prompts windows begin with their passages, again from the first where they are fewer', async () => {
    const passages = [0, 1].map((p) => Array.from({ length: 6 }, (_, t) => 7 * p + 3 * t));
    const options: GenerateOptions = {
      model: llama,
      windows: 5,
      length: 20,
      device: 'cpu',
      prompts: { tokenIds: passages },
    };
    const greedy = await generateText({ ...options, temperature: 0 });
    const expected = await likeliest(llama, greedy.tokenIds);
    for (const [window, tokens] of greedy.tokenIds.entries()) {
      expect([...tokens.subarray(0, 6)]).toEqual(passages[window % 2]);
      expect([...tokens.subarray(6)]).toEqual(expected[window]!.slice(5, -1));
    }
    const drawn = ids(await generateText(options));
    expect(drawn.map((tokens) => tokens.slice(0, 6))).toEqual([0, 1, 0, 1, 0].map((p) => passages[p]));
    expect(drawn[0]!.slice(6)).not.toEqual(drawn[2]!.slice(6));
    expect(drawn[0]!.slice(6)).not.toEqual([...greedy.tokenIds[0]!.subarray(6)]);
    // As long as was asked for, or an eighth of a window.
    const text = { documents: ['It is the same text in every passage, and long enough. '.repeat(60)] };
    const folder = join(models, '..', '..', '..', 'models', 'union-4m');
    const [some] = (
      await generateText({ model: folder, windows: 1, length: 40, device: 'cpu', prompts: { text }, promptLength: 20 })
    ).tokenIds;
    const [again] = (await generateText({ model: folder, windows: 1, length: 160, device: 'cpu', prompts: { text } }))
      .tokenIds;
    expect([...again!.subarray(0, 20)]).toEqual([...some!.subarray(0, 20)]);
  });

  test('the first token is any, the next three are the likeliest, the others are drawn', async () => {
    const { tokenIds } = await generateText({ model: llama, windows: 40, length: 12, device: 'cpu' });
    const expected = await likeliest(llama, tokenIds);
    expect(new Set(tokenIds.map(([first]) => first)).size).toBeGreaterThan(15);
    let [likely, drawn] = [0, 0];
    for (const [window, tokens] of tokenIds.entries()) {
      expect([...tokens.subarray(1, 4)]).toEqual(expected[window]!.slice(0, 3));
      for (let t = 4; t < 12; t++) tokens[t] === expected[window]![t - 1] ? likely++ : drawn++;
    }
    expect(drawn).toBeGreaterThan(likely);
    // Nearly at 0 all are.
    const cold = await generateText({ model: llama, windows: 4, length: 12, temperature: 1e-5, device: 'cpu' });
    const greedy = await generateText({ model: llama, windows: 4, length: 12, temperature: 0, device: 'cpu' });
    expect(ids(cold)).toEqual(ids(greedy));
  });
});

describe('what the tokens depend on', () => {
  const options: GenerateOptions = { model: llama, windows: 3, length: 20, device: 'cpu' };

  test('the seed, and not the number of threads', async () => {
    const runs = [];
    for (const threads of threadCounts) runs.push(ids(await generateText({ ...options, threads })));
    for (const run of runs) expect(run).toEqual(runs[0]);
    expect(ids(await generateText({ ...options, seed: 1 }))).not.toEqual(runs[0]);
  });

  test.each(instructionSets())('%s: the same text twice, and its hash is that of the calibration', async (isa) => {
    void Device.open('cpu', { isa });
    const [first, second] = [await generateText(options), await generateText(options)];
    expect(ids(first)).toEqual(ids(second));
    expect(first.hash).toBe(second.hash);
    await using checkpoint = await Checkpoint.open(llama);
    using stream = Device.open('cpu').stream();
    const { config } = DecoderModel.open(checkpoint, stream);
    const loaded = await loadCalibration(llama, config, { tokenIds: first.tokenIds });
    expect(loaded).toMatchObject({ windows: 3, length: 20, hash: first.hash });
  });

  test('windows are written a few at a time where memory is short', async () => {
    await using checkpoint = await Checkpoint.open(llama);
    using stream = Device.open('cpu').stream();
    const model = DecoderModel.open(checkpoint, stream);
    const some: GenerateOptions = { ...options, windows: 5, length: 200 };
    const roomy = Device.open('cpu', { memoryLimit: 1 << 30 });
    roomy.resetPeak();
    const all = await generateText({ ...some, memoryLimit: 1 << 30 });
    const peak = roomy.info().memoryPeak;
    // Less than five windows' keys and values are then left beside the weights.
    const memoryLimit = peak - keyValueBytes(model.config, 200, 4);
    const few = await generateText({ ...some, memoryLimit });
    expect(ids(few)).toEqual(ids(all));
    expect(Device.open('cpu', { memoryLimit }).info().memoryPeak).toBeLessThan(memoryLimit);
    // Wherever the weights and one window fit, any number of windows can be written.
    for (let limit = memoryLimit; ; limit -= 20_000) {
      const one = await generateText({ ...some, windows: 1, memoryLimit: limit }).catch(() => undefined);
      if (!one) break;
      expect((await generateText({ ...some, windows: 70, length: 10, memoryLimit: limit })).tokenIds).toHaveLength(70);
      expect((await generateText({ ...some, memoryLimit: limit })).tokenIds).toHaveLength(5);
    }
    expect(await failure(generateText({ ...options, memoryLimit: 20_000 }))).toMatchObject({ code: 'OUT_OF_MEMORY' });
    expect(Device.open('cpu', { memoryLimit: 20_000 }).info().memoryUsed).toBe(0);
  });
});

test('what differs from what was asked for is told', async () => {
  const prompts = { tokenIds: [[5, 6, 7, 8, 9]] };
  const capped = await generateText({ model: llama, windows: 1, length: 400, device: 'cpu', prompts, promptLength: 3 });
  expect(capped).toMatchObject({ length: 256, note: "windows are capped at the model's 256 positions, not 400" });
  expect([...capped.tokenIds[0]!.subarray(0, 3)]).toEqual([5, 6, 7]);
  expect((await generateText({ model: llama, windows: 1, length: 20, device: 'cpu' })).note).toBeUndefined();
  const folder = fileURLToPath(new URL('../models/union-4m', import.meta.url));
  const short = {
    documents: [
      'A text of some twenty tokens, which is enough for one passage and for no more than that one passage of all.',
    ],
  };
  const { note } = await generateText({
    model: folder,
    windows: 2,
    length: 128,
    device: 'cpu',
    prompts: { text: short },
  });
  expect(note).toMatch(/^the text gives (1 windows|one window) of \d+ tokens, not 2/);
});

test('an abort ends it between two tokens, and all memory is given back', async () => {
  const controller = new AbortController();
  const device = Device.open('cpu', { memoryLimit: 123_456_789 });
  const shares: number[] = [];
  const run = generateText({
    model: llama,
    windows: 2,
    length: 30,
    device: 'cpu',
    memoryLimit: 123_456_789,
    signal: controller.signal,
    onProgress: (share) => {
      shares.push(share);
      if (shares.length === 5) controller.abort();
    },
  });
  expect(await failure(run)).toMatchObject({ code: 'ABORTED' });
  expect(shares).toHaveLength(5);
  expect(shares).toEqual([...shares].sort((a, b) => a - b));
  expect(device.info().memoryUsed).toBe(0);
});

test.each<[string, Partial<GenerateOptions>, string]>([
  ['no windows', { windows: 0 }, 'windows'],
  ['half a window', { windows: 1.5 }, 'windows'],
  ['a window of one token', { length: 1 }, 'length'],
  ['a negative seed', { seed: -1 }, 'seed'],
  ['a seed of more than 32 bits', { seed: 2 ** 32 }, 'at most 4294967295 for seed'],
  ['a temperature below 0', { temperature: -0.1 }, 'temperature'],
  ['no number', { temperature: Number.NaN }, 'temperature'],
  ['a passage of nothing', { promptLength: 8 }, 'promptLength'],
  ['passages of nothing', { prompts: {} }, 'prompts'],
  ['passages as long as a window', { length: 4, prompts: { tokenIds: [[1, 2, 3, 4]] } }, 'prompts'],
  ['two kinds of passages', { prompts: { text: 'a.txt', tokenIds: [[1, 2]] } }, 'prompts'],
  ['a passage of a whole window', { length: 16, prompts: { tokenIds: [[1, 2]] }, promptLength: 16 }, 'promptLength'],
])('%s is refused', async (_what, given, name) => {
  const refusal = await failure(generateText({ model: llama, device: 'cpu', ...given }));
  expect(refusal.code).toBe('INVALID_ARGUMENT');
  expect(refusal.message).toContain(name);
});

test('a model is pruned on its own text, without any other', async () => {
  const folder = await temporaryFolder();
  const { tokenIds, hash } = await generateText({ model: llama, windows: 4, length: 32, device: 'cpu' });
  const report = await prune({
    model: llama,
    out: join(folder, 'pruned'),
    sparsity: 0.5,
    device: 'cpu',
    calibration: { tokenIds },
  });
  expect(report.calibration).toMatchObject({ windows: 4, length: 32, hash });
  expect(report.sparsity).toBeCloseTo(0.5, 3);
  expect(report.meanError).toBeGreaterThan(0);
  expect(report.meanError).toBeLessThan(0.2);
});

describe('windows that a model writes before it is pruned', () => {
  const given = [3, 5].map((step) => Array.from({ length: 200 }, (_, t) => (7 + step * t) % 60));
  const options = { model: llama, sparsity: 0.5, device: 'cpu' } as const;
  const calibration = { tokenIds: given, ownWindows: 3, seed: 5 };
  const errors = ({ layers }: PruneReport) => layers.map(({ error }) => error);

  test('go on from the first eighth of those that are given, as generateText() has them go on', async () => {
    const folder = await temporaryFolder();
    const prompts = { tokenIds: given.map((window) => window.slice(0, 25)) };
    const written = await generateText({ model: llama, windows: 3, length: 200, seed: 5, device: 'cpu', prompts });
    const events: PruneEvent[] = [];
    const report = await prune({
      ...options,
      out: join(folder, 'own'),
      calibration,
      onEvent: (event) => events.push(event),
    });
    const together = await prune({
      ...options,
      out: join(folder, 'given'),
      calibration: { tokenIds: [...given, ...written.tokenIds] },
    });
    expect(report.calibration).toMatchObject({ windows: 5, ownWindows: 3, tokens: 1000, seed: 5 });
    expect(together.calibration).toMatchObject({ windows: 5, ownWindows: 0, hash: report.calibration!.hash });
    expect(errors(report)).toEqual(errors(together));
    const shares = events.flatMap((event) => (event.type === 'generate' ? [event.share] : []));
    expect(shares.length).toBeGreaterThan(10);
    expect(shares.length).toBeLessThan(52);
    expect([shares[0], shares.at(-1)]).toEqual([0, 1]);
    expect(shares).toEqual([...shares].sort((a, b) => a - b));
    // Before the calibration is told.
    expect(events.findLastIndex(({ type }) => type === 'generate')).toBe(
      events.findIndex(({ type }) => type === 'calibration') - 1,
    );
  });

  test('fewer than those that are given go on from some of all texts, on several devices and with experts too', async () => {
    const folder = await temporaryFolder();
    const model = join(models, 'mixtral');
    const texts = [0, 1].map((text) =>
      [0, 1, 2, 3].map((w) => Array.from({ length: 16 }, (_, t) => (20 * text + 3 * w + t) % 60)),
    );
    const files = texts.map((windows, i) => {
      const path = join(folder, `${i}.json`);
      writeFileSync(path, JSON.stringify(windows));
      return path;
    });
    const prompts = { tokenIds: [texts[0]![0]!, texts[1]![0]!].map((window) => window.slice(0, 2)) };
    const written = await generateText({ model, windows: 2, length: 16, device: 'cpu', prompts });
    const devices = [1, 2].map((threads) => Device.open('cpu', { threads }));
    const mix = { text: files, shares: [1, 1], windows: 8, ownWindows: 2 };
    const report = await prune({
      ...options,
      model,
      out: join(folder, 'own'),
      calibration: mix,
      device: devices,
    });
    const all = [...texts.flat(), ...written.tokenIds.map((ids) => [...ids])];
    const hash = createHash('sha256')
      .update(Buffer.from(Uint32Array.from(all.flat()).buffer))
      .digest('hex');
    expect(report.calibration).toMatchObject({ windows: 10, ownWindows: 2, hash });
  });

  test('are there again when a run that was stopped goes on, which is refused before they are written where it differs', async () => {
    const folder = await temporaryFolder();
    const whole = await prune({ ...options, out: join(folder, 'whole'), calibration });
    const out = join(folder, 'parts');
    /** Stops at the first event of a kind. */
    const stoppedAt = async (stop: PruneEvent['type'], restart = false) => {
      const controller = new AbortController();
      const kinds: string[] = [];
      const run = prune({
        ...options,
        out,
        calibration,
        resume: true,
        restart,
        signal: controller.signal,
        onEvent: ({ type }) => {
          kinds.push(type);
          if (type === stop) controller.abort();
        },
      });
      expect(await failure(run)).toMatchObject({ code: 'ABORTED' });
      return kinds;
    };
    // While they are written nothing is there to go on with.
    expect(await stoppedAt('generate')).toContain('generate');
    expect(readdirSync(folder)).toEqual(['whole']);
    expect(await stoppedAt('calibration')).toContain('generate');
    // From then on they are.
    for (const stop of ['layer', 'block'] as const) expect(await stoppedAt(stop)).not.toContain('generate');
    // Other windows are another run.
    for (const other of [{ ownWindows: 2 }, { ownWindows: 0 }, { seed: 6 }]) {
      const kinds: string[] = [];
      const run = prune({
        ...options,
        out,
        calibration: { ...calibration, ...other },
        resume: true,
        onEvent: ({ type }) => kinds.push(type),
      });
      expect(await failure(run)).toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining('calibration'),
      });
      expect(kinds).toEqual(['start']);
    }
    let resumed = 0;
    const report = await prune({
      ...options,
      out,
      calibration,
      resume: true,
      onEvent: (event) => {
        if (event.type === 'resume') resumed = event.finished;
      },
    });
    expect(resumed).toBe(1);
    expect(errors(report)).toEqual(errors(whole));
    expect(readdirSync(folder).sort()).toEqual(['parts', 'whole']);
  });

  test('are written once for a search, all of whose prunings see them', async () => {
    const folder = await temporaryFolder();
    const seen: unknown[] = [];
    let written = 0;
    const search = (timeLimit: number) =>
      searchAllocation({
        ...options,
        work: join(folder, 'work'),
        calibration,
        evaluation: { windows: 1, tokenIds: given },
        timeLimit,
        onEvent: (event) => {
          if (event.type === 'generate' && event.share === 0) written++;
          if (event.type === 'prune' && event.event.type === 'calibration') seen.push(event.event.windows);
        },
      });
    // The base; then the next level; then nothing is left to prune.
    expect((await search(0)).ended).toBe('time');
    expect(seen).toEqual([5]);
    const { layers, ended } = await search(Number.POSITIVE_INFINITY);
    expect(ended).toBe('done');
    expect(seen.length).toBeGreaterThan(1);
    expect(new Set(seen)).toEqual(new Set([5]));
    expect((await search(Number.POSITIVE_INFINITY)).layers).toEqual(layers);
    expect(written).toBe(1);
  });

  test.each([-1, 1.5, '3' as unknown as number])(
    '%p of them are refused before anything is read',
    async (ownWindows) => {
      const out = join(await temporaryFolder(), 'pruned');
      const refusal = await failure(
        prune({ ...options, model: 'nowhere', out, calibration: { tokenIds: given, ownWindows } }),
      );
      expect(refusal).toMatchObject({ code: 'INVALID_ARGUMENT' });
      expect(refusal.message).toContain('ownWindows');
    },
  );

  test('windows of two tokens leave none to write', async () => {
    const out = join(await temporaryFolder(), 'pruned');
    const refusal = await failure(prune({ ...options, out, calibration: { tokenIds: [[1, 2]], ownWindows: 1 } }));
    expect(refusal).toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('two tokens') });
    expect(existsSync(out)).toBe(false);
  });

  test('an abort ends the writing, and all memory is given back', async () => {
    const controller = new AbortController();
    const device = Device.open('cpu', { memoryLimit: 123_456_790 });
    const out = join(await temporaryFolder(), 'pruned');
    const run = prune({
      ...options,
      out,
      device,
      calibration,
      signal: controller.signal,
      onEvent: (event) => event.type === 'generate' && event.share > 0.3 && controller.abort(),
    });
    expect(await failure(run)).toMatchObject({ code: 'ABORTED' });
    expect(device.info().memoryUsed).toBe(0);
    expect(existsSync(out)).toBe(false);
  });
});
