import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { Agent, type IncomingMessage, request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
// @ts-expect-error: JavaScript
import { Jobs } from '../examples/server/jobs.mjs';
import { SafetensorsFile, writeSafetensors } from '../src/checkpoint/safetensors.js';
import { pruneLayer } from '../src/pruning/prune-layer.js';
import { syntheticLayer } from './helpers/layers.js';

// The example as its README starts it, on the compiled package.
const script = fileURLToPath(new URL('../examples/server/server.mjs', import.meta.url));
const model = fileURLToPath(new URL('../models/union-4m', import.meta.url));
const maxBody = 1 << 20;

let scratch: string;
let server: ChildProcess;
let address: string;
let stderr = '';

/** A server, and where it listens. */
async function start(args: string[], onLog: (text: string) => void = () => {}): Promise<[ChildProcess, string]> {
  const child = spawn(process.execPath, [script, ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  const listening = await new Promise<string>((resolve, reject) => {
    child.stderr!.setEncoding('utf8').on('data', (data) => {
      onLog(data);
      said += data;
      const found = /listening on (http:[^"]+)/.exec(said);
      if (found) resolve(found[1]!);
    });
    child.on('exit', () => reject(new Error(said)));
  });
  return [child, listening];
}

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'alps-server-test-'));
  const models = join(scratch, 'models');
  await cp(model, join(models, 'union-4m'), { recursive: true });
  await mkdir(join(models, 'broken'));
  await writeFile(join(models, 'broken', 'config.json'), '{"model_type":"llama"}');
  await mkdir(join(scratch, 'secret'));
  await symlink(join(scratch, 'secret'), join(models, 'link'));
  const args = ['--port', '0', '--models', models, '--texts', model, '--device', 'cpu', '--concurrency', '1'];
  const limits = [
    '--max-queued',
    '2',
    '--max-body',
    `${maxBody}`,
    '--memory-budget',
    `${1 << 26}`,
    '--max-uploads',
    '3',
  ];
  [server, address] = await start([...args, ...limits], (data) => (stderr += data));
});
afterAll(async () => {
  server.kill('SIGKILL');
  await rm(scratch, { recursive: true, force: true });
});

type Json = Record<string, unknown>;

async function call(
  method: string,
  path: string,
  body?: Uint8Array | string | Json,
  headers: Record<string, string> = {},
) {
  const plain = body === undefined || typeof body === 'string' || ArrayBuffer.isView(body);
  const sent = plain ? (body as string | Uint8Array<ArrayBuffer> | undefined) : JSON.stringify(body);
  const response = await fetch(address + path, { method, headers, ...(sent === undefined ? {} : { body: sent }) });
  return { status: response.status, headers: response.headers, body: (await response.json()) as Json };
}

const refused = (status: number, code: string, message = '') => ({
  status,
  body: { code, message: expect.stringContaining(message) },
});

async function upload(name: string, tensors: Record<string, [shape: number[], values: Float32Array]>) {
  const path = join(scratch, name);
  const list = Object.entries(tensors).map(([tensor, [shape, { buffer, byteOffset, byteLength }]]) => ({
    name: tensor,
    dtype: 'F32' as const,
    shape,
    bytes: new Uint8Array(buffer, byteOffset, byteLength),
  }));
  await writeSafetensors(path, list);
  return readFile(path);
}

const { weight, gram, activations, m, n, shape } = syntheticLayer(40, 24);
const good = () => upload('good.safetensors', { weight: [shape, weight], gram: [[n, n], gram] });
/** One whose job does not end by itself soon. */
const long = async () => {
  const size = 320;
  const identity = new Float32Array(size * size);
  for (let i = 0; i < size; i++) identity[i * size + i] = 1 + (i % 5);
  return upload('long.safetensors', {
    weight: [[size, size], Float32Array.from({ length: size * size }, (_, i) => Math.sin(i))],
    gram: [[size, size], identity],
  });
};

/** The events of a job until its end. */
async function events(id: unknown, headers: Record<string, string> = {}): Promise<{ id: number; data: Json }[]> {
  const response = await fetch(`${address}/jobs/${id}/events`, { headers });
  expect(response.headers.get('content-type')).toBe('text/event-stream');
  const blocks = (await response.text()).split('\n\n').filter((block) => block.startsWith('id: '));
  return blocks.map((block) => {
    const [, number, type, data] = /^id: (\d+)\nevent: (\S+)\ndata: (.*)$/.exec(block)!;
    const parsed = JSON.parse(data!) as Json;
    expect(parsed.type).toBe(type);
    return { id: Number(number), data: parsed };
  });
}

const types = async (id: unknown) => (await events(id)).map(({ data }) => data.type);

describe('a layer', () => {
  test('is uploaded, followed, and fetched: the same bits as pruneLayer gives', async () => {
    const posted = await call('POST', '/layers?sparsity=0.6&name=q', await good());
    expect(posted).toMatchObject({ status: 202, body: { kind: 'layer', id: expect.any(String) } });
    const { id } = posted.body;
    expect(posted.headers.get('location')).toBe(`/jobs/${id}`);
    expect(await types(id)).toEqual(['queued', 'started', 'done']);
    const expected = await pruneLayer({ weight, shape, gram, sparsity: 0.6, device: 'cpu' });
    expect((await call('GET', `/jobs/${id}`)).body).toMatchObject({
      state: 'done',
      summary: { kept: expected.kept, sparsity: expected.sparsity, error: expected.error },
    });
    const result = await fetch(`${address}/jobs/${id}/result`);
    const path = join(scratch, 'result.safetensors');
    await writeFile(path, new Uint8Array(await result.arrayBuffer()));
    const file = await SafetensorsFile.open(path);
    expect(new Float32Array((await file.read('weight')).buffer)).toEqual(expected.weight);
    expect([...(await file.read('mask'))]).toEqual([...expected.mask]);
    expect(file.tensors.get('mask')!.shape).toEqual([m, n]);
    await file.close();
  });

  test('from activations, N:M, by another method', async () => {
    const body = await upload('x.safetensors', { weight: [shape, weight], activations: [[4 * n, n], activations] });
    const { id } = (await call('POST', '/layers?keep=2&of=4&method=wanda&priority=3&key=me', body)).body;
    expect(await types(id)).toContain('done');
    expect((await call('GET', `/jobs/${id}`)).body).toMatchObject({ summary: { kept: (m * n) / 2 } });
  });

  test('events from where a client has seen them', async () => {
    const { id } = (await call('POST', '/layers?sparsity=0.5', await good())).body;
    const all = await events(id);
    expect(await events(id, { 'last-event-id': `${all[0]!.id}` })).toEqual(all.slice(1));
  });

  test('that fails says why', async () => {
    const body = await upload('nan.safetensors', {
      weight: [shape, weight.map(() => Number.NaN)],
      gram: [[n, n], gram],
    });
    const { id } = (await call('POST', '/layers?sparsity=0.5', body)).body;
    expect((await events(id)).at(-1)!.data).toMatchObject({ type: 'failed', error: { code: 'NOT_FINITE' } });
    expect(await call('GET', `/jobs/${id}/result`)).toMatchObject(refused(409, 'NOT_FINITE'));
  });

  test.each<[string, string, () => Promise<Uint8Array | string>, number, string, string]>([
    ['no sparsity', '', good, 400, 'INVALID_ARGUMENT', 'sparsity'],
    ['a wrong sparsity', '?sparsity=7', good, 400, 'INVALID_ARGUMENT', 'received 7'],
    ['a sparsity that is no number', '?sparsity=half', good, 400, 'INVALID_ARGUMENT', 'sparsity'],
    ['an unknown option', '?sparsity=0.5&out=/etc', good, 400, 'INVALID_ARGUMENT', 'Unknown option "out"'],
    ['an option twice', '?sparsity=0.5&sparsity=0.6', good, 400, 'INVALID_ARGUMENT', 'twice'],
    ['no body', '?sparsity=0.5', async () => '', 400, 'INVALID_CHECKPOINT', 'The body'],
    ['another file', '?sparsity=0.5', async () => 'hello, world', 400, 'INVALID_CHECKPOINT', 'The body'],
    ['a file cut short', '?sparsity=0.5', async () => (await good()).subarray(0, 900), 400, 'INVALID_CHECKPOINT', ''],
    [
      'no Gram matrix',
      '?sparsity=0.5',
      () => upload('w.safetensors', { weight: [shape, weight] }),
      400,
      'INVALID_ARGUMENT',
      'exactly one of the tensors "gram" and "activations"',
    ],
    [
      'a Gram matrix of another layer',
      '?sparsity=0.5',
      () => upload('g.safetensors', { weight: [shape, weight], gram: [[m, m], new Float32Array(m * m)] }),
      400,
      'INVALID_ARGUMENT',
      'Expected F32 [rows, inputs], 24 inputs, for "gram"',
    ],
    ['a pattern that does not fit', '?keep=2&of=5', good, 400, 'INVALID_ARGUMENT', 'a width that 5 divides'],
    ['DSnoT from a Gram matrix', '?sparsity=0.5&method=dsnot', good, 400, 'INVALID_ARGUMENT', '"activations"'],
    [
      'no inputs',
      '?sparsity=0.5',
      () => upload('x0.safetensors', { weight: [shape, weight], activations: [[0, n], new Float32Array(0)] }),
      400,
      'INVALID_ARGUMENT',
      'Expected an integer of at least 1 for tokens',
    ],
  ])('%s is refused', async (_name, query, body, status, code, message) => {
    expect(await call('POST', `/layers${query}`, await body())).toMatchObject(refused(status, code, message));
  });

  test('a body that is too large is refused, by its length or while it comes', async () => {
    const body = new Uint8Array(maxBody + 1);
    expect(await call('POST', '/layers?sparsity=0.5', body)).toMatchObject(refused(413, 'TOO_LARGE'));
    const stream = new ReadableStream({
      start(controller) {
        for (let i = 0; i < 20; i++) controller.enqueue(body.subarray(0, 1 << 16));
        controller.close();
      },
    });
    const init = { method: 'POST', body: stream, duplex: 'half' } as RequestInit;
    const response = await fetch(`${address}/layers?sparsity=0.5`, init);
    expect({ status: response.status, body: await response.json() }).toMatchObject(refused(413, 'TOO_LARGE'));
  });

  test('a refusal before the end of a short body leaves the connection to the next request', async () => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    const options = { agent, method: 'POST', headers: { 'content-length': 1 << 19 } };
    const refusal = request(`${address}/layers?out=x`, options);
    refusal.write(new Uint8Array(1 << 18));
    const [response] = (await once(refusal, 'response')) as [IncomingMessage];
    expect({ status: response.statusCode, connection: response.headers.connection }).toEqual({
      status: 400,
      connection: 'keep-alive',
    });
    response.resume();
    refusal.end(new Uint8Array(1 << 18));
    await once(refusal, 'close');
    const next = request(`${address}/healthz`, { agent }).end();
    const [health] = (await once(next, 'response')) as [IncomingMessage];
    expect({ status: health.statusCode, reused: next.reusedSocket }).toEqual({ status: 200, reused: true });
    health.resume();
    await once(health, 'end');
    agent.destroy();
  });

  test('one that the memory budget never has room for is refused', async () => {
    const size = 8000;
    const body = await upload('large.safetensors', {
      weight: [[1, size], new Float32Array(size)],
      activations: [[1, size], new Float32Array(size)],
    });
    expect(await call('POST', '/layers?sparsity=0.5', body)).toMatchObject(refused(413, 'OUT_OF_MEMORY', 'budget'));
  });
});

describe('cancelling and a full queue', () => {
  test('what runs and what waits can be stopped; beyond the limit 429', async () => {
    const slow = '/layers?sparsity=0.7&schedule=alps';
    const body = await long();
    const posted = await Promise.all([0, 1, 2].map(() => call('POST', slow, body)));
    expect(posted.map(({ status }) => status)).toEqual([202, 202, 202]);
    const full = await call('POST', slow, body);
    const ids = posted.map(({ body: { id } }) => id);
    const states = await Promise.all(ids.map(async (id) => (await call('GET', `/jobs/${id}`)).body.state));
    // On a fast machine the first one may be done before the fourth came.
    if (!states.includes('done')) {
      expect(full).toMatchObject(refused(429, 'QUEUE_FULL'));
      expect(full.headers.get('retry-after')).toBe('5');
    } else if (full.status === 202) ids.push(full.body.id);
    expect([200, 409]).toContain((await fetch(`${address}/jobs/${ids[0]}/result`)).status);
    for (const id of ids.reverse()) expect([202, 409]).toContain((await call('DELETE', `/jobs/${id}`)).status);
    for (const id of ids) expect(['cancelled', 'done']).toContain((await types(id)).at(-1));
    const last = ids[0];
    expect((await call('GET', `/jobs/${last}`)).body).toMatchObject({ state: 'cancelled', error: { code: 'ABORTED' } });
    expect(await call('GET', `/jobs/${last}/result`)).toMatchObject(refused(409, 'ABORTED'));
    expect(await call('DELETE', `/jobs/${last}`)).toMatchObject(refused(409, 'ENDED'));
  });
});

test('uploads that arrive take places: no more of them than the queue has room for', async () => {
  const half = () => {
    const upload = request(`${address}/layers?sparsity=0.5`, {
      method: 'POST',
      headers: { 'content-length': 1 << 19 },
    });
    const answer = once(upload, 'response').then(
      ([{ statusCode }]) => statusCode as number,
      () => undefined,
    );
    upload.on('error', () => {}).write(new Uint8Array(1 << 10));
    return { upload, answer };
  };
  const uploads = Array.from({ length: 4 }, half);
  expect(await Promise.race(uploads.map(({ answer }) => answer))).toBe(429);
  for (const { upload } of uploads) upload.destroy();
  expect((await Promise.all(uploads.map(({ answer }) => answer))).filter(Boolean)).toEqual([429]);
  let posted = await call('POST', '/layers?sparsity=0.5', await good());
  while (posted.status === 429) posted = await call('POST', '/layers?sparsity=0.5', await good());
  expect(posted.status).toBe(202);
  await events(posted.body.id);
});

describe('uploads that do not come', () => {
  let own: ChildProcess;
  let at: string;
  beforeAll(async () => {
    const limits = ['--concurrency', '1', '--max-queued', '4', '--stall-timeout', '1'];
    [own, at] = await start(['--port', '0', '--device', 'cpu', ...limits]);
  });
  afterAll(() => own.kill('SIGKILL'));

  /** The answer to a body of which ten bytes come, from an address of this machine. */
  async function stalled(path: string, localAddress: string) {
    const sent = request(at + path, { method: 'POST', localAddress, headers: { 'content-length': 1000 } });
    sent.on('error', () => {}).write(new Uint8Array(10));
    const [response] = (await once(sent, 'response')) as [IncomingMessage];
    let text = '';
    for await (const chunk of response) text += chunk;
    return { status: response.statusCode, headers: response.headers, body: JSON.parse(text) as Json };
  }

  test('are given up, those of one address beyond half of the places at once; then their places are free', async () => {
    const answers = await Promise.all(
      [2, 2, 2, 2, 2, 3].map((host) => stalled('/layers?sparsity=0.5', `127.0.0.${host}`)),
    );
    const statuses = answers.map(({ status }) => status);
    expect([...statuses.slice(0, 5).sort(), statuses[5]]).toEqual([408, 408, 408, 429, 429, 408]);
    const message = 'Nothing of the body came for 1 s';
    for (const { status, headers, body } of answers) {
      if (status === 408) expect([headers.connection, body]).toEqual(['close', { code: 'STALLED', message }]);
      else expect([headers['retry-after'], body.code]).toEqual(['5', 'TOO_MANY_UPLOADS']);
    }
    const posted = await fetch(`${at}/layers?sparsity=0.5`, { method: 'POST', body: await good() });
    expect(posted.status).toBe(202);
  });

  test('the body of a model neither', async () => {
    expect(await stalled('/models', '127.0.0.1')).toMatchObject(refused(408, 'STALLED'));
  });
});

test('the jobs that ended last are kept, not those that began last', async () => {
  const jobs = new Jobs(join(scratch, 'jobs'), 1);
  const end = async () => {
    const job = await jobs.open('layer');
    let finish = () => {};
    await jobs.start(job, ({ onEvent }: { onEvent(event: Json): void }) => {
      onEvent({ type: 'queued' });
      return new Promise<object>((resolve) => (finish = () => resolve({})));
    });
    return {
      id: job.id,
      finish: () => {
        finish();
        return new Promise(setImmediate);
      },
    };
  };
  const [long, short] = [await end(), await end()];
  await short.finish();
  await long.finish();
  expect(jobs.find(long.id).state).toBe('done');
  expect(() => jobs.find(short.id)).toThrow('not kept');
});

test.each(['--keep', '--max-body', '--max-uploads', '--stall-timeout'])(
  '%s that is no number is refused: it would be no limit',
  async (option) => {
    const child = spawn(process.execPath, [script, '--port', '0', option, '1G'], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let text = '';
    child.stderr.on('data', (data) => (text += data));
    const [status] = await once(child, 'close');
    expect({ status, text }).toEqual({ status: 1, text: expect.stringContaining(`for ${option} but received "1G"`) });
  },
);

describe('a model', () => {
  const calibration = { text: 'calibration.txt.gz', windows: 4, length: 64 };

  test('is named, followed layer by layer, and its files are fetched', async () => {
    const { status, body } = await call('POST', '/models', { model: 'union-4m', sparsity: 0.5, calibration });
    expect(status).toBe(202);
    const seen = await types(body.id);
    expect(seen.filter((type) => type === 'layer')).toHaveLength(35);
    expect(seen.at(-1)).toBe('done');
    const report = await call('GET', `/jobs/${body.id}/result`);
    expect(report.body.layers).toHaveLength(35);
    const config = await fetch(`${address}/jobs/${body.id}/result?file=config.json`);
    expect(await config.text()).toBe(await readFile(join(model, 'config.json'), 'utf8'));
    const path = `/jobs/${body.id}/result?file=`;
    expect(await call('GET', `${path}none`)).toMatchObject(refused(404, 'NOT_FOUND'));
    expect(await call('GET', `${path}${encodeURIComponent('../upload')}`)).toMatchObject(
      refused(400, 'INVALID_ARGUMENT'),
    );
  });

  test.each<[string, Json | string, number, string, string]>([
    ['no JSON', '{', 400, 'INVALID_ARGUMENT', 'The body is not JSON'],
    ['a list', '[]', 400, 'INVALID_ARGUMENT', 'Expected a JSON object'],
    ['no name', { sparsity: 0.5 }, 400, 'INVALID_ARGUMENT', 'plain name of a model'],
    ['a path', { model: '../secret', sparsity: 0.5 }, 400, 'INVALID_ARGUMENT', 'plain name of a model'],
    ['an absolute path', { model: '/etc', sparsity: 0.5 }, 400, 'INVALID_ARGUMENT', 'plain name of a model'],
    ['a link that leads out', { model: 'link', sparsity: 0.5 }, 404, 'NOT_FOUND', 'no model link'],
    ['a name that is not there', { model: 'none', sparsity: 0.5 }, 404, 'NOT_FOUND', 'no model none'],
    ['an output folder', { model: 'union-4m', out: '/tmp/x', sparsity: 0.5 }, 400, 'INVALID_ARGUMENT', '"out"'],
    ['no calibration', { model: 'union-4m', sparsity: 0.5 }, 400, 'INVALID_ARGUMENT', 'calibration'],
    [
      'a text elsewhere',
      { model: 'union-4m', sparsity: 0.5, calibration: { text: '/etc/passwd' } },
      400,
      'INVALID_ARGUMENT',
      'plain name of a text',
    ],
    [
      'a calibration that is a number',
      { model: 'union-4m', sparsity: 0.5, calibration: 5 },
      400,
      'INVALID_ARGUMENT',
      'calibration',
    ],
    [
      'one that is a list',
      { model: 'union-4m', sparsity: 0.5, calibration: [] },
      400,
      'INVALID_ARGUMENT',
      'calibration',
    ],
    ['a wrong pattern', { model: 'union-4m', pattern: { keep: 5, of: 4 }, calibration }, 400, 'INVALID_ARGUMENT', ''],
    [
      'a folder that is no model',
      { model: 'broken', method: 'mp', sparsity: 0.5 },
      400,
      'INVALID_CHECKPOINT',
      'broken',
    ],
  ])('%s is refused', async (_name, body, status, code, message) => {
    const answer = await call('POST', '/models', body);
    expect(answer).toMatchObject(refused(status, code, message));
    expect(String(answer.body.message)).not.toContain(scratch);
  });

  test('a body that is too large is refused', async () => {
    expect(await call('POST', '/models', ' '.repeat(maxBody + 1))).toMatchObject(refused(413, 'TOO_LARGE'));
  });
});

describe('the rest', () => {
  test.each([
    ['GET', '/', 404, 'NOT_FOUND'],
    ['GET', '//', 404, 'NOT_FOUND'],
    ['GET', '/jobs/../../etc/passwd', 404, 'NOT_FOUND'],
    ['GET', '/jobs/none', 404, 'NOT_FOUND'],
    ['GET', '/jobs/none/events', 404, 'NOT_FOUND'],
    ['DELETE', '/jobs/none', 404, 'NOT_FOUND'],
    ['GET', '/layers', 405, 'METHOD_NOT_ALLOWED'],
    ['PUT', '/jobs/none', 405, 'METHOD_NOT_ALLOWED'],
  ])('%s %s: %d', async (method, path, status, code) => {
    expect(await call(method, path)).toMatchObject(refused(status, code));
  });

  test('health and metrics', async () => {
    expect(await call('GET', '/healthz')).toMatchObject({ status: 200, body: { ok: true, running: 0, queued: 0 } });
    const response = await fetch(`${address}/metrics`);
    expect(response.headers.get('content-type')).toContain('text/plain; version=0.0.4');
    const lines = (await response.text()).trimEnd().split('\n');
    for (const line of lines)
      expect(line).toMatch(/^(# (HELP|TYPE) \w+ .+|\w+({\w+="[^"]*"(,\w+="[^"]*")*})? -?[\d.e+-]+)$/);
    const value = (name: string) =>
      Number(
        lines
          .find((line) => line.startsWith(`${name} `))
          ?.split(' ')
          .at(-1),
      );
    expect(value('alps_jobs_total{kind="model",outcome="done"}')).toBe(1);
    expect(value('alps_jobs_total{kind="layer",outcome="done"}')).toBeGreaterThanOrEqual(3);
    expect(value('alps_device_bytes{state="used"}')).toBe(0);
    expect(value('alps_job_seconds_bucket{le="+Inf"}')).toBe(value('alps_job_seconds_count'));
  });

  test('SIGTERM stops what runs and ends with 0', async () => {
    await call('POST', '/layers?sparsity=0.7&schedule=alps', await long());
    const ended = new Promise((resolve) => server.on('exit', (code, signal) => resolve({ code, signal })));
    server.kill('SIGTERM');
    expect(await ended).toEqual({ code: 0, signal: null });
    expect(stderr).not.toContain('a request failed');
  });
});
