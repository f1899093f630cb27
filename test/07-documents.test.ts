/** The documents: their links lead somewhere, their TypeScript compiles. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';

const root = resolve(import.meta.dirname, '..');
const documents = ['README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', ...listed('docs'), ...listed('examples')];

function listed(folder: string): string[] {
  const files = execFileSync('find', [folder, '-name', '*.md', '-not', '-path', '*/node_modules/*'], { cwd: root });
  return files.toString().trim().split('\n').sort();
}

const read = (name: string) => readFileSync(join(root, name), 'utf8');

/** What the compiler says of modules that use the package, given by name and text. */
function problems(modules: Record<string, string>): string {
  const folder = mkdtempSync(join(tmpdir(), 'alps-documents-'));
  try {
    const compilerOptions = {
      paths: { 'alps-prune': [join(root, 'src/index.ts')] },
      typeRoots: [join(root, 'node_modules/@types')],
      types: ['node'],
    };
    const files = Object.keys(modules);
    const config = { extends: join(root, 'tsconfig.json'), compilerOptions, files, include: [] };
    for (const [name, text] of Object.entries(modules)) writeFileSync(join(folder, name), text);
    writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
    writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(config));
    const compiler = join(root, 'node_modules/typescript/bin/tsc');
    return spawnSync(process.execPath, [compiler, '-p', '.'], { cwd: folder, encoding: 'utf8' }).stdout;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test.each(documents)('the links of %s lead somewhere', (name) => {
  const targets = [...read(name).matchAll(/\]\(([^)\s#]+)[^)]*\)/g)].map(([, target]) => target!);
  const files = targets.filter((target) => !/^[a-z]+:/.test(target));
  expect(files.filter((target) => !existsSync(join(root, dirname(name), target)))).toEqual([]);
});

test('the TypeScript of the documents compiles', () => {
  const modules: Record<string, string> = {};
  for (const name of documents) {
    const blocks = [...read(name).matchAll(/```ts\n([\s\S]*?)```/g)];
    for (const [i, [, text]] of blocks.entries()) modules[`${name.replaceAll('/', '-')}-${i + 1}.ts`] = text!;
  }
  expect(Object.keys(modules).length).toBeGreaterThan(8);
  expect(problems(modules)).toBe('');
}, 120_000);

test('what does not compile is found', () => {
  const said = problems({ 'broken.ts': "import { prune } from 'alps-prune';\nawait prune({ modle: '' });\n" });
  expect(said).toMatch(/^broken\.ts\(2,\d+\): .*modle/);
}, 120_000);
