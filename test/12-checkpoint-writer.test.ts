import { spawn, spawnSync } from 'node:child_process';
import { chmod, copyFile, mkdir, readdir, readFile, realpath, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Checkpoint } from '../src/checkpoint/folder.js';
import { makeFolder } from '../src/checkpoint/output-folder.js';
import { CheckpointWriter } from '../src/checkpoint/writer.js';
import {
  contents,
  failure,
  modelFolder,
  randomTensor,
  temporaryFolder,
  twoShards,
} from './helpers/safetensors-files.js';

const lib = pathToFileURL(join(import.meta.dirname, '../lib/checkpoint/')).href;
const isRoot = process.getuid?.() === 0;

/** Opens a model and writes it to `out` with some tensors replaced. */
async function rewrite(folder: string, out: string, tensors: Record<string, Uint8Array> = {}, overwrite = false) {
  const source = await Checkpoint.open(folder);
  try {
    const writer = await CheckpointWriter.create({ source, out, overwrite });
    for (const [name, bytes] of Object.entries(tensors)) await writer.write(name, bytes);
    await writer.finish({ 'pruning.json': '{}' });
  } finally {
    await source.close();
  }
}

const refusal = (folder: string, out: string, overwrite = false) => failure(rewrite(folder, out, {}, overwrite), out);

describe('a checkpoint that is written', () => {
  test.each([['one file'], ['shards']])('keeps the layout of %s; tensors in any order', async (kind) => {
    const folder = await modelFolder({
      ...(kind === 'shards' && { shards: twoShards() }),
      files: { 'tokenizer.json': '{"a":1}', 'notes.txt': 'kept' },
    });
    const out = join(await temporaryFolder(), 'out');
    const a = new Uint8Array(24).fill(7);
    const c = new Uint8Array(6).fill(9);
    await rewrite(folder, out, { c, a });

    const [before, after] = [await contents(folder), await contents(out)];
    expect(Object.keys(after).sort()).toEqual([...Object.keys(before), 'pruning.json'].sort());
    for (const [name, bytes] of Object.entries(before)) {
      if (!/^model.*\.safetensors$/.test(name)) expect(after[name]).toBe(bytes);
      else expect(after[name]).toHaveLength(bytes.length);
    }
    const [source, result] = [await Checkpoint.open(folder), await Checkpoint.open(out)];
    expect(result.shardNames).toEqual(source.shardNames);
    expect([...result.tensors.keys()]).toEqual([...source.tensors.keys()]);
    expect(await result.read('a')).toEqual(a);
    expect(await result.read('b')).toEqual(await source.read('b'));
    expect(await result.read('c')).toEqual(c);
    await source.close();
    await result.close();
  });

  test('with nothing replaced has the same bytes', async () => {
    const folder = await modelFolder({ shards: twoShards() });
    const out = join(await temporaryFolder(), 'out');
    await rewrite(folder, out);
    const { 'pruning.json': _, ...copy } = await contents(out);
    expect(copy).toEqual(await contents(folder));
  });

  test('from symbolic links holds plain files', async () => {
    const real = await modelFolder();
    const folder = await temporaryFolder();
    for (const name of await readdir(real)) await symlink(join(real, name), join(folder, name));
    const out = join(await temporaryFolder(), 'out');
    await rewrite(folder, out);
    await rm(real, { recursive: true });
    const copy = await Checkpoint.open(out);
    expect(copy.tensors.size).toBe(3);
    await copy.close();
  });

  test('has the named chat templates, and nothing else of a subfolder', async () => {
    const [folder, cache] = [await modelFolder(), await temporaryFolder()];
    const templates = join(folder, 'additional_chat_templates');
    await mkdir(templates);
    await writeFile(join(templates, 'tool_use.jinja'), 'tools');
    await writeFile(join(templates, 'notes.txt'), 'x');
    await symlink('../config.json', join(templates, 'rag.jinja'));
    const out = join(await temporaryFolder(), 'out');
    await rewrite(folder, out);
    expect(await readdir(join(out, 'additional_chat_templates'))).toEqual(['rag.jinja', 'tool_use.jinja']);
    expect(await readFile(join(out, 'additional_chat_templates', 'tool_use.jinja'), 'utf8')).toBe('tools');
    await rename(templates, join(cache, 'templates'));
    await symlink(join(cache, 'templates'), templates);
    expect(await refusal(folder, join(cache, 'out'))).toMatchObject({
      code: 'INVALID_CHECKPOINT',
      message: expect.stringContaining('which lies neither in the model folder nor beside'),
    });
  });

  test('a name of 255 bytes fits, one of 256 is refused', async () => {
    const folder = await modelFolder();
    const parent = await temporaryFolder();
    await rewrite(folder, join(parent, 'n'.repeat(255)));
    expect(await readdir(parent)).toEqual(['n'.repeat(255)]);
    const long = join(parent, 'n'.repeat(256));
    expect(await refusal(folder, long)).toMatchObject({
      code: 'FILE_SYSTEM',
      message: expect.stringMatching(/name.*long/),
    });
  });
});

describe('outputs that are refused before anything is written', () => {
  test('the model itself, by any way; a folder inside it; a folder around it', async () => {
    const folder = await modelFolder();
    const before = await contents(folder);
    const link = join(await temporaryFolder(), 'link');
    await symlink(folder, link);
    for (const out of [folder, `${folder}/.`, link, join(folder, 'pruned'), join(folder, '..')]) {
      for (const overwrite of [false, true]) {
        expect(await refusal(folder, out, overwrite)).toEqual({
          code: 'INVALID_ARGUMENT',
          message: expect.stringContaining('must not be the model folder'),
        });
      }
    }
    expect(await contents(folder)).toEqual(before);
  });

  test('a folder that holds the working folder or the program, whatever is allowed', async () => {
    const folder = await modelFolder({});
    const scratch = await realpath(await temporaryFolder());
    const [cwd, program] = [join(scratch, 'held', 'inside'), join(scratch, 'program', 'run.mjs')];
    await mkdir(cwd, { recursive: true });
    await mkdir(join(scratch, 'program'));
    await writeFile(
      program,
      `import { Checkpoint } from ${JSON.stringify(`${lib}folder.js`)};
       import { CheckpointWriter } from ${JSON.stringify(`${lib}writer.js`)};
       const source = await Checkpoint.open(${JSON.stringify(folder)});
       for (const out of [process.cwd(), '..', ${JSON.stringify(join(scratch, 'program'))}])
         await CheckpointWriter.create({ source, out, overwrite: true }).catch((error) => console.log(error.message));`,
    );
    const { stdout } = spawnSync(process.execPath, [program], { cwd, encoding: 'utf8' });
    expect(stdout.split('\n')).toEqual([
      `The output ${cwd} must not hold ${cwd}, which this program runs in`,
      `The output .. must not hold ${cwd}, which this program runs in`,
      `The output ${join(scratch, 'program')} must not hold ${program}, which this program runs in`,
      '',
    ]);
  });

  test('parents of an output that several runs make at once', async () => {
    for (let round = 0; round < 20; round++) {
      const path = join(await temporaryFolder(), `${round}`, 'a', 'b');
      await Promise.all(Array.from({ length: 8 }, (_, i) => makeFolder(join(path, `${i % 3}`))));
      expect((await readdir(path)).sort()).toEqual(['0', '1', '2']);
    }
    await expect(makeFolder('/proc/none/of/these')).rejects.toMatchObject({ code: 'FILE_SYSTEM' });
  });

  test('a folder with files in it, unless overwriting is allowed', async () => {
    const folder = await modelFolder();
    const out = await temporaryFolder();
    await writeFile(join(out, 'precious'), 'x');
    expect(await refusal(folder, out)).toEqual({
      code: 'INVALID_ARGUMENT',
      message:
        'The output  exists and is not empty; choose another name or allow overwriting (--overwrite, overwrite: true)',
    });
    expect(await readdir(out)).toEqual(['precious']);
    await rewrite(folder, out, {}, true);
    expect((await readdir(out)).sort()).toEqual(['config.json', 'model.safetensors', 'pruning.json']);
    expect(await readdir(join(out, '..'))).not.toContainEqual(expect.stringContaining('partial'));
  });

  test('what another process has put in place of a file is not published', async () => {
    const source = await Checkpoint.open(await modelFolder());
    const out = join(await temporaryFolder(), 'out');
    const writer = await CheckpointWriter.create({ source, out });
    const parent = join(out, '..');
    const shard = join(parent, (await readdir(parent))[0]!, 'model.safetensors');
    await copyFile(shard, `${shard}.other`);
    await rename(`${shard}.other`, shard);
    await expect(writer.finish()).rejects.toMatchObject({
      code: 'FILE_SYSTEM',
      message: expect.stringContaining('was replaced by another process while it was written'),
    });
    expect(await readdir(parent)).toEqual([]);
    await source.close();
  });

  test('an empty folder is taken', async () => {
    const out = await temporaryFolder();
    await rewrite(await modelFolder(), out);
    expect(await readdir(out)).toContain('pruning.json');
  });

  test.each<[string, (parent: string) => Promise<string>, string, string]>([
    [
      'a file',
      async (parent) => {
        await writeFile(join(parent, 'f'), '');
        return join(parent, 'f');
      },
      'INVALID_ARGUMENT',
      'exists and is not a folder',
    ],
    [
      'a folder in a folder that does not exist',
      async (parent) => join(parent, 'no/out'),
      'FILE_SYSTEM',
      'make it first',
    ],
    [
      'a dangling link',
      async (parent) => {
        await symlink('nowhere', join(parent, 'l'));
        return join(parent, 'l');
      },
      'INVALID_ARGUMENT',
      'symbolic link to something that does not exist',
    ],
    [
      'a loop of links',
      async (parent) => {
        await symlink('l', join(parent, 'l'));
        return join(parent, 'l');
      },
      'FILE_SYSTEM',
      'too many symbolic links',
    ],
    ['a name with a zero byte', async (parent) => `${parent}/a\0b`, 'INVALID_ARGUMENT', 'path of a folder'],
    ['no name', async () => '', 'INVALID_ARGUMENT', 'path of a folder'],
    ['a file as parent', async () => '/dev/null/out', 'FILE_SYSTEM', 'not a directory'],
    ['a file system without space for folders', async () => '/proc/out', 'FILE_SYSTEM', '/proc/out'],
  ])('%s', async (_, make, code, message) => {
    const out = await make(await temporaryFolder());
    expect(await failure(rewrite(await modelFolder(), out))).toEqual({
      code,
      message: expect.stringContaining(message),
    });
  });

  test('a folder that cannot be written to', async () => {
    let parent = await temporaryFolder();
    let mounted = false;
    if (!isRoot) await chmod(parent, 0o500);
    else {
      // Permissions do not stop root; where it may not mount either, a virtual file system refuses.
      mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'ro', 'tmpfs', parent]).status === 0;
      if (!mounted) parent = '/proc';
    }
    try {
      expect(await failure(rewrite(await modelFolder(), join(parent, 'out')))).toMatchObject({
        code: 'FILE_SYSTEM',
        message: expect.stringMatching(/permission denied|read-only file system|no such file/),
      });
    } finally {
      if (mounted) spawnSync('umount', [parent]);
    }
  });
});

describe('writes that nobody waits for', () => {
  test('are there in the end', async () => {
    const source = await Checkpoint.open(await modelFolder());
    const out = join(await temporaryFolder(), 'out');
    const writer = await CheckpointWriter.create({ source, out });
    const bytes = Uint8Array.from({ length: 24 }, (_, i) => i + 1);
    await writer.queue('a', bytes);
    expect((await failure(writer.queue('a', bytes))).message).toBe('Tensor "a" was written already');
    await writer.finish();
    const written = await Checkpoint.open(out);
    expect(await written.read('a')).toEqual(bytes);
    await written.close();
    await source.close();
  });

  test('a signal: the next call throws, and waits until nothing is left', async () => {
    const source = await Checkpoint.open(await modelFolder());
    const parent = await temporaryFolder();
    const controller = new AbortController();
    const writer = await CheckpointWriter.create({ source, out: join(parent, 'out'), signal: controller.signal });
    controller.abort();
    await writer.queue('a', new Uint8Array(24)).catch(() => undefined);
    expect(await failure(writer.finish())).toMatchObject({ code: 'ABORTED' });
    await writer.abort();
    expect(await readdir(parent)).toEqual([]);
    await source.close();
  });
});

describe('calls that are wrong', () => {
  test('unknown tensors, other lengths, a second time, after the end', async () => {
    const folder = await modelFolder();
    const source = await Checkpoint.open(folder);
    const out = join(await temporaryFolder(), 'out');
    const writer = await CheckpointWriter.create({ source, out });
    expect(await failure(writer.write('z', new Uint8Array(1)))).toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect((await failure(writer.write('a', new Uint8Array(23)))).message).toContain('Uint8Array of 24 bytes');
    await writer.write('a', new Uint8Array(24));
    expect((await failure(writer.write('a', new Uint8Array(24)))).message).toBe('Tensor "a" was written already');
    await writer.finish();
    expect(await failure(writer.write('b', new Uint8Array(10)))).toMatchObject({ code: 'DISPOSED' });
    expect(await failure(writer.finish())).toMatchObject({ code: 'DISPOSED' });
    await writer.abort();
    expect(await readdir(out)).toContain('model.safetensors');
    await source.close();
  });

  test.each(['model.safetensors', 'config.json', '../x', 'a/b', '..', ''])('an extra file %j', async (name) => {
    const source = await Checkpoint.open(await modelFolder());
    const parent = await temporaryFolder();
    const writer = await CheckpointWriter.create({ source, out: join(parent, 'out') });
    expect(await failure(writer.finish({ [name]: '{}' }))).toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(await readdir(parent)).toEqual([]);
    await source.close();
  });
});

describe('runs that do not reach their end leave nothing under the final name', () => {
  test('an abort, and a signal during finish', async () => {
    const source = await Checkpoint.open(await modelFolder());
    const parent = await temporaryFolder();
    const first = await CheckpointWriter.create({ source, out: join(parent, 'out') });
    expect(await readdir(parent)).toHaveLength(1);
    await first.abort();
    expect(await readdir(parent)).toEqual([]);

    const controller = new AbortController();
    const second = await CheckpointWriter.create({ source, out: join(parent, 'out'), signal: controller.signal });
    const finishing = failure(second.finish());
    controller.abort();
    expect(await finishing).toMatchObject({ code: 'ABORTED' });
    expect(await readdir(parent)).toEqual([]);
    await source.close();
  });

  test('the final name taken meanwhile: what stands there is kept', async () => {
    const source = await Checkpoint.open(await modelFolder());
    const parent = await temporaryFolder();
    const out = join(parent, 'out');
    const writer = await CheckpointWriter.create({ source, out });
    await mkdir(out);
    await writeFile(join(out, 'other'), 'x');
    expect(await failure(writer.finish())).toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(await readdir(parent)).toEqual(['out']);
    expect(await readdir(out)).toEqual(['other']);
    await source.close();
  });

  test('a shard replaced during the run', async () => {
    const folder = await modelFolder();
    const other = await modelFolder({ shards: { 'model.safetensors': [randomTensor('a', 'F32', [99], 396)] } });
    const source = await Checkpoint.open(folder);
    const parent = await temporaryFolder();
    const writer = await CheckpointWriter.create({ source, out: join(parent, 'out') });
    await rename(join(other, 'model.safetensors'), join(folder, 'model.safetensors'));
    const result = await failure(writer.finish());
    expect(result).toMatchObject({
      code: 'INVALID_CHECKPOINT',
      message: expect.stringContaining('was replaced while it was being read'),
    });
    expect(await readdir(parent)).toEqual([]);
    await source.close();
  });

  test('a full disk', async () => {
    const parent = await temporaryFolder();
    const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', parent]).status === 0;
    const folder = await modelFolder({
      shards: { 'model.safetensors': [randomTensor('a', 'U8', [1 << 20], 1 << 20)] },
    });
    // Without the right to mount, a limit on the size of files gives the same path another error.
    const script = `
      const { Checkpoint } = await import('${lib}folder.js');
      const { CheckpointWriter } = await import('${lib}writer.js');
      const source = await Checkpoint.open(process.argv[1]);
      try {
        const writer = await CheckpointWriter.create({ source, out: process.argv[2] });
        await writer.finish();
      } catch (error) { console.log(error.code, error.message); }`;
    const command = `${mounted ? '' : 'ulimit -f 200; '}trap '' XFSZ; exec "$@"`;
    const node = [process.execPath, '--input-type=module', '-e', script, folder, join(parent, 'out')];
    const run = spawnSync('bash', ['-c', command, 'bash', ...node], { encoding: 'utf8' });
    const left = await readdir(parent);
    if (mounted) spawnSync('umount', [parent]);
    expect(run.stdout).toMatch(mounted ? /^FILE_SYSTEM .*no space left on device/ : /^FILE_SYSTEM .*file too large/);
    expect(left).toEqual([]);
  });

  test('kill -9 at any moment: the final name is absent or complete', async () => {
    const size = 24 << 20;
    const folder = await modelFolder({
      shards: { 'model.safetensors': [randomTensor('a', 'U8', [size], size)] },
    });
    const script = `
      const { Checkpoint } = await import('${lib}folder.js');
      const { CheckpointWriter } = await import('${lib}writer.js');
      const source = await Checkpoint.open(process.argv[1]);
      console.log('begin');
      const writer = await CheckpointWriter.create({ source, out: process.argv[2] });
      await writer.finish();
      console.log('end');
      setInterval(() => {}, 1000);`;
    const expected = await readFile(join(folder, 'model.safetensors'));
    const seen = { absent: 0, complete: 0 };
    for (const delay of [0, 2, 5, 10, 20, 40, 80, Number.POSITIVE_INFINITY]) {
      const parent = await realpath(await temporaryFolder());
      const out = join(parent, 'out');
      const child = spawn(process.execPath, ['--input-type=module', '-e', script, folder, out]);
      const killed = new Promise((resolve) => child.on('exit', resolve));
      child.stdout.on('data', (data) => {
        if (String(data).includes('end') || delay === 0) child.kill('SIGKILL');
        else if (Number.isFinite(delay)) setTimeout(() => child.kill('SIGKILL'), delay);
      });
      await killed;
      const names = (await readdir(parent)).filter((name) => !name.startsWith('.'));
      if (names.length === 0) seen.absent++;
      else {
        expect(names).toEqual([basename(out)]);
        expect(expected.equals(await readFile(join(out, 'model.safetensors')))).toBe(true);
        seen.complete++;
      }
      // What a killed run left does not stand in the way of the next.
      await rewrite(folder, out, {}, true);
      expect(expected.equals(await readFile(join(out, 'model.safetensors')))).toBe(true);
    }
    expect(seen.absent).toBeGreaterThan(0);
    expect(seen.complete).toBeGreaterThan(0);
  });
});
