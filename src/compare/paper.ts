import { join } from 'node:path';
import { loadCalibration } from '../calibration/calibration.js';
import { Checkpoint } from '../checkpoint/folder.js';
import { Device } from '../device/device.js';
import { invalidArgument, type Names, optionsObject, throwIfAborted } from '../errors.js';
import { type DenseLayer, denseLayer } from '../layer-problem-of.js';
import { DecoderModel, readArchitecture } from '../model/decoder.js';
import { linearShape, linearsOf, titleOf } from '../model/shapes.js';
import { version } from '../package-version.js';
import { deviceOptions } from '../prune.js';
import { type PruningOptions, parsePruningOptions } from '../pruning/options.js';
import { parsePattern } from '../pruning/pattern.js';
import { pruneLayer } from '../pruning/prune-layer.js';
import type { TracePoint } from '../pruning/solution.js';
import { comparisonCalibration } from './calibration.js';
import { CellStore } from './cell-store.js';
import { compare } from './compare.js';
import { type CompareOptions, type Comparison, compareNames } from './comparison.js';

export interface PaperOptions extends CompareOptions {
  /** The layer of the support figure. Default: the first block's k matrix, or its first matrix. */
  supportLayer?: string;
  /** Default 0.7. */
  supportSparsity?: number;
  /** The layer of the refit figure. Default: the widest of the first block. */
  refitLayer?: string;
  /** Default 0.4, 0.5, 0.6, 0.7, 0.8, 0.9. */
  refitSparsities?: readonly number[];
}

const paperNames: Names<PaperOptions> = {
  ...compareNames,
  supportLayer: true,
  supportSparsity: true,
  refitLayer: true,
  refitSparsities: true,
};

/** One schedule's way to its support. */
export interface SupportCurve {
  title: string;
  /** Share of the support that changed since the iteration before, and the relative error (with ridge) of stopping there. */
  points: { iteration: number; rho: number; rate: number; error: number }[];
  iterations: number;
  /** After the refit, without ridge. */
  finalError: number;
}

export interface RefitRow {
  sparsity: number;
  /** Relative error (with ridge, which both minimise) on the magnitude support: as it is, after 10 iterations of PCG, exact. */
  plainError: number;
  pcgError: number;
  backsolveError: number;
  /** Seconds of the refit alone. */
  pcgSeconds: number;
  backsolveSeconds: number;
}

export interface PaperReport {
  comparison: Comparison;
  support: { layer: string; shape: [number, number]; sparsity: number; curves: SupportCurve[] };
  refit: { layer: string; shape: [number, number]; iterations: number; rows: RefitRow[] };
}

const supportIterations = 100;
const fixed = (rho: number) => ({ initialRho: rho, checkEvery: 1, maxIterations: supportIterations });
const schedules = [
  { title: 'ALPS, published schedule', options: { schedule: 'alps', metric: 'diagonal' } },
  { title: 'ALPS, ladder and OBS metric', options: { schedule: 'ladder' } },
  { title: 'fixed ρ = 0.3', options: { schedule: 'fixed', alpsSchedule: fixed(0.3) } },
  { title: 'fixed ρ = 3', options: { schedule: 'fixed', alpsSchedule: fixed(3) } },
] as const;
const refitOptions = { method: 'magnitude', refit: 'pcg' } as const;

/** Options with all defaults: another default is another result. */
const meant = (options: PruningOptions, sparsity: number) => parsePruningOptions({ ...options, sparsity });

/**
 * The figures and tables of the ALPS paper (NeurIPS 2024) on any model: layer errors and perplexities by method and sparsity, zero-shot
 * tasks, the change of the support by iteration, and conjugate gradients against the exact refit.
 */
export async function reproducePaper(options: PaperOptions): Promise<PaperReport> {
  optionsObject(options, paperNames);
  await checkLayers(options);
  const {
    supportLayer: _layer,
    supportSparsity: _sparsity,
    refitLayer: _refit,
    refitSparsities: _all,
    ...compared
  } = options;
  const comparison = await compare(compared);
  const { signal, onEvent } = options;
  throwIfAborted(signal);
  const store = await CellStore.open(join(options.out, 'cells'));
  const { fingerprint } = comparison.model;
  const { calibration, precision } = comparison;
  const key = { version, fingerprint, precision, calibration: [calibration.hash, calibration.length] };
  const checkpoint = await Checkpoint.open(options.model, { signal });
  try {
    const { config, block } = readArchitecture(checkpoint);
    const device = Device.open(options.device ?? 'auto', deviceOptions(options));
    const first = block(0);
    const specs = [...first.attention.flat(), ...first.mlp[0]!.flat()];
    const widest = specs.reduce((a, b) => (linearShape(config, b)[1] > linearShape(config, a)[1] ? b : a));
    const { supportLayer = titleOf(specs.find(({ parts }) => parts[0] === 'k') ?? specs[0]!) } = options;
    const { supportSparsity = 0.7, refitLayer = titleOf(widest) } = options;
    const { refitSparsities = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9] } = options;
    const layerOf = async (name: string): Promise<DenseLayer> => {
      await using stream = device.stream({ signal });
      const given = await loadCalibration(options.model, config, options.calibration, { signal });
      const parts = { checkpoint, device, precision, fingerprint, store };
      const windows = await comparisonCalibration(given, options, parts);
      return await denseLayer(DecoderModel.open(checkpoint, stream, precision), windows, name);
    };
    onEvent?.({ type: 'progress', share: 0, doing: 'the support by iteration' });
    const support = await store.take(
      {
        ...key,
        support: [supportLayer, supportIterations, ...schedules.map(({ options }) => meant(options, supportSparsity))],
      },
      async () => supportFigure(await layerOf(supportLayer), supportSparsity, device, signal),
    );
    onEvent?.({ type: 'progress', share: 0.5, doing: 'conjugate gradients against backsolve' });
    const refit = await store.take(
      { ...key, refit: [refitLayer, ...refitSparsities.map((sparsity) => meant(refitOptions, sparsity))] },
      async () => refitFigure(await layerOf(refitLayer), refitSparsities, device, signal),
    );
    return { comparison, support: support.result, refit: refit.result };
  } finally {
    await checkpoint.close();
  }
}

/** A wrong name or sparsity is told before the hours that a comparison may take. */
async function checkLayers(options: PaperOptions): Promise<void> {
  const { model, supportLayer, refitLayer, supportSparsity, refitSparsities = [], signal } = options;
  for (const sparsity of [supportSparsity ?? 0.7, ...refitSparsities]) parsePattern({ sparsity });
  const checkpoint = await Checkpoint.open(model, { signal });
  try {
    const names = new Set(linearsOf(readArchitecture(checkpoint)).map(titleOf));
    for (const [option, name] of Object.entries({ supportLayer, refitLayer })) {
      if (name !== undefined && !names.has(name)) {
        const [example] = names;
        throw invalidArgument(option, `a layer of the model, such as ${example},`, name);
      }
    }
  } finally {
    await checkpoint.close();
  }
}

async function supportFigure(
  layer: DenseLayer,
  sparsity: number,
  device: Device,
  signal: AbortSignal | undefined,
): Promise<PaperReport['support']> {
  const { weight, gram, shape, name } = layer;
  const traced = { traceEvery: 1, traceErrors: true } as const;
  const given = { weight, gram, shape, name, sparsity, device, signal, precision: 'float32', ...traced } as const;
  const curves: SupportCurve[] = [];
  for (const { title, options } of schedules) {
    const { trace, kept, iterations, error } = await pruneLayer({ ...given, ...options });
    const point = ({ iteration, rho, changed, error: traced }: TracePoint) => ({
      iteration,
      rho,
      rate: changed / kept,
      error: traced!,
    });
    curves.push({ title, points: trace.map(point), iterations, finalError: error });
  }
  return { layer: name, shape, sparsity, curves };
}

async function refitFigure(
  layer: DenseLayer,
  sparsities: readonly number[],
  device: Device,
  signal: AbortSignal | undefined,
): Promise<PaperReport['refit']> {
  const { weight, gram, shape, name } = layer;
  const rows: RefitRow[] = [];
  const run = (sparsity: number, refit: 'none' | 'pcg' | 'backsolve') =>
    pruneLayer({ weight, gram, shape, name, sparsity, device, signal, method: 'magnitude', refit });
  await run(sparsities[0]!, 'pcg'); // so that the first row is timed with warm caches, as the others are
  for (const sparsity of sparsities) {
    const plain = await run(sparsity, 'none');
    const pcg = await run(sparsity, 'pcg');
    const backsolve = await run(sparsity, 'backsolve');
    rows.push({
      sparsity,
      plainError: plain.errorWithRidge,
      pcgError: pcg.errorWithRidge,
      backsolveError: backsolve.errorWithRidge,
      pcgSeconds: pcg.time.refine / 1000,
      backsolveSeconds: backsolve.time.refine / 1000,
    });
  }
  return { layer: name, shape, iterations: 10, rows };
}
