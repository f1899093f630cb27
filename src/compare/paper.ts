import { join } from 'node:path';
import { Checkpoint } from '../checkpoint/folder.js';
import { Device } from '../device/device.js';
import { anyList, invalidArgument, type Names, throwIfAborted } from '../errors.js';
import { type DenseLayer, denseLayer } from '../layer-problem-of.js';
import { DecoderModel, readArchitecture } from '../model/decoder.js';
import type { Architecture } from '../model/families/family.js';
import { linearShape, linearsOf, titleOf } from '../model/shapes.js';
import { version } from '../package-version.js';
import { deviceOptions } from '../prune.js';
import { type PruningOptions, parsePruningOptions } from '../pruning/options.js';
import { keptWeights, parsePattern } from '../pruning/pattern.js';
import { pruneLayer } from '../pruning/prune-layer.js';
import type { TracePoint } from '../pruning/solution.js';
import { listInside, snapshot } from '../snapshot.js';
import { CellStore } from './cell-store.js';
import { compareWith } from './compare.js';
import { type CompareOptions, type Comparison, compareNames, layout } from './comparison.js';

/** Options of {@link reproducePaper}. */
export interface PaperOptions extends CompareOptions {
  /** Name of the layer in the support figure. Default: the first block's k matrix, or its first matrix if it has none. */
  supportLayer?: string;
  /** Sparsity in the support figure, which must keep some weights of the layer and prune some. Default 0.7. */
  supportSparsity?: number;
  /** Name of the layer in the refit figure. Default: the one with the most inputs in the first block. */
  refitLayer?: string;
  /** Sparsities in the refit figure, each from 0 to 1. Default 0.4, 0.5, 0.6, 0.7, 0.8, 0.9. */
  refitSparsities?: readonly number[];
}

const paperNames: Names<PaperOptions> = {
  ...compareNames,
  supportLayer: true,
  supportSparsity: true,
  refitLayer: true,
  refitSparsities: listInside(),
};

/** How the support of one schedule changes by iteration. */
export interface SupportCurve {
  title: string;
  /** `rate`: share of the support that changed since the iteration before. `error`: relative error (with ridge) of stopping there. */
  points: { iteration: number; rho: number; rate: number; error: number }[];
  /** ADMM iterations of the whole run. */
  iterations: number;
  /** Relative error after the refit, without ridge. */
  finalError: number;
}

/** Refits on the support of magnitude pruning at one sparsity. Errors are relative, with the ridge, which both refits minimise. */
export interface RefitRow {
  sparsity: number;
  /** Without a refit. */
  plainError: number;
  /** After 10 iterations of preconditioned conjugate gradients. */
  pcgError: number;
  /** After the exact solve. */
  backsolveError: number;
  /** Seconds of the refit alone, as is the next. */
  pcgSeconds: number;
  backsolveSeconds: number;
}

/** Result of {@link reproducePaper}; {@link writePaperReport} makes reports of it. */
export interface PaperReport {
  comparison: Comparison;
  support: { layer: string; shape: [number, number]; sparsity: number; curves: SupportCurve[] };
  refit: {
    layer: string;
    shape: [number, number];
    /** Conjugate gradient iterations. */
    iterations: number;
    /** Device on which the times were measured, for display. */
    device: string;
    rows: RefitRow[];
  };
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
 * Reproduces the figures and tables of the ALPS paper (NeurIPS 2024) on any model: layer errors and perplexities by method and sparsity,
 * zero-shot tasks, the change of the support by iteration, and conjugate gradients against the exact refit. Finished parts are kept in
 * `out`/cells and not computed twice. No report is written; see {@link writePaperReport}.
 *
 * @throws AlpsError as {@link compare}, and `INVALID_ARGUMENT` for a layer that the model does not have or a sparsity that does not fit
 */
export async function reproducePaper(given: PaperOptions): Promise<PaperReport> {
  const options = snapshot(given, paperNames);
  const { supportLayer, supportSparsity, refitLayer, refitSparsities } = await parseFigures(options);
  const {
    supportLayer: _layer,
    supportSparsity: _sparsity,
    refitLayer: _refit,
    refitSparsities: _all,
    ...compared
  } = options;
  const { comparison, windows } = await compareWith(compared);
  const { signal, onEvent } = options;
  throwIfAborted(signal);
  const store = await CellStore.open(join(options.out, 'cells'));
  const { fingerprint } = comparison.model;
  const { calibration, precision } = comparison;
  const key = { version, layout, fingerprint, precision, calibration: [calibration.hash, calibration.length] };
  const checkpoint = await Checkpoint.open(options.model, { signal });
  try {
    const device = Device.open(options.device, deviceOptions(options));
    const layerOf = async (name: string): Promise<DenseLayer> => {
      await using stream = device.stream({ signal });
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

type Figures = Required<Pick<PaperOptions, 'supportLayer' | 'supportSparsity' | 'refitLayer' | 'refitSparsities'>>;

/** The options of the figures with their defaults. A wrong name or sparsity is reported before the comparison, which may take hours. */
async function parseFigures(options: PaperOptions): Promise<Figures> {
  const { model, signal, supportSparsity = 0.7, refitSparsities = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9] } = options;
  anyList('refitSparsities', refitSparsities);
  if (refitSparsities.length === 0) throw invalidArgument('refitSparsities', 'at least one', refitSparsities);
  for (const sparsity of [supportSparsity, ...refitSparsities]) parsePattern({ sparsity });
  const checkpoint = await Checkpoint.open(model, { signal });
  try {
    const architecture = readArchitecture(checkpoint);
    const specs = new Map(linearsOf(architecture).map((spec) => [titleOf(spec), spec]));
    const usual = usualLayers(architecture);
    const { supportLayer = usual.supportLayer, refitLayer = usual.refitLayer } = options;
    for (const [option, name] of Object.entries({ supportLayer, refitLayer })) {
      if (!specs.has(name)) {
        const [example] = specs.keys();
        throw invalidArgument(option, `a layer of the model, such as ${example},`, name);
      }
    }
    const [outputs, inputs] = linearShape(architecture.config, specs.get(supportLayer)!);
    const kept = keptWeights({ sparsity: supportSparsity }, outputs, inputs);
    if (kept === 0 || kept === outputs * inputs) {
      const what = `a share that keeps some of the ${outputs * inputs} weights of ${supportLayer}, but not all,`;
      throw invalidArgument('supportSparsity', what, supportSparsity);
    }
    return { supportLayer, supportSparsity, refitLayer, refitSparsities };
  } finally {
    await checkpoint.close();
  }
}

function usualLayers({ config, block }: Architecture): Pick<Figures, 'supportLayer' | 'refitLayer'> {
  const first = block(0);
  const specs = [...first.attention.flat(), ...first.mlp[0]!.flat()];
  const widest = specs.reduce((a, b) => (linearShape(config, b)[1] > linearShape(config, a)[1] ? b : a));
  const support = specs.find(({ parts }) => parts[0] === 'k') ?? specs[0]!;
  return { supportLayer: titleOf(support), refitLayer: titleOf(widest) };
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
  return { layer: name, shape, iterations: 10, device: device.info().details, rows };
}
