/** The package as npm packs it: what its declarations and its documents lead to is there. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { isBuiltin } from 'node:module';
import { join, resolve } from 'node:path';

const root = resolve(import.meta.dirname, '..');
const said = execFileSync('npm', ['pack', '--dry-run', '--ignore-scripts', '--json'], { cwd: root, encoding: 'utf8' });
const [packed] = Object.values(JSON.parse(said)) as [{ files: { path: string }[] }];
const paths = packed.files.map(({ path }) => path);
const read = (path: string) => readFileSync(join(root, path), 'utf8');

test('what the declarations import are dependencies', () => {
  const { dependencies, peerDependencies } = JSON.parse(read('package.json'));
  const imported = paths
    .filter((path) => /\.d\.c?ts$/.test(path))
    .flatMap((path) => [...read(path).matchAll(/(?:from |import\()'([^'.][^']*)'/g)].map(([, name]) => name!))
    .map((name) => (isBuiltin(name) ? '@types/node' : /^(@[^/]+\/)?[^/]+/.exec(name)![0]));
  expect(imported).toContain('@types/node');
  expect(Object.keys({ ...dependencies, ...peerDependencies })).toEqual(expect.arrayContaining([...new Set(imported)]));
});

test.each(paths.filter((path) => path.endsWith('.md')))('the links of %s lead to files that are packed', (path) => {
  const links = [...read(path).matchAll(/\]\(([^)\s#]+)[^)]*\)/g)].map(([, link]) => link!);
  const targets = links.filter((link) => !/^[a-z]+:/.test(link)).map((link) => join(path, '..', link));
  // The results are left out for their size.
  const missing = targets.filter(
    (target) =>
      !target.startsWith(join('docs', 'results')) &&
      !paths.some((one) => one === target || one.startsWith(`${target}/`)),
  );
  expect(missing).toEqual([]);
});
