// node examples/server/server.mjs --models FOLDER [--texts FOLDER] [--port 8080] [--host 127.0.0.1] ...
// Pruning over HTTP with Node's own server: README.md has the endpoints, with curl lines.
import { createReadStream } from 'node:fs';
import { mkdtemp, realpath, rm, stat } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { parseArgs } from 'node:util';
import { AlpsError, estimateLayerBytes, JobQueue, version, writeSafetensors } from 'alps-prune';
import { HttpError, hide, responseOf } from './errors.mjs';
import { isEnded, Jobs } from './jobs.mjs';
import { Metrics } from './metrics.mjs';
import { bodyToFile, bodyToJson, isObject, openLayer, queryOptions, readLayer, underRoot } from './requests.mjs';

const { values } = parseArgs({
  options: {
    port: { type: 'string', default: '8080' },
    host: { type: 'string', default: '127.0.0.1' },
    models: { type: 'string' },
    texts: { type: 'string' },
    device: { type: 'string', default: 'auto' },
    concurrency: { type: 'string', default: '2' },
    'max-queued': { type: 'string', default: '100' },
    'max-body': { type: 'string', default: `${1 << 30}` },
    'max-uploads': { type: 'string' },
    'stall-timeout': { type: 'string', default: '10' },
    'memory-budget': { type: 'string' },
    keep: { type: 'string', default: '100' },
  },
});

/** A limit that is no number would be none. */
function limit(name, least = 0, most = Number.MAX_SAFE_INTEGER) {
  const value = Number(values[name]);
  if (values[name] !== '' && Number.isSafeInteger(value) && value >= least && value <= most) return value;
  const range = least === 0 ? '' : ` of at least ${least}`;
  throw new AlpsError('INVALID_ARGUMENT', `Expected an integer${range} for --${name} but received "${values[name]}"`);
}

const metrics = new Metrics();
const log = (level) => (facts, message) =>
  process.stderr.write(
    `${JSON.stringify({ level, time: Date.now(), msg: message, ...facts, err: facts.err?.message })}\n`,
  );
const logger = { debug() {}, info: log('info'), warn: log('warn'), error: log('error') };
const queue = new JobQueue({
  device: values.device,
  concurrency: Number(values.concurrency),
  maxQueued: Number(values['max-queued']),
  ...(values['memory-budget'] ? { memoryBudget: Number(values['memory-budget']) } : {}),
  logger,
  onEvent: (event) => metrics.job(event),
});
const [keep, maxBody] = [limit('keep'), limit('max-body')];
// Timers take 31 bits of milliseconds.
const stall = limit('stall-timeout', 1, 2_000_000);
// One client that is slow, or means harm, leaves room for others.
const halfOfPlaces = Math.ceil((queue.maxQueued + queue.concurrency) / 2);
const maxUploads = values['max-uploads'] === undefined ? halfOfPlaces : limit('max-uploads', 1);
const work = await mkdtemp(join(await realpath(tmpdir()), 'alps-server-'));
for (const folder of [work, values.models, values.texts]) if (folder) hide(await realpath(folder));
const jobs = new Jobs(work, keep);
const maxJson = Math.min(maxBody, 1 << 20);
const maxSkipped = 1 << 20;

function sendJson(response, status, body, headers = {}) {
  response.writeHead(status, { 'content-type': 'application/json', ...headers });
  response.end(`${JSON.stringify(body)}\n`);
}

/** Takes a job with all that `prepare` needs for it, or leaves nothing of it. */
async function take(response, kind, prepare) {
  const job = await jobs.open(kind);
  try {
    await jobs.start(job, await prepare(job));
  } catch (error) {
    await jobs.drop(job);
    throw error;
  }
  sendJson(response, 202, Jobs.describe(job), { location: `/jobs/${job.id}` });
}

/** Layers that are not queued yet: their bodies are being read. All, and by their clients' addresses. */
let arriving = 0;
const arrivingFrom = new Map();

/** Counts an upload until the function that it gives is called. */
function countUpload(address) {
  const before = arrivingFrom.get(address) ?? 0;
  if (before >= maxUploads) {
    const text = `${before} uploads from this address are on their way`;
    throw new HttpError(429, 'TOO_MANY_UPLOADS', text, { 'retry-after': '5' });
  }
  arriving++;
  arrivingFrom.set(address, before + 1);
  return () => {
    arriving--;
    const left = arrivingFrom.get(address) - 1;
    if (left === 0) arrivingFrom.delete(address);
    else arrivingFrom.set(address, left);
  };
}

/** A full queue is told before the body is read; `taken` are the places of those whose bodies still come. */
function refuseWhenFull(taken = 0) {
  const { running, queued } = queue.load;
  const free = queued === 0 ? queue.concurrency - running : 0;
  if (taken < queue.maxQueued - queued + free) return;
  const text = taken === 0 ? `${queued} jobs wait` : `${queued} jobs wait, and ${taken} arrive`;
  throw new AlpsError('QUEUE_FULL', `The queue is full: ${text}`);
}

async function postLayer({ request, response, url }) {
  refuseWhenFull(arriving);
  const { layer: options, job: jobOptions } = queryOptions(url.searchParams);
  const prepare = async (job) => {
    const upload = join(job.folder, 'upload.safetensors');
    await bodyToFile(request, upload, maxBody, stall);
    const size = await openLayer(upload);
    if (options.method === 'dsnot' && size.tokens === undefined)
      throw new AlpsError('INVALID_ARGUMENT', 'Expected the tensor "activations" for method dsnot, not "gram"');
    const bytes = estimateLayerBytes({ ...size, ...options });
    return async (given) => {
      const read = async (signal) => ({ ...(await readLayer(upload, signal)), ...options });
      const { weight, mask, ...summary } = await queue.pruneLayer(read, { ...jobOptions, bytes, ...given });
      const tensor = (name, dtype, { buffer }) => ({ name, dtype, shape: size.shape, bytes: new Uint8Array(buffer) });
      const tensors = [tensor('weight', 'F32', weight), tensor('mask', 'U8', mask)];
      await writeSafetensors(join(job.folder, 'result.safetensors'), tensors);
      await rm(upload);
      return summary;
    };
  };
  const arrived = countUpload(request.socket.remoteAddress);
  await take(response, 'layer', prepare).finally(arrived);
}

const modelOptions = ['sparsity', 'pattern', 'method', 'refit', 'schedule', 'precision', 'propagation'];

async function postModel({ request, response }) {
  refuseWhenFull();
  const { model, calibration, priority, key, ...rest } = await bodyToJson(request, maxJson, stall);
  const unknown = Object.keys(rest).find((name) => !modelOptions.includes(name));
  if (unknown !== undefined) throw new AlpsError('INVALID_ARGUMENT', `Unknown option ${JSON.stringify(unknown)}`);
  if (calibration !== undefined && !isObject(calibration))
    throw new AlpsError('INVALID_ARGUMENT', `Expected an object for calibration: ${JSON.stringify(calibration)}`);
  const folder = await underRoot(values.models, model, 'model');
  const text = calibration?.text === undefined ? {} : { text: await underRoot(values.texts, calibration.text, 'text') };
  const options = { ...rest, model: folder, ...(calibration ? { calibration: { ...calibration, ...text } } : {}) };
  await take(response, 'model', async (job) => async (given) => {
    const jobOptions = {
      name: model,
      ...(priority === undefined ? {} : { priority }),
      ...(key === undefined ? {} : { key }),
    };
    const { layers: _layers, ...summary } = await queue.prune(
      { ...options, out: join(job.folder, 'model') },
      { ...jobOptions, ...given },
    );
    return summary;
  });
}

function getJob({ response, id }) {
  sendJson(response, 200, Jobs.describe(jobs.find(id)));
}

function deleteJob({ response, id }) {
  const job = jobs.find(id);
  if (isEnded(job)) throw new HttpError(409, 'ENDED', `The job is ${job.state} already`);
  job.controller.abort();
  sendJson(response, 202, Jobs.describe(job));
}

/** Server-sent events: what was, then what comes, until the job's end. A client that came back says what it has seen. */
function getEvents({ request, response, id }) {
  const job = jobs.find(id);
  const seen = Number(request.headers['last-event-id'] ?? 0) || 0;
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
  const write = ({ id: number, data }) => {
    response.write(`id: ${number}\nevent: ${data.type}\ndata: ${JSON.stringify(data)}\n\n`);
    if (response.writableLength > 1 << 20) response.destroy(); // a client that does not read
  };
  for (const entry of job.events) if (entry.id > seen) write(entry);
  if (isEnded(job)) return response.end();
  const alive = setInterval(() => response.write(': alive\n\n'), 15_000);
  // An ended response stays open as long as the client does not read it, or one before it on the connection has no end.
  const leave = () => {
    clearInterval(alive);
    job.emitter.off('event', write).off('end', end);
  };
  const end = () => {
    leave();
    response.end();
  };
  job.emitter.on('event', write).once('end', end);
  response.on('close', leave);
}

/** A layer: its safetensors file. A model: its pruning.json, or the file of its folder that `?file=` names. */
async function getResult({ response, url, id }) {
  const job = jobs.find(id);
  if (job.state === 'failed' || job.state === 'cancelled') return sendJson(response, 409, job.error);
  if (job.state !== 'done') throw new HttpError(409, 'NOT_DONE', `The job is ${job.state}`);
  const path =
    job.kind === 'layer'
      ? join(job.folder, 'result.safetensors')
      : await underRoot(join(job.folder, 'model'), url.searchParams.get('file') ?? 'pruning.json', 'file');
  const type = path.endsWith('.json') ? 'application/json' : 'application/octet-stream';
  const { size } = await stat(path);
  response.writeHead(200, { 'content-type': type, 'content-length': size });
  await pipeline(createReadStream(path), response);
}

function getHealth({ response }) {
  sendJson(response, closing ? 503 : 200, {
    ok: !closing,
    version,
    device: queue.device.info().details,
    ...queue.load,
  });
}

function getMetrics({ response }) {
  response.writeHead(200, { 'content-type': 'text/plain; version=0.0.4' });
  response.end(metrics.text(queue));
}

const routes = [
  ['POST', /^\/layers$/, postLayer],
  ['POST', /^\/models$/, postModel],
  ['GET', /^\/jobs\/([\w-]+)$/, getJob],
  ['DELETE', /^\/jobs\/([\w-]+)$/, deleteJob],
  ['GET', /^\/jobs\/([\w-]+)\/events$/, getEvents],
  ['GET', /^\/jobs\/([\w-]+)\/result$/, getResult],
  ['GET', /^\/healthz$/, getHealth],
  ['GET', /^\/metrics$/, getMetrics],
];

function urlOf(request) {
  try {
    return new URL(`http://server${request.url}`);
  } catch {
    throw new HttpError(400, 'BAD_REQUEST', 'The path is not valid');
  }
}

async function answer(request, response) {
  const url = urlOf(request);
  const there = routes.filter(([, path]) => path.test(url.pathname));
  if (there.length === 0) throw new HttpError(404, 'NOT_FOUND', 'There is nothing at this path');
  const route = there.find(([method]) => method === request.method);
  if (!route) {
    const allow = there.map(([method]) => method).join(', ');
    throw new HttpError(405, 'METHOD_NOT_ALLOWED', `This path takes ${allow}`, { allow });
  }
  const [, path, handle] = route;
  const id = path.exec(url.pathname)[1];
  await handle({ request, response, url, id });
}

const server = createServer((request, response) => {
  response.on('finish', () => metrics.request(request.method, response.statusCode));
  answer(request, response).catch((error) => {
    if ((request.destroyed && !request.complete) || error?.code === 'ERR_STREAM_PREMATURE_CLOSE') return; // the client is gone
    const { status, headers, body } = responseOf(error);
    if (status === 500) logger.error({ err: error, path: request.url }, 'a request failed');
    if (response.headersSent || response.destroyed) return response.destroy();
    // What is left of a refused body is read past when it is short: a connection that is closed on a client that still sends can cost it the
    // answer. Of a longer one nothing more is read, nor of one that does not come.
    const short = status !== 408 && Number(request.headers['content-length'] ?? Number.POSITIVE_INFINITY) <= maxSkipped;
    if (short) request.resume();
    sendJson(response, status, body, request.complete || short ? headers : { ...headers, connection: 'close' });
  });
});
server.requestTimeout = 300_000;

let closing = false;
async function close() {
  if (closing) return;
  closing = true;
  server.close();
  await queue.close({ cancel: true });
  server.closeAllConnections();
  await rm(work, { recursive: true, force: true });
}
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, close);

server.listen(Number(values.port), values.host, () => {
  const { address, port } = server.address();
  logger.info({ address, port, device: queue.device.info().details }, `listening on http://${address}:${port}`);
});
