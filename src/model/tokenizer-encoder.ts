import { Tokenizer as Library } from '@huggingface/tokenizers';
import { knowsAll } from './tokenizer-check.js';
import type { TokenizerFiles } from './tokenizer-json.js';

/**
 * Encodes with the normalizer, the pre-tokenizer and the model of the JavaScript library. What lies around them is the Rust library's: where added
 * tokens are found, what counts as the text's beginning, what becomes of unknown characters.
 */
export class Encoder {
  readonly library: Library;
  /** What goes on inside a text: nothing is put before it. */
  readonly #inside: Library;
  readonly #plain: AddedTokens;
  readonly #normalized: AddedTokens;
  /** Characters to leave out: they are not in the vocabulary, and no token stands for them. */
  readonly #dropped: RegExp | undefined;
  readonly #ignoreMerges: boolean;
  /** Unknown characters of a word that follow one another are one token. */
  readonly #fusedId: number | undefined;

  constructor({ tokenizer, inside }: TokenizerFiles) {
    const { model } = tokenizer;
    this.library = new Library(tokenizer, {});
    const noModel = { ...model, vocab: {}, merges: [] };
    this.#inside = new Library({ ...tokenizer, ...inside, added_tokens: [], model: noModel }, {});

    const { normalizer } = this.library;
    const added = tokenizer.added_tokens.map((token) => ({ ...token, content: String(token.content) }) as AddedToken);
    const isNormalized = ({ normalized, special }: AddedToken) => normalized ?? !special;
    const text = ({ content }: AddedToken) => normalizer?.normalize(content) ?? content;
    this.#plain = new AddedTokens(added.filter((token) => !isNormalized(token)).map((token) => [token.content, token]));
    this.#normalized = new AddedTokens(added.filter(isNormalized).map((token) => [text(token), token]));

    const vocabulary = model.vocab as Record<string, number>;
    this.#ignoreMerges = model.ignore_merges === true;
    if (knowsAll(tokenizer)) return;
    if (typeof model.unk_token !== 'string') {
      const known = Object.keys(vocabulary).filter((token) => [...token].length === 1);
      this.#dropped = new RegExp(
        `[^${known.map((char) => `\\u{${char.codePointAt(0)!.toString(16)}}`).join('')}]`,
        'gu',
      );
    } else if (model.fuse_unk === true) this.#fusedId = vocabulary[model.unk_token];
  }

  /** @param isStart whether a text begins here; otherwise nothing is put before it */
  encode(text: string, isStart = true): number[] {
    const ids: number[] = [];
    for (const [index, part] of this.#plain.split(text).entries()) {
      if (typeof part === 'number') ids.push(part);
      else this.#encodePart(part, index > 0 ? 'between' : isStart ? 'start' : 'inside', ids);
    }
    return ids;
  }

  /** How a character that stands inside a text is written in the vocabulary. */
  written(char: string): string {
    const { normalizer, pre_tokenizer } = this.#inside;
    const text = normalizer?.normalize(char) ?? char;
    return pre_tokenizer?.pre_tokenize(text).join('') ?? text;
  }

  /** @param place where the part begins: with the text, inside it, or behind an added token */
  #encodePart(part: string, place: 'start' | 'inside' | 'between', ids: number[]): void {
    const first = place === 'inside' ? this.#inside : this.library;
    const text = first.normalizer?.normalize(part) ?? part;
    for (const [index, section] of this.#normalized.split(text).entries()) {
      if (typeof section === 'number') {
        ids.push(section);
        continue;
      }
      const { pre_tokenizer } = index > 0 ? this.library : first;
      const options = { section_index: place === 'start' && index === 0 ? 0 : 1 };
      this.#encodeWords(pre_tokenizer?.pre_tokenize(section, options) ?? [section], ids);
    }
  }

  #encodeWords(words: string[], ids: number[]): void {
    const model = this.library.model!;
    const vocabulary = model.tokens_to_ids;
    const dropped = this.#dropped;
    const known = dropped
      ? words.map((word) => (this.#ignoreMerges && vocabulary.has(word) ? word : word.replace(dropped, '')))
      : words;
    if (this.#fusedId === undefined) {
      for (const token of model.encode(known)) ids.push(vocabulary.get(token)!);
      return;
    }
    for (const word of known) {
      const found = model.encode([word]).map((token: string): number => vocabulary.get(token)!);
      ids.push(...found.filter((id: number, index: number) => id !== this.#fusedId || found[index - 1] !== id));
    }
  }
}

interface AddedToken {
  id: number;
  content: string;
  lstrip?: boolean;
  rstrip?: boolean;
  normalized?: boolean;
  special?: boolean;
}

/** The tokens by the UTF-16 units of their texts. */
interface Node {
  next: Map<string, Node>;
  token?: AddedToken;
}

/** Finds added tokens in a text: the first one, of those that begin there the longest, then on behind it. */
class AddedTokens {
  readonly #root: Node = { next: new Map() };
  readonly #start: RegExp | undefined;

  constructor(tokens: [text: string, token: AddedToken][]) {
    for (const [text, token] of tokens) {
      let node = this.#root;
      for (const unit of text.split('')) {
        const next = node.next.get(unit) ?? { next: new Map() };
        node.next.set(unit, next);
        node = next;
      }
      if (text !== '') node.token ??= token;
    }
    const units = [...this.#root.next.keys()].map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);
    if (units.length > 0) this.#start = new RegExp(`[${units.join('')}]`, 'g');
  }

  /** The ids of the tokens, and the text between them. A token takes the white space beside it where it says so. */
  split(text: string): (string | number)[] {
    const start = this.#start;
    if (!start) return text === '' ? [] : [text];
    const parts: (string | number)[] = [];
    let done = 0;
    start.lastIndex = 0;
    for (let match = start.exec(text); match; match = start.exec(text)) {
      const found = this.#longest(text, match.index);
      if (!found) continue;
      let { end } = found;
      const { id, lstrip, rstrip } = found.token;
      let from = match.index;
      start.lastIndex = end;
      if (lstrip) while (from > done && isSpace(text.charAt(from - 1))) from--;
      if (rstrip) while (end < text.length && isSpace(text.charAt(end))) end++;
      if (done < from) parts.push(text.slice(done, from));
      parts.push(id);
      done = end;
    }
    if (done < text.length) parts.push(text.slice(done));
    return parts;
  }

  #longest(text: string, start: number): { token: AddedToken; end: number } | undefined {
    let longest: { token: AddedToken; end: number } | undefined;
    let end = start;
    for (let node = this.#root.next.get(text.charAt(end)); node; node = node.next.get(text.charAt(end))) {
      end++;
      if (node.token) longest = { token: node.token, end };
    }
    return longest;
  }
}

function isSpace(char: string): boolean {
  return /^\p{White_Space}$/u.test(char);
}
