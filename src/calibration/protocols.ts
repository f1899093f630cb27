import { readText, type TextOptions, type TextPart, type TextSource } from './text.js';

/**
 * How a text is turned into tokens to measure perplexity.
 * - `text`: documents that are not empty, joined by a blank line; no special tokens
 * - `wikitext2`: all rows of WikiText-2 (raw), including empty ones, joined by a blank line
 * - `ptb`: the sentences of the Penn Treebank joined by a space
 * - `c4`: the first 1100 documents of a C4 validation shard joined by a space; the first 256 windows
 *
 * The last three are the published protocols of SparseGPT, Wanda and ALPS: the tokenizer's special tokens come once, before the text.
 */
export type PerplexityProtocol = 'text' | 'wikitext2' | 'ptb' | 'c4';

export const protocolNames: readonly PerplexityProtocol[] = ['text', 'wikitext2', 'ptb', 'c4'];

interface Protocol {
  /** Between documents. */
  join: string;
  /** The usual field of the files. */
  field: string;
  /** Whether empty rows count. */
  rows: boolean;
  /** Whether the tokenizer's special tokens stand before the text. */
  prefix: boolean;
  documents?: number;
  windows?: number;
  /** Changes a document, such as its line end. */
  clean(text: string): string;
  words: string;
}

const same = (text: string) => text;

export const protocols: Record<PerplexityProtocol, Protocol> = {
  text: {
    join: '\n\n',
    field: 'text',
    rows: false,
    prefix: false,
    clean: same,
    words: 'documents joined by a blank line, tokenised once',
  },
  wikitext2: {
    join: '\n\n',
    field: 'text',
    rows: true,
    prefix: true,
    clean: same,
    words: 'WikiText-2 as published: all rows joined by a blank line, tokenised once with special tokens',
  },
  ptb: {
    join: ' ',
    field: 'sentence',
    rows: true,
    prefix: true,
    clean: (text) => text.trim(),
    words: 'PTB as published: sentences joined by a space, tokenised once with special tokens',
  },
  c4: {
    join: ' ',
    field: 'text',
    rows: true,
    prefix: true,
    documents: 1100,
    windows: 256,
    clean: same,
    words: 'C4 as published: the first 1100 documents joined by a space, tokenised once with special tokens',
  },
};

/** A source's text as a protocol joins it, in pieces. */
export async function* joinedBy(
  protocol: Exclude<PerplexityProtocol, 'text'>,
  source: TextSource,
  options: TextOptions,
): AsyncGenerator<string> {
  const { join, field, rows, documents = Number.POSITIVE_INFINITY, clean } = protocols[protocol];
  let count = 0;
  for await (const document of wholeDocuments(readText(source, { field, ...options, rows }))) {
    if (count >= documents) return;
    if (count > 0) yield join;
    yield clean(document);
    count++;
  }
}

async function* wholeDocuments(parts: AsyncIterable<TextPart>): AsyncGenerator<string> {
  let pieces: string[] = [];
  for await (const { text, end } of parts) {
    pieces.push(text);
    if (!end) continue;
    yield pieces.join('');
    pieces = [];
  }
}
