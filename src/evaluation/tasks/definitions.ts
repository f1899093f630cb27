import { AlpsError, describe } from '../../errors.js';
import type { TaskRecord } from './records.js';

/** One question: pairs of a context and a continuation whose likelihoods are compared. */
export interface TaskItem {
  pairs: { context: string; continuation: string }[];
  /** Which pair is right. */
  gold: number;
  /** Length of each answer in characters, for the normalised accuracy. */
  lengths: number[];
}

/** A task as lm-evaluation-harness 0.4.13 has it, zero-shot. */
export interface TaskDefinition {
  name: string;
  /** The harness's version of the task. */
  version: string;
  metrics: ('acc' | 'acc_norm' | 'perplexity')[];
  /** @throws AlpsError `INVALID_TEXT` where a record lacks what the task needs */
  read(record: TaskRecord): TaskItem;
}

class Fields {
  readonly #record: TaskRecord;

  constructor(record: TaskRecord) {
    this.#record = record;
  }

  missing(names: string): AlpsError {
    return new AlpsError(
      'INVALID_TEXT',
      `a record has no ${names} (its fields: ${Object.keys(this.#record).slice(0, 20).join(', ')})`,
    );
  }

  /** The first of some fields that is there. */
  any(...names: string[]): unknown {
    for (const name of names) {
      const value = this.#record[name];
      if (value !== undefined && value !== null) return value;
    }
    throw this.missing(names.join(' or '));
  }

  text(...names: string[]): string {
    const value = this.any(...names);
    if (typeof value !== 'string') throw this.missing(`text in ${names.join(' or ')}`);
    return value;
  }

  /** A class label: a number, a number as text, true or false, or one of some names. */
  label(names: readonly string[], ...fields: string[]): number {
    const value = this.any(...fields);
    if (typeof value === 'boolean') return value ? 1 : 0;
    // Hidden labels are empty texts, which are no number here.
    const given = typeof value === 'string' && value.trim() === '' ? Number.NaN : Number(value);
    const label = names.includes(value as string) ? names.indexOf(value as string) : given;
    if (!Number.isInteger(label) || label < 0) throw this.missing(`usable ${fields.join(' or ')} (${describe(value)})`);
    return label;
  }
}

const characters = (text: string) => [...text].length;

/** @param first the number of the first answer */
function checkedGold(gold: number, answers: readonly string[], first = 0): number {
  if (gold >= first && gold < first + answers.length) return gold - first;
  const from = first === 0 ? '' : `, counted from ${first}`;
  throw new AlpsError('INVALID_TEXT', `the right answer of a record is ${gold} of ${answers.length}${from}`);
}

function choiceItem(context: string, answers: readonly string[], gold: number): TaskItem {
  return {
    pairs: answers.map((answer) => ({ context, continuation: ` ${answer}` })),
    gold: checkedGold(gold, answers),
    lengths: answers.map(characters),
  };
}

/** Questions with labelled choices, in the layout of the parquet files or of the JSON lines that AI2 published. */
function labelledChoices(record: TaskRecord): { stem: string; texts: string[]; gold: number } {
  const fields = new Fields(record);
  const nested = record.question as { stem?: string; choices?: { text: string; label: string }[] } | string | undefined;
  const own = typeof nested === 'object' && nested !== null ? nested : undefined;
  const stem = own ? new Fields(own as TaskRecord).text('stem') : fields.text('question_stem', 'question');
  const choices = (own?.choices ?? fields.any('choices')) as
    | { text: string; label: string }[]
    | { text: string[]; label: string[] };
  const pairs = Array.isArray(choices)
    ? choices
    : choices.text.map((text, i) => ({ text, label: choices.label[i] as string }));
  const key = fields.text('answerKey').trimStart();
  return { stem, texts: pairs.map(({ text }) => text), gold: pairs.findIndex(({ label }) => label === key) };
}

function arc(name: string): TaskDefinition {
  return {
    name,
    version: '1.0',
    metrics: ['acc', 'acc_norm'],
    read(record) {
      const { stem, texts, gold } = labelledChoices(record);
      return choiceItem(`Question: ${stem}\nAnswer:`, texts, gold);
    },
  };
}

/** HellaSwag's own clean-up: brackets are left from WikiHow. */
function cleaned(text: string): string {
  return text
    .trim()
    .replaceAll(' [title]', '. ')
    .replace(/\[.*?\]/g, '')
    .replaceAll('  ', ' ');
}

function capitalised(text: string): string {
  const [first = '', ...rest] = text;
  return first.toUpperCase() + rest.join('').toLowerCase();
}

function lambada(name: string): TaskDefinition {
  return {
    name,
    version: '1.0',
    metrics: ['perplexity', 'acc'],
    read(record) {
      const words = new Fields(record).text('text').split(' ');
      const continuation = ` ${words.at(-1)}`;
      return { pairs: [{ context: words.slice(0, -1).join(' '), continuation }], gold: 0, lengths: [1] };
    },
  };
}

const definitions: readonly TaskDefinition[] = [
  arc('arc_easy'),
  arc('arc_challenge'),
  {
    name: 'piqa',
    version: '1.0',
    metrics: ['acc', 'acc_norm'],
    read(record) {
      const fields = new Fields(record);
      const answers = [fields.text('sol1'), fields.text('sol2')];
      return choiceItem(`Question: ${fields.text('goal')}\nAnswer:`, answers, fields.label([], 'label'));
    },
  },
  {
    name: 'hellaswag',
    version: '1.0',
    metrics: ['acc', 'acc_norm'],
    read(record) {
      const fields = new Fields(record);
      const end = `${fields.text('ctx_a')} ${capitalised(fields.text('ctx_b'))}`;
      const endings = fields.any('endings') as string[];
      const query = cleaned(`${fields.text('activity_label')}: ${end}`);
      return choiceItem(query, endings.map(cleaned), fields.label([], 'label'));
    },
  },
  {
    name: 'winogrande',
    version: '1.0',
    metrics: ['acc'],
    read(record) {
      const fields = new Fields(record);
      const sentence = fields.text('sentence');
      const gap = sentence.indexOf('_');
      if (gap < 0) throw fields.missing('"_" in sentence');
      const continuation = ` ${sentence.slice(gap + 1).trim()}`;
      const options = [fields.text('option1'), fields.text('option2')];
      return {
        pairs: options.map((option) => ({ context: sentence.slice(0, gap) + option, continuation })),
        gold: checkedGold(fields.label([], 'answer'), options, 1),
        lengths: options.map((option) => characters(sentence.slice(0, gap) + option)),
      };
    },
  },
  {
    name: 'boolq',
    version: '2.0',
    metrics: ['acc'],
    read(record) {
      const fields = new Fields(record);
      const context = `${fields.text('passage')}\nQuestion: ${fields.text('question')}?\nAnswer:`;
      return choiceItem(context, ['no', 'yes'], fields.label([], 'label', 'answer'));
    },
  },
  {
    name: 'rte',
    version: '1.0',
    metrics: ['acc'],
    read(record) {
      const fields = new Fields(record);
      const [first, second] = [fields.text('sentence1', 'premise'), fields.text('sentence2', 'hypothesis')];
      const label = fields.label(['entailment', 'not_entailment'], 'label');
      return choiceItem(`${first}\nQuestion: ${second} True or False?\nAnswer:`, ['True', 'False'], label);
    },
  },
  {
    name: 'openbookqa',
    version: '1.0',
    metrics: ['acc', 'acc_norm'],
    read(record) {
      const { stem, texts, gold } = labelledChoices(record);
      return choiceItem(stem, texts, gold);
    },
  },
  lambada('lambada_openai'),
  lambada('lambada_standard'),
];

/** Names of all tasks. */
export const taskNames: readonly string[] = definitions.map(({ name }) => name);

export function taskOf(name: string): TaskDefinition {
  const found = definitions.find((task) => task.name === name);
  if (!found) {
    throw new AlpsError(
      'INVALID_ARGUMENT',
      `Expected one of ${taskNames.join(', ')} for a task but received ${describe(name)} of type ${typeof name}`,
    );
  }
  return found;
}
