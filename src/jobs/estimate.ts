import { checkCalibration, readTokenFile } from '../calibration/calibration.js';
import { lengthOfWindows } from '../calibration/windows.js';
import { Checkpoint } from '../checkpoint/folder.js';
import { collectorBytes, makesOnDemand } from '../dense-collector.js';
import { Device } from '../device/device.js';
import { sizeOf } from '../device/tensor.js';
import { AlpsError, invalidArgument, type Names } from '../errors.js';
import { finalNormBytes } from '../final-norm.js';
import { ownWindowsOf } from '../generation/own-windows.js';
import { writingBytes } from '../generation/writer.js';
import type { DecoderConfig } from '../model/config.js';
import { type Precision, readArchitecture } from '../model/decoder.js';
import type { Architecture, LinearSpec } from '../model/families/family.js';
import { activationBytes, chunkTokens, numberBytes, rowsAtOnce, type TokenCounts } from '../model/memory.js';
import { expectedTensors, linearShape } from '../model/shapes.js';
import { choosePrecision, type PruneOptions, parseRowWeights, pruneNames } from '../prune.js';
import { factorisesPairs } from '../pruning/alps.js';
import { parseDenseTarget } from '../pruning/dense-target.js';
import {
  choosesAmongRows,
  integerFrom,
  needsGram,
  ofLayer,
  onDevices,
  type ParsedPruningOptions,
  type PruningOptions,
  parsePrecision,
  parsePruningOptions,
  searchPrecision,
  wantsMixed,
} from '../pruning/options.js';
import { keptWeights } from '../pruning/pattern.js';
import { withPreset } from '../pruning/preset.js';
import { type PruneLayerOptions, parseShape, pruneLayerNames, usualWindow } from '../pruning/prune-layer.js';
import { countBytes, stepsProducts } from '../pruning/refine.js';
import { snapshot } from '../snapshot.js';
import { matricesByName } from '../unknown-model.js';

/** Small tensors (scales, counts, sums of rows), generously. */
const small = ({ m, n, segments = 1 }: { m: number; n: number; segments?: number }) =>
  64 * (m + n) + 64 * segments + 4096;

/**
 * Bytes of tensors that one solve takes at most, for a matrix of m outputs and n inputs. Weights and result are 9 mn; 4 n² the Gram matrix, and 4 n² +
 * 4 mn it and the weights scaled, where they are needed ({@link needsGram}). On top comes the largest of
 *
 * - the search: ALPS 4 n² + 9 mn (bfloat16: 6 n² + 7 mn; a ladder of ρ up to 1536 inputs 4 n² more, on a GPU not), with a trace of errors 5 mn more; SparseGPT 4 n²; Wanda 4 mn; DSnoT 8 mn, from SparseGPT's mask 4 n² more
 * - the refit: by conjugate gradients 12 mn (16 behind a method other than ALPS; steps in bfloat16 2 n² + 2 mn more), exact 4 mn (8)
 * - the error: 4 mn
 */
export function solveBytes(
  { m, n, segments }: { m: number; n: number; segments?: number },
  parsed: ParsedPruningOptions,
  precision: Precision,
): number {
  const { method, refit, traceEvery, traceErrors, errors, dsnot } = parsed;
  const [square, matrix] = [n * n, m * n];
  const narrow = searchPrecision(parsed, precision) === 'bfloat16';
  const search = {
    alps:
      (narrow ? 6 : 4) * square +
      (factorisesPairs(n, parsed) ? 4 * square : 0) +
      (narrow ? 7 : 9) * matrix +
      (traceEvery > 0 ? matrix : 0) +
      (traceErrors ? 5 * matrix : 0),
    magnitude: 0,
    wanda: 4 * matrix,
    sparsegpt: 4 * square,
    dsnot: (dsnot.initial === 'sparsegpt' ? 4 * square : 0) + 8 * matrix,
  }[method];
  const scaled = method === 'alps' ? 0 : 4 * matrix;
  const steps = method === 'alps' && stepsProducts(parsed) !== 'float32' ? 2 * (square + matrix) : 0;
  const counts = countBytes(m, n, parsed.refineIterations);
  const refitted = { none: 0, pcg: scaled + 12 * matrix + steps + counts, backsolve: scaled + 4 * matrix }[refit];
  const gram = needsGram(parsed) ? 4 * square : 0;
  const solved = needsGram({ ...parsed, errors: false }) ? 4 * square + 4 * matrix : 0;
  const most = Math.max(search, refitted, errors ? 4 * matrix : 0);
  return gram + solved + 9 * matrix + most + small({ m, n, segments });
}

/** While a group's layers are written: weights, result and mask, the Gram matrix for the errors, and the layers as they are stored, turned where they are. */
function writeBytes(
  { m, n, segments }: { m: number; n: number; segments: number },
  parsed: ParsedPruningOptions,
  specs: readonly LinearSpec[],
): number {
  const stored = specs.some(({ transposed }) => transposed) ? 8 : 4;
  return (needsGram(parsed) ? 4 * n * n : 0) + (9 + stored) * m * n + small({ m, n, segments });
}

/**
 * While the rows of a group are weighed (row-weights.ts), beside its dense target: weights and Gram matrix, what the target is made from, the
 * layers as the checkpoint has them, and `behind` numbers of the layer behind, as they are and turned.
 */
function weighBytes({ m, n }: { m: number; n: number }, behind: number): number {
  return 4 * (3 * n * n + 4 * m * n + 2 * behind);
}

/** What the memory of a layer depends on. {@link PruneLayerOptions} can be passed as they are. */
export interface LayerSize extends PruningOptions {
  /** `[outputs, inputs]` */
  shape: readonly [outputs: number, inputs: number];
  /** As in {@link PruneLayerOptions}. */
  precision?: Precision;
  /** Rows of calibration inputs, if they are given instead of a Gram matrix: their number here, at least 1, or the inputs as `activations`. */
  tokens?: number;
  activations?: { length: number };
}

const layerSizeNames: Names<LayerSize & PruneLayerOptions> = { ...pruneLayerNames, tokens: true };

/**
 * An upper bound of the bytes of tensors that {@link pruneLayer} takes at a time: those of its solve or, if more, of the upload (weights, Gram matrix
 * and calibration inputs together).
 *
 * @throws AlpsError `INVALID_ARGUMENT` for pruning options that pruneLayer refuses
 */
export function estimateLayerBytes(given: LayerSize): number {
  const options = snapshot<LayerSize>(given, layerSizeNames);
  const parsed = ofLayer(parsePruningOptions(withPreset(options)), options.precision);
  const [m, n] = parseShape(options.shape);
  keptWeights(parsed.pattern, m, n, 'the layer');
  const { tokens: asked = tokensIn(options.activations, n), precision = 'float32' } = options;
  parsePrecision(precision);
  const tokens = asked === undefined ? 0 : integerFrom('tokens', asked, 1);
  // The weights come while the Gram matrix is summed; sums of squares are waited for.
  const { windowLength = usualWindow } = options as Partial<PruneLayerOptions>;
  const moments = parsed.method === 'dsnot' ? 8 * n * (Math.ceil(tokens / windowLength) + 1) : 0;
  const upload = 4 * (tokens * n + (needsGram(parsed) ? n * n + m * n : 0)) + moments + small({ m, n });
  // On a device that is not known here, with or without.
  const solves = [wantsMixed(parsed, precision), false].map((mixedPrecision) =>
    solveBytes({ m, n }, { ...parsed, mixedPrecision }, precision),
  );
  return Math.max(upload, ...solves);
}

/** Rows of the calibration inputs, where they are there. */
function tokensIn(activations: unknown, inputs: number): number | undefined {
  if (activations === undefined) return undefined;
  const length = typeof activations === 'object' ? (activations as { length?: unknown } | null)?.length : undefined;
  if (!Number.isSafeInteger(length) || (length as number) < inputs || (length as number) % inputs !== 0)
    throw invalidArgument('activations', `numbers [tokens, ${inputs}]`, activations);
  return (length as number) / inputs;
}

/**
 * An upper bound of the bytes of tensors that {@link prune} takes at a time on one device. It is the largest of: the activations of all calibration
 * tokens, one block's weights and the largest solve in the block; the activations and the embedding table; with `ownWindows`, the whole model and the
 * windows that it writes. Dense targets need a second residual stream or, for models with norms before and after attention and MLP, the activations twice. Reads
 * the folder's config.json and headers.
 *
 * @param device the open device that the model would be pruned on
 * @throws AlpsError `INVALID_ARGUMENT`, and as {@link prune} for a folder that it refuses
 */
export async function estimateModelBytes(given: PruneOptions, device: Device): Promise<number> {
  if (!(device instanceof Device)) throw invalidArgument('device', 'an open device', device);
  const options = withPreset(snapshot(given, pruneNames));
  const asked = parsePruningOptions(options);
  const checkpoint = await Checkpoint.open(options.model, { signal: options.signal });
  try {
    const precision = choosePrecision(options.precision, checkpoint, device);
    const parsed = onDevices(asked, [device], precision);
    let architecture: Architecture;
    try {
      architecture = readArchitecture(checkpoint);
    } catch (error) {
      // prune() itself tells what it refuses; by their names alone matrices are pruned one at a time.
      if (!(error instanceof AlpsError) || error.code !== 'UNSUPPORTED_MODEL') throw error;
      return Math.max(4096, ...matricesByName(checkpoint).map(({ shape }) => 17 * shape[0]! * shape[1]! + 4096));
    }
    const { config } = architecture;
    const tokens = options.calibration && (await tokensOf(options.calibration, config));
    const number = numberBytes(precision);
    const dense = tokens && parseDenseTarget(options.denseTarget, parsed);
    const weighs = tokens !== undefined && parseRowWeights(options.rowWeights, parsed) && choosesAmongRows(parsed);
    const rows = rowsAtOnce(config, device);
    const onDemand = makesOnDemand(config);
    const activations = tokens
      ? activationBytes(config, tokens, number, { rows }) +
        (dense ? activationBytes(config, tokens, number, { rows, makesOnDemand: onDemand }) : 0)
      : 0;
    const embedding = tokens ? embeddingBytes(architecture, tokens, number) : 0;
    let block = 0;
    for (let layer = 0; layer < config.layers; layer++) {
      const { attention, mlp, router } = architecture.block(layer);
      const groups = [attention[0], [attention[1]], ...mlp.flatMap(([inputs, output]) => [inputs, [output]])];
      const sizes = groups.map((specs) => ({ ...groupSize(config, specs), segments: specs.length }));
      const copied = dense && onDemand && options.propagation !== 'block' ? (router ? [0] : [0, 2]) : [];
      const weights =
        number * [...sizes, ...copied.map((group) => sizes[group]!)].reduce((sum, { m, n }) => sum + m * n, 0);
      // What dense targets take beside a solve: what is summed, and the target.
      const seen = sizes.map(({ m, n }, i) => {
        if (!tokens || !dense || (i >= 2 && router)) return { inputs: 0, target: 0 };
        const stage = i < 2 ? i : 2 + (i % 2);
        return {
          inputs: collectorBytes(config, { stage, n, target: dense }, { ...tokens, rows }, number),
          target: 4 * m * n,
        };
      });
      const grams =
        options.propagation === 'block' && tokens
          ? 4 * tokens.windows * tokens.length * config.hidden +
            sizes.reduce((sum, { n }, i) => sum + 4 * n * n + seen[i]!.inputs, 0)
          : 0;
      const solves = sizes.map((size, i) => {
        const behind = sizes[i + 1];
        const isWeighed = weighs && i % 2 === 0 && behind !== undefined;
        const weighed = isWeighed ? weighBytes(size, behind.m * behind.n) : 0;
        const scaled = isWeighed ? 4 * size.m * size.n : 0; // the weighted rows, beside the solve and what is written
        const solving = scaled + Math.max(solveBytes(size, parsed, precision), writeBytes(size, parsed, groups[i]!));
        const most = Math.max(solving, weighed);
        return most + seen[i]!.inputs + seen[i]!.target;
      });
      // The block behind it is read meanwhile (block-reader.ts), a matrix at a time: as it is stored, turned, and in the run's precision.
      const ahead =
        number * sizes.reduce((sum, { m, n }) => sum + m * n, 0) + 8 * Math.max(...sizes.map(({ m, n }) => m * n));
      const most = grams + Math.max(...solves);
      // Beside a processor's solves nothing is read; experts' blocks not at all.
      block = Math.max(block, weights + (device.name !== 'cpu' ? ahead + most : Math.max(router ? 0 : ahead, most)));
    }
    const vectors = [...expectedTensors(architecture)].reduce(
      (sum, [, shape]) => sum + (shape.length === 1 ? 8 * shape[0]! : 0),
      0,
    );
    const lastNorm = dense ? finalNormBytes(config.hidden) : 0;
    const pruned = activations + Math.max(embedding, block, lastNorm) + vectors;
    const own = options.calibration ? ownWindowsOf(options.calibration) : 0;
    if (!tokens || own === 0) return pruned;
    const { length } = tokens;
    return Math.max(pruned, writingBytes(architecture, { windows: own, length }, number, device.info().memoryLimit));
  } finally {
    await checkpoint.close();
  }
}

/** Tables as they are stored and as they are used, the ids, and embeddings that are brought to the model's width. */
function embeddingBytes(architecture: Architecture, { windows, length }: TokenCounts, number: number): number {
  const { config, embedding, projectIn, positions } = architecture;
  const tensors = expectedTensors(architecture);
  const tables = [embedding, projectIn, positions?.name].flatMap((name) =>
    name === undefined ? [] : sizeOf(tensors.get(`${name}.weight`)!),
  );
  const tokens = windows * length;
  const scratch = projectIn ? Math.min(chunkTokens, tokens) * config.embeddingSize * (4 + number) : 0;
  return 8 * tables.reduce((sum, size) => sum + size, 0) + 4 * tokens + scratch;
}

function groupSize(config: DecoderConfig, specs: readonly LinearSpec[]): { m: number; n: number } {
  const shapes = specs.map((spec) => linearShape(config, spec));
  return { m: shapes.reduce((sum, [outputs]) => sum + outputs, 0), n: shapes[0]![1] };
}

/** At most: a text that is short gives fewer. */
async function tokensOf(
  calibration: NonNullable<PruneOptions['calibration']>,
  config: DecoderConfig,
): Promise<TokenCounts> {
  const { text, shares, windows, length } = calibration;
  checkCalibration(calibration);
  const own = ownWindowsOf(calibration);
  const tokenIds = calibration.tokenIds ?? (text && !shares ? await readTokenFile(text, 'calibration') : undefined);
  if (tokenIds)
    return {
      windows: Math.min(windows ?? tokenIds.length, tokenIds.length) + own,
      length: lengthOfWindows(tokenIds, calibration.tokenIds ? 'tokenIds' : String(text)),
    };
  return { windows: (windows ?? 128) + own, length: Math.min(length ?? 2048, config.maxPositions) };
}
