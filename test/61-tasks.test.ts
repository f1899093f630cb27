import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { evaluatePerplexity } from '../src/evaluate.js';
import { evaluateTasks } from '../src/evaluate-tasks.js';
import { taskNames, taskOf } from '../src/evaluation/tasks/definitions.js';
import { encodePair } from '../src/evaluation/tasks/likelihood.js';
import { readRecords } from '../src/evaluation/tasks/records.js';
import { loadTokenizer } from '../src/model/tokenizer.js';
import { countTurns } from './helpers/turns.js';

const model = fileURLToPath(new URL('../models/union-4m', import.meta.url));
const folder = fileURLToPath(new URL('fixtures/tasks/', import.meta.url));

interface Expected {
  tasks: Record<
    string,
    {
      version: number;
      metrics: { acc: number; acc_norm?: number; perplexity?: number };
      items: { logLikelihoods: number[]; greedy: boolean[]; acc: number; accNorm?: number }[];
    }
  >;
}
// What lm-evaluation-harness gives on the same files and model in float32; made by scripts/make_task_golden.py.
const { tasks } = JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8')) as Expected;

describe('against lm-evaluation-harness', () => {
  test('every task is there, in its version', () => {
    expect(Object.keys(tasks).sort()).toEqual([...taskNames].sort());
    for (const name of taskNames) expect(Number(taskOf(name).version)).toBe(tasks[name]!.version);
  });

  test.each(Object.entries(tasks))('%s: the same likelihoods, choices and metrics', async (task, expected) => {
    const options = { model, tasks: [{ task, file: join(folder, `${task}.jsonl`) }], samples: true };
    const [result] = await evaluateTasks(options);
    expect(result!.items).toBe(expected.items.length);
    for (const [i, item] of expected.items.entries()) {
      const sample = result!.samples![i]!;
      for (const [j, value] of sample.logLikelihoods.entries())
        expect(Math.abs(value / item.logLikelihoods[j]! - 1)).toBeLessThan(1e-4);
      expect(Number(sample.choice === sample.gold)).toBe(item.acc);
      if (item.accNorm !== undefined) expect(Number(sample.choiceNormalised === sample.gold)).toBe(item.accNorm);
    }
    expect(result!.acc).toBeCloseTo(expected.metrics.acc, 12);
    if (expected.metrics.acc_norm !== undefined) expect(result!.accNorm).toBeCloseTo(expected.metrics.acc_norm, 12);
    if (expected.metrics.perplexity !== undefined)
      expect(Math.abs(result!.perplexity! / expected.metrics.perplexity - 1)).toBeLessThan(1e-3);
  });
});

describe('files', () => {
  let scratch: string;
  beforeAll(async () => {
    scratch = await mkdtemp(join(tmpdir(), 'alps-tasks-'));
  });
  afterAll(() => rm(scratch, { recursive: true, force: true }));

  const write = async (name: string, lines: unknown[]) => {
    const file = join(scratch, name);
    await writeFile(file, lines.map((line) => (typeof line === 'string' ? line : JSON.stringify(line))).join('\n'));
    return file;
  };
  const run = (task: string, file: string, limit?: number) =>
    evaluateTasks({ model, tasks: [{ task, file }], limit, samples: true });

  test('the layout of the JSON lines that AI2 published gives the same as that of the parquet files', async () => {
    const records = (await readFile(join(folder, 'arc_easy.jsonl'), 'utf8'))
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    const published = records.map(({ question, choices, answerKey }) => ({
      id: 'x',
      question: {
        stem: question,
        choices: choices.text.map((text: string, i: number) => ({ text, label: choices.label[i] })),
      },
      answerKey,
    }));
    const [one] = await run('arc_easy', join(folder, 'arc_easy.jsonl'));
    const [two] = await run('arc_easy', await write('published.jsonl', published));
    expect(two!.samples).toEqual(one!.samples);
    const [three] = await run('arc_easy', join(folder, 'arc_easy.parquet'));
    expect(three!.samples).toEqual(one!.samples);
  });

  test('labels in the words of the published files', async () => {
    const rte = { premise: 'A ship sailed.', hypothesis: 'A ship sailed.', label: 'not_entailment' };
    expect((await run('rte', await write('rte.jsonl', [rte])))[0]!.samples![0]!.gold).toBe(1);
    const boolq = { passage: 'Water is wet.', question: 'is water wet', answer: true };
    expect((await run('boolq', await write('boolq.jsonl', [boolq])))[0]!.samples![0]!.gold).toBe(1);
  });

  test('a limit takes the first records', async () => {
    const [result] = await run('piqa', join(folder, 'piqa.jsonl'), 2);
    expect(result!.items).toBe(2);
  });

  test.each([
    ['not JSON', ['{"goal": "x"'], 'line 1: not JSON'],
    [
      'a missing field',
      [{ goal: 'x', sol1: 'a', label: 0 }],
      'record 1: not a record of piqa: a record has no sol2 (its fields: goal, sol1, label)',
    ],
    [
      'a label beyond the answers',
      [{ goal: 'x', sol1: 'a', sol2: 'b', label: 2 }],
      'the right answer of a record is 2 of 2',
    ],
    ['a hidden label', [{ goal: 'x', sol1: 'a', sol2: 'b', label: '' }], 'a record has no usable label'],
    ['nothing', [''], 'has no records'],
  ])('%s is refused with its place', async (name, lines, message) => {
    const file = await write(`${name}.jsonl`, lines);
    await expect(run('piqa', file)).rejects.toMatchObject({
      code: 'INVALID_TEXT',
      message: expect.stringContaining(message),
    });
  });

  const question = { goal: 'x', sol1: 'a', sol2: 'b', label: 0 };

  test('lines end at a line feed alone, and a byte order mark is left out', async () => {
    const file = await write('lines.jsonl', [
      `\uFEFF${JSON.stringify({ ...question, goal: 'one\u2028two' })}\r`,
      question,
    ]);
    expect(await readRecords(file, 10)).toEqual([{ ...question, goal: 'one\u2028two' }, question]);
  });

  test.each<[string, string, Buffer, RegExp]>([
    [
      'a line without end',
      'endless.jsonl.gz',
      gzipSync(Buffer.alloc(70 << 20, ' ')),
      /line 1: more than 67108864 char/,
    ],
    ['what is not UTF-8', 'latin.jsonl', Buffer.from('{"goal":"caf\xe9"}', 'latin1'), /not UTF-8 at byte 12/],
    ['half a gzip file', 'half.jsonl.gz', gzipSync('{"goal":"x"}').subarray(0, -9), /not a whole gzip file/],
    ['a damaged gzip file', 'wrong.jsonl.gz', Buffer.from('{"goal":"x"}'), /not a whole gzip file/],
  ])('%s is refused', async (_, name, content, message) => {
    const file = join(scratch, name);
    await writeFile(file, content);
    await expect(run('piqa', file)).rejects.toMatchObject({
      code: 'INVALID_TEXT',
      message: expect.stringMatching(message),
    });
  });

  test.each(['jsonl', 'parquet'])('a pipe and a folder .%s are refused, nothing is waited for', async (ending) => {
    const [pipe, folder] = [join(scratch, `pipe.${ending}`), join(scratch, `folder.${ending}`)];
    execFileSync('mkfifo', [pipe]);
    await mkdir(folder);
    for (const file of [pipe, folder]) {
      await expect(run('piqa', file)).rejects.toMatchObject({
        code: 'INVALID_TEXT',
        message: expect.stringContaining('not a regular file'),
      });
    }
    await expect(run('piqa', `a\0.${ending}`)).rejects.toMatchObject({ code: 'FILE_SYSTEM' });
  });

  test('parquet: groups of rows are read one by one as far as the limit, and the event loop turns', async () => {
    const file = join(folder, 'groups.parquet');
    const expected = Array.from({ length: 48 }, (_, i) => ({
      goal: `Question ${i}`,
      sol1: `one ${i}`,
      sol2: `two ${i}`,
      label: BigInt(i % 2),
    }));
    const turns = countTurns();
    expect(await readRecords(file, Number.POSITIVE_INFINITY)).toEqual(expected);
    expect(turns()).toBeGreaterThan(60);
    expect(await readRecords(file, 7)).toEqual(expected.slice(0, 7));
    await expect(readRecords(file, 7, AbortSignal.abort())).rejects.toMatchObject({ code: 'ABORTED' });
  });

  test.each(['0', '3'])('an answer %s of a WinoGrande record', async (answer) => {
    const file = await write('answer.jsonl', [{ sentence: 'A _ b.', option1: 'x', option2: 'y', answer }]);
    await expect(run('winogrande', file)).rejects.toMatchObject({
      code: 'INVALID_TEXT',
      message: expect.stringContaining(`the right answer of a record is ${answer} of 2, counted from 1`),
    });
  });

  test('a passage of one word is scored behind the token that begins a text', async () => {
    const file = await write('word.jsonl', [{ text: 'Congress' }]);
    const [result] = await run('lambada_openai', file);
    const tokenizer = await loadTokenizer(model);
    const ids = [tokenizer.bosId!, ...tokenizer.encode(' Congress')];
    expect(encodePair(tokenizer, { context: '', continuation: ' Congress' }, 512)).toEqual({
      ids: Uint32Array.from(ids),
      scored: ids.length - 1,
    });
    const text = await write('ids.json', [[ids]]);
    const { perplexity } = await evaluatePerplexity({ model, text });
    const [logLikelihood] = result!.samples![0]!.logLikelihoods;
    expect(logLikelihood! / -(Math.log(perplexity) * (ids.length - 1))).toBeCloseTo(1, 5);
    // A continuation that begins with that token has it once.
    const begun = encodePair(tokenizer, { context: '', continuation: '<|endoftext|> a' }, 512);
    expect([...begun.ids]).toEqual([...tokenizer.encode('<|endoftext|> a')]);
    expect(begun.scored).toBe(begun.ids.length - 1);
  });

  test('without a token that begins or ends a text, or behind blanks alone, one word leaves nothing to go by', async () => {
    const bare = join(scratch, 'bare');
    await cp(model, bare, { recursive: true });
    await writeFile(join(bare, 'tokenizer_config.json'), '{}');
    for (const [folder, text] of [
      [bare, 'word'],
      [model, '  word'],
    ] as const) {
      const tasks = [{ task: 'lambada_openai', file: await write('word.jsonl', [{ text }]) }];
      await expect(evaluateTasks({ model: folder, tasks })).rejects.toMatchObject({
        code: 'INVALID_TEXT',
        message: expect.stringContaining('record 1: not a record of lambada_openai: a context has no tokens'),
      });
    }
    // The token that ends a text takes the other's place.
    await writeFile(join(bare, 'tokenizer_config.json'), '{ "eos_token": "<|endoftext|>" }');
    const [id] = encodePair(await loadTokenizer(bare), { context: '', continuation: ' a' }, 512).ids;
    expect(id).toBe((await loadTokenizer(model)).eosId);
  });

  test('what is wrong with any of the files is told before the first is evaluated', async () => {
    const good = { task: 'piqa', file: join(folder, 'piqa.jsonl') };
    const word = await write('one-word.jsonl', [{ text: '  word' }]);
    for (const [bad, code] of [
      [{ task: 'arc_easy', file: join(scratch, 'none.jsonl') }, 'FILE_SYSTEM'],
      [{ task: 'arc_easy', file: good.file }, 'INVALID_TEXT'],
      [{ task: 'lambada_openai', file: word }, 'INVALID_TEXT'],
    ] as const) {
      const onProgress = () => expect('progress').toBe('none');
      await expect(evaluateTasks({ model, tasks: [good, bad], onProgress })).rejects.toMatchObject({ code });
    }
  });

  test.each<[string, object]>([
    ['Expected a function for onProgress', { onProgress: 5 }],
    ['Expected true or false for samples', { samples: 'yes' }],
    ['Expected the path of a file for tasks.file', { tasks: [{ task: 'piqa' }] }],
    ['Expected at least one task for tasks', { tasks: [] }],
    ['Expected a list for tasks', { tasks: 'piqa' }],
  ])('%s', async (message, change) => {
    const tasks = [{ task: 'piqa', file: join(folder, 'piqa.jsonl') }];
    await expect(evaluateTasks({ model, tasks, ...change })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(message),
    });
  });

  test('an unknown task, an unknown format, a missing file', async () => {
    await expect(run('mmlu', 'x.jsonl')).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('arc_easy'),
    });
    await expect(run('piqa', 'x.csv')).rejects.toMatchObject({ code: 'INVALID_TEXT' });
    await expect(run('piqa', join(scratch, 'none.jsonl'))).rejects.toMatchObject({ code: 'FILE_SYSTEM' });
  });
});
