import { dirname, resolve } from 'node:path';
import { allocate, type LayerBudget, type LayerSparsities, parseLayerSparsities } from './allocation/allocation.js';
import {
  type CalibrationOptions,
  type CalibrationReport,
  calibrationNames,
  calibrationReport,
  checkCalibration,
  loadCalibration,
} from './calibration/calibration.js';
import { Checkpoint } from './checkpoint/folder.js';
import { checkOutput, makeFolder } from './checkpoint/output-folder.js';
import type { Fingerprint } from './checkpoint/unfinished.js';
import { CheckpointWriter } from './checkpoint/writer.js';
import { fingerprint } from './compare/fingerprint.js';
import { type Device, type DeviceOptions, jobDeviceNames } from './device/device.js';
import { type DeviceChoice, describeDevices, openDevices, Team } from './device/team.js';
import {
  AlpsError,
  aborted,
  folderPath,
  invalidArgument,
  type Names,
  optionalFunction,
  optionsObject,
  throwIfAborted,
} from './errors.js';
import { calibrationKey, withOwnWindows } from './generation/own-windows.js';
import { type Logger, parseLogger } from './logger.js';
import { DecoderModel, type Precision } from './model/decoder.js';
import { knownModelTypes } from './model/families/index.js';
import { takesLargeChunks } from './model/memory.js';
import { version } from './package-version.js';
import { announcerOf, logPruneFailure } from './prune-events.js';
import {
  type DenseTarget,
  type DenseTargetOptions,
  denseTargetNames,
  parseDenseTarget,
} from './pruning/dense-target.js';
import {
  flag,
  isRowwise,
  onDevices,
  type ParsedPruningOptions,
  type PruningOptions,
  parsePruningOptions,
  pruningNames,
} from './pruning/options.js';
import { describePattern, keptWeights, type Pattern } from './pruning/pattern.js';
import { withPreset } from './pruning/preset.js';
import { listInside, optionsInside, recordInside, snapshot } from './snapshot.js';
import { type BlockReport, type LayerReport, type Propagation, pruneBlocks } from './traversal.js';
import { cannotRun, checkByNames, matricesByName, pruneByNames } from './unknown-model.js';

/** Options of {@link prune}. Give `model`, `out`, `sparsity` or `pattern`, and, except for magnitude pruning, `calibration`. */
export interface PruneOptions extends PruningOptions {
  /** Path of the model folder: config.json, tokenizer.json, safetensors. */
  model: string;
  /** Path of the folder to create. It appears under this name only when it is complete. */
  out: string;
  /** Text or token ids that the model reads while it is pruned. Optional for `method: 'magnitude'` without a refit; no errors are reported then. */
  calibration?: CalibrationOptions;
  /** Source of a layer's inputs. `sequential` (default): the pruned layers before it. `block`, as published: the still dense block. */
  propagation?: Propagation;
  /**
   * Whether layers also reproduce part of the dense model's activations, and not only the outputs of their own weights on the pruned model's
   * inputs. Needs a second pass of the tokens, through the dense model. Default true for `alps`, false for the other methods; see docs/quality.md.
   */
  denseTarget?: boolean | DenseTargetOptions;
  /**
   * Whether errors of each output are weighted by their effect in the block (on the next layer, or on the keys that a query meets) when the
   * support is chosen; see docs/algorithm.md. Default true for `alps`; possible with `sparsegpt`. No effect for N:M.
   */
  rowWeights?: boolean;
  /**
   * Whether the final norm is refitted to its outputs in the dense model. Needs a `denseTarget`, and is then true by default. Its gain, and its
   * bias if it has one, are the only values that change besides the pruned layers; models without a final norm stay as they are.
   */
  finalNorm?: boolean;
  /**
   * Sparsity of every layer by its name, from 0 to 1, rescaled so that all layers together have exactly `sparsity`: if these sparsities are too
   * high, all fall by the same amount; if they are too low, each layer keeps the same fraction of its kept weights. With an N:M `pattern` each
   * layer gets its own N, and together they keep at most what the pattern keeps. Default: the same sparsity for all layers.
   */
  allocation?: LayerSparsities;
  /**
   * A device name or an open {@link Device}, or a list of them. Default `auto`. Several devices, such as `['cuda:0', 'cuda:1']`, share the
   * calibration windows and the layers; there may be at most as many devices as windows. The result differs from that of one device only by the
   * order in which Gram matrices are summed. An open device keeps its own `threads` and `memoryLimit`.
   */
  device?: DeviceChoice;
  /** Threads that compute, on a processor given by name, from 1 to 1024. Default: all cores. GPUs ignore it; results do not depend on it. */
  threads?: number;
  /**
   * Bytes that tensors may take together on each device given by name; beyond that an allocation fails with `OUT_OF_MEMORY`. Default: 90 % of the
   * machine's or the GPU's memory.
   */
  memoryLimit?: number;
  /**
   * Number format of the products. `auto` (default): bfloat16 if the checkpoint is bfloat16 and all devices multiply it in hardware, else float32. See
   * also `mixedPrecision`.
   */
  precision?: Precision | 'auto';
  /** Whether an existing folder `out` may be replaced. Default false. A folder that holds the working folder, the program or this package is never replaced. */
  overwrite?: boolean;
  /**
   * Whether a call that is killed, aborted or fails can be resumed. The next call with `resume` then continues after the last finished block and
   * produces the same files. Until then the finished part stays beside `out` (`.NAME.unfinished`, `.NAME.unfinished.json`). A call whose model,
   * calibration tokens, options or version differ from those of the unfinished part is refused. Default false: nothing is left.
   */
  resume?: boolean;
  /** With `resume`: discard what an earlier call left and start over. Default false. */
  restart?: boolean;
  /** Aborts the call with `ABORTED`. */
  signal?: AbortSignal;
  /** Called for each step; must not throw. */
  onEvent?: (event: PruneEvent) => void;
  /** Receives each step and a failure. Default: none. */
  logger?: Logger;
}

export const pruneNames: Names<PruneOptions> = {
  ...pruningNames,
  ...jobDeviceNames,
  device: listInside(),
  model: true,
  out: true,
  calibration: optionsInside('calibration', calibrationNames),
  propagation: true,
  denseTarget: optionsInside('denseTarget', denseTargetNames),
  rowWeights: true,
  finalNorm: true,
  allocation: recordInside,
  precision: true,
  overwrite: true,
  resume: true,
  restart: true,
  signal: true,
  onEvent: true,
  logger: true,
};

/** The steps of {@link prune}, reported as they happen. */
export type PruneEvent =
  | {
      type: 'start';
      model: string;
      out: string;
      method: string;
      pattern: string;
      blocks: number;
      layers: number;
      /** For display; names and details of all devices if there are several. */
      device: string;
      precision: Precision;
    }
  /** With `ownWindows`: the share of their tokens that the model has written, from 0 to 1. */
  | { type: 'generate'; share: number }
  | { type: 'calibration'; windows: number; length: number; tokens: number; hash: string; note?: string }
  /** With `resume`: number of blocks that an earlier call finished; their `layer` events follow at once. */
  | { type: 'resume'; finished: number; blocks: number }
  | ({ type: 'layer' } & LayerReport)
  | ({ type: 'block'; blocks: number } & BlockReport)
  | { type: 'done'; out: string; sparsity: number; meanError: number | null; milliseconds: number };

/** Result of {@link prune}; also written to pruning.json. */
export interface PruneReport {
  version: string;
  method: string;
  /** The pattern for display: "70 % sparsity", "keeps 2 of 4". */
  description: string;
  pattern: Pattern;
  options: Omit<ParsedPruningOptions, 'pattern' | 'method'> & {
    propagation: Propagation;
    /** Null if layers reproduced the outputs of their own weights only. */
    denseTarget: DenseTarget | null;
    rowWeights: boolean;
    finalNorm: boolean;
    /** As given. */
    allocation?: LayerSparsities;
    precision: Precision;
  };
  /** Null without calibration. */
  calibration: CalibrationReport | null;
  /** For display; names and details of all devices if there are several. */
  device: string;
  /** In the order in which a token passes through the layers. */
  layers: LayerReport[];
  /** Share of zeros among the pruned layers' weights, from 0 to 1. */
  sparsity: number;
  /** Mean of the layers' relative errors; null without calibration and with `errors: false`. */
  meanError: number | null;
  /** Wall-clock milliseconds by phase; `calibration` covers reading the text and writing `ownWindows`. Of a resumed run: those of its last part. */
  milliseconds: { total: number; calibration: number; blocks: number; write: number };
}

/**
 * Prunes a Hugging Face model folder into another.
 *
 * ```ts
 * await prune({ model: './SmolLM2-135M', out: './SmolLM2-135M-70', sparsity: 0.7, calibration: { text: 'speeches.jsonl' } });
 * ```
 *
 * Every linear layer of every block is pruned to the pattern; embeddings, norms (but see `finalNorm`), biases and the output head stay unchanged.
 * Nothing appears under `out` before it is complete. An abort or error leaves no partial output, except with `resume`, which keeps finished
 * blocks beside `out` for the next call.
 *
 * @throws AlpsError with a `code`: `INVALID_ARGUMENT`, `INVALID_CHECKPOINT`, `UNSUPPORTED_MODEL`, `INVALID_TEXT`, `FILE_SYSTEM`, `NOT_FINITE`,
 * `NOT_POSITIVE_DEFINITE`, `OUT_OF_MEMORY`, `NO_DEVICE`, `DEVICE_FAILED` or `ABORTED`; see {@link AlpsErrorCode}
 */
export async function prune(given: PruneOptions): Promise<PruneReport> {
  const began = performance.now();
  const options = withPreset(snapshot(given, pruneNames));
  const asked = parsePruneOptions(options);
  const { signal } = options;
  const onEvent = announcerOf(options);
  throwIfAborted(signal);
  const checkpoint = await Checkpoint.open(options.model, { signal });
  let writer: CheckpointWriter | undefined;
  try {
    const devices = openDevices(options.device, deviceOptions(options));
    const precision = choosePrecision(options.precision, checkpoint, ...devices);
    const parsed = onDevices(asked, devices, precision);
    await using team = new Team(devices, signal);
    const models = openModels(checkpoint, team, precision, options);
    const model = models?.[0];
    checkWidths(checkpoint, model, parsed.pattern);
    const budgets = budgetsOf(model, parsed, options.allocation);
    await makeFolder(dirname(resolve(options.out)));
    await checkOutput(checkpoint.folder, options.out, options.overwrite ?? false); // before the text is read
    onEvent({
      type: 'start',
      model: options.model,
      out: options.out,
      method: parsed.method,
      pattern: describePattern(parsed.pattern),
      blocks: model?.config.layers ?? 0,
      layers: (model?.linears() ?? matricesByName(checkpoint)).length,
      device: describeDevices(devices),
      precision,
    });
    const read =
      model && options.calibration
        ? await loadCalibration(options.model, model.config, options.calibration, { signal })
        : undefined;
    const reported = reportedOptions(options, parsed, precision);
    const calibration = read && calibrationKey(read, options.calibration!);
    const resume = options.resume && {
      restart: options.restart,
      fingerprint: await fingerprintOf({ checkpoint, devices, parsed, reported, calibration, signal }),
    };
    writer = await CheckpointWriter.create({
      source: checkpoint,
      out: options.out,
      overwrite: options.overwrite,
      ...(resume ? { resume } : {}),
      signal,
    });
    const output = writer;
    const tokens =
      read &&
      (await withOwnWindows(model!, read, options.calibration!, {
        signal,
        onProgress: (share) => onEvent({ type: 'generate', share }),
        found: output.prepared,
        keep: (ids) => output.prepare(ids),
      }));
    const calibrated = performance.now();
    if (tokens) {
      const { windows, length, hash, note } = tokens;
      onEvent({ type: 'calibration', windows, length, tokens: windows * length, hash, ...(note ? { note } : {}) });
    }
    const finished = writer.finishedSteps.length;
    if (finished > 0) onEvent({ type: 'resume', finished, blocks: model?.config.layers ?? 0 });
    const layers: LayerReport[] = [];
    const onLayer = (layer: LayerReport) => {
      layers.push(layer);
      onEvent({ type: 'layer', ...layer });
    };
    if (!models) await pruneByNames(checkpoint, team.streams[0]!, parsed, { writer, signal, onLayer });
    else {
      const blocks = models[0]!.config.layers;
      await pruneBlocks(team, models, parsed, {
        windows: tokens,
        propagation: reported.propagation,
        target: reported.denseTarget ?? undefined,
        rowWeights: reported.rowWeights,
        finalNorm: reported.finalNorm,
        budgets,
        writer,
        signal,
        onLayer,
        onResumed: (earlier) => earlier.forEach(onLayer),
        onBlock: (block) => onEvent({ type: 'block', blocks, ...block }),
      });
    }
    const pruned = performance.now();
    const report: PruneReport = {
      version,
      method: parsed.method,
      description: describePattern(parsed.pattern),
      pattern: parsed.pattern,
      options: reported,
      calibration: tokens ? calibrationReport(tokens, options.calibration!) : null,
      device: describeDevices(devices),
      layers,
      sparsity: overallSparsity(layers),
      meanError: tokens && parsed.errors ? meanErrorOf(layers) : null,
      milliseconds: { total: 0, calibration: calibrated - began, blocks: pruned - calibrated, write: 0 },
    };
    const tellTimes = () => {
      report.milliseconds.write = performance.now() - pruned;
      report.milliseconds.total = performance.now() - began;
    };
    await writer.finish(() => {
      tellTimes(); // but for what puts the folder in its place
      return { 'pruning.json': `${JSON.stringify(report, null, 2)}\n` };
    });
    tellTimes();
    const { sparsity, meanError } = report;
    onEvent({ type: 'done', out: options.out, sparsity, meanError, milliseconds: report.milliseconds.total });
    return report;
  } catch (error) {
    await writer?.abort();
    const failure =
      signal?.aborted && !(error instanceof AlpsError && error.code === 'ABORTED') ? aborted(signal) : error;
    logPruneFailure(options, failure);
    throw failure;
  } finally {
    await checkpoint.close();
  }
}

/** All that the pruned weights depend on. */
export async function fingerprintOf(run: {
  checkpoint: Checkpoint;
  devices: readonly Device[];
  parsed: ParsedPruningOptions;
  reported: PruneReport['options'];
  calibration: string | undefined;
  signal: AbortSignal | undefined;
}): Promise<Fingerprint> {
  const { checkpoint, devices, parsed, reported, calibration, signal } = run;
  return {
    version,
    model: await fingerprint(checkpoint, signal),
    calibration: calibration ?? null,
    method: parsed.method,
    pattern: parsed.pattern,
    ...reported,
    // Several devices sum in their order.
    device: devices.map((device) => {
      const { name, isa, bf16Products, int8Products } = device.info();
      return `${name} ${isa}${bf16Products ? ' bfloat16' : ''}${int8Products ? ' int8' : ''}${takesLargeChunks(device) ? ' large chunks' : ''}`;
    }),
  };
}

/** Checks all options that can be checked without reading the model. */
export function parsePruneOptions(given: PruneOptions): ParsedPruningOptions {
  optionsObject(given, pruneNames);
  const options = withPreset(given);
  for (const name of ['model', 'out'] as const) folderPath(name, options[name]);
  const { propagation = 'sequential', precision = 'auto' } = options;
  if (propagation !== 'sequential' && propagation !== 'block') {
    throw invalidArgument('propagation', '"sequential" or "block"', propagation);
  }
  checkPrecision(precision);
  for (const name of ['overwrite', 'resume', 'restart'] as const)
    if (options[name] !== undefined) flag(name, options[name]);
  if (options.restart && !options.resume) throw invalidArgument('restart', 'false without resume', true);
  optionalFunction('onEvent', options.onEvent);
  parseLogger(options.logger);
  const parsed = parsePruningOptions(options);
  parseDenseTarget(options.denseTarget, parsed);
  parseRowWeights(options.rowWeights, parsed);
  parseFinalNorm(options, parsed);
  parseLayerSparsities(options.allocation);
  if (options.calibration === undefined && (parsed.method !== 'magnitude' || parsed.refit !== 'none')) {
    throw invalidArgument('calibration', 'text or token ids', undefined);
  }
  if (options.calibration !== undefined) {
    optionsObject(options.calibration, calibrationNames, 'calibration');
    checkCalibration(options.calibration);
  }
  return parsed;
}

/** The device options of a call. */
export function deviceOptions({ threads, memoryLimit }: { threads?: number; memoryLimit?: number }): DeviceOptions {
  return { ...(threads === undefined ? {} : { threads }), ...(memoryLimit === undefined ? {} : { memoryLimit }) };
}

function checkPrecision(precision: unknown): void {
  if (!['auto', 'float32', 'bfloat16'].includes(precision as string))
    throw invalidArgument('precision', '"auto", "float32" or "bfloat16"', precision);
}

/** The number format of the products, on all devices. */
export function choosePrecision(
  precision: Precision | 'auto' = 'auto',
  checkpoint: Checkpoint,
  ...devices: Device[]
): Precision {
  checkPrecision(precision);
  if (precision !== 'auto') return precision;
  const stored = [...checkpoint.tensors.values()].every(({ dtype }) => dtype === 'BF16');
  return stored && devices.every((device) => device.info().bf16Products) ? 'bfloat16' : 'float32';
}

/**
 * Opens the decoder for each device, or gives undefined where the type is not known and magnitude pruning can do without. Anything else with a
 * type that is not known is refused with what can be done about it.
 */
function openModels(
  checkpoint: Checkpoint,
  team: Team,
  precision: Precision,
  { method, calibration }: PruneOptions,
): DecoderModel[] | undefined {
  try {
    return team.streams.map((stream) => DecoderModel.open(checkpoint, stream, precision));
  } catch (error) {
    if (!(error instanceof AlpsError) || error.code !== 'UNSUPPORTED_MODEL') throw error;
    if (knownModelTypes.includes(checkpoint.config.model_type as string)) {
      throw new AlpsError('UNSUPPORTED_MODEL', `${checkpoint.folder}: ${error.message}`, { cause: error });
    }
    if ((method !== 'magnitude' && method !== 'mp') || calibration) throw cannotRun(checkpoint.folder, error);
    checkByNames(checkpoint, error);
    return undefined;
  }
}

/** Every width must fit the pattern before any work is done. */
export function checkWidths(checkpoint: Checkpoint, model: DecoderModel | undefined, pattern: Pattern): void {
  const matrices = model
    ? model.layerSizes()
    : matricesByName(checkpoint).map(({ name, shape: [outputs, inputs] }) => ({
        name,
        outputs: outputs!,
        inputs: inputs!,
      }));
  for (const { name, outputs, inputs } of matrices) keptWeights(pattern, outputs, inputs, name);
}

/** Of the layers that saw inputs. */
export function meanErrorOf(layers: readonly Pick<LayerReport, 'error'>[]): number {
  const errors = layers.flatMap(({ error }) => (error === null ? [] : [error]));
  return errors.reduce((sum, error) => sum + error, 0) / Math.max(errors.length, 1);
}

/** The options with their defaults, as a report has them. What needs calibration is off without it. */
export function reportedOptions(
  options: PruneOptions,
  parsed: ParsedPruningOptions,
  precision: Precision,
): PruneReport['options'] {
  const { pattern: _pattern, method: _method, ...rest } = parsed;
  const { propagation = 'sequential', allocation, calibration } = options;
  return {
    ...rest,
    propagation,
    rowWeights: calibration !== undefined && parseRowWeights(options.rowWeights, parsed),
    finalNorm: calibration !== undefined && parseFinalNorm(options, parsed),
    precision,
    denseTarget: (calibration && parseDenseTarget(options.denseTarget, parsed)) ?? null,
    ...(allocation ? { allocation } : {}),
  };
}

/** Whether rows are weighted; only the methods whose weights compete across rows, by their cost, can. */
export function parseRowWeights(given: boolean | undefined, { method }: ParsedPruningOptions): boolean {
  const weighted = flag('rowWeights', given === undefined ? method === 'alps' : given);
  if (weighted && method !== 'alps' && method !== 'sparsegpt')
    throw new AlpsError('INVALID_ARGUMENT', `rowWeights is for methods "alps" and "sparsegpt", not for "${method}"`);
  return weighted;
}

/** Whether the last norm is refitted; that needs the dense model's run. */
function parseFinalNorm({ finalNorm, denseTarget }: PruneOptions, parsed: ParsedPruningOptions): boolean {
  const hasTarget = parseDenseTarget(denseTarget, parsed) !== undefined;
  const wanted = flag('finalNorm', finalNorm === undefined ? hasTarget : finalNorm);
  if (wanted && !hasTarget) throw new AlpsError('INVALID_ARGUMENT', 'finalNorm needs a denseTarget');
  return wanted;
}

/** What each layer keeps, where they do not all keep the same share. */
function budgetsOf(
  model: DecoderModel | undefined,
  parsed: ParsedPruningOptions,
  allocation: LayerSparsities | undefined,
): Map<string, LayerBudget> | undefined {
  if (!allocation) return undefined;
  if (!model) throw new AlpsError('UNSUPPORTED_MODEL', 'An allocation needs a supported model type');
  return allocate(model.layerSizes(), parsed.pattern, allocation, isRowwise(parsed));
}

function overallSparsity(layers: LayerReport[]): number {
  const size = layers.reduce((sum, layer) => sum + layer.outputs * layer.inputs, 0);
  return 1 - layers.reduce((sum, layer) => sum + layer.kept, 0) / size;
}
