import { Scope, type Tensor } from '../device/tensor.js';
import type { Activations } from './block-run.js';
import type { DecoderModel, F32, Float, Norm } from './decoder.js';
import type { Embedding } from './embedding.js';

/** Bytes of the logits that are held at once. */
const logitBytes = 64 << 20;

/** Rows of logits that are held at once, of `total`, where there are `copies` of them. */
export function rowsAtOnce({ config }: DecoderModel, total: number, copies = 1): number {
  return Math.max(1, Math.min(total, Math.floor(logitBytes / 4 / config.vocabulary / copies)));
}

interface HeadWeights {
  norm: Norm | undefined;
  /** [vocabulary, embeddingSize] */
  head: Float;
  /** From the blocks' width to the embeddings'. */
  projection: Float | undefined;
}

/** What follows the last block: its norm, and the product that gives the logits. */
export class Head {
  readonly #model: DecoderModel;
  readonly #scope: Scope;
  readonly #weights: HeadWeights;
  readonly #x: Float;
  readonly #projected: Float | undefined;

  private constructor(model: DecoderModel, scope: Scope, rows: number, weights: HeadWeights) {
    const { device, precision, config } = model;
    this.#model = model;
    this.#scope = scope;
    this.#weights = weights;
    this.#x = scope.hold(device.tensor(precision, [rows, config.hidden], 'the head’s inputs'));
    this.#projected = weights.projection && scope.hold(device.tensor(precision, [rows, config.embeddingSize]));
  }

  /**
   * Reads the weights.
   * @param rows that {@link apply} is given at most
   * @param embedding which outlives the head: where the two share a table it is not read again
   */
  static async load(model: DecoderModel, rows: number, embedding?: Embedding): Promise<Head> {
    const { architecture, precision, config } = model;
    const scope = new Scope();
    try {
      const norm = await model.loadNorm(architecture.finalNorm, scope);
      const shared = config.tiedEmbeddings ? embedding?.table : undefined;
      const head = shared ?? scope.hold(await model.loadHead());
      const projection = architecture.projectOut
        ? scope.hold(await model.load(`${architecture.projectOut}.weight`, precision))
        : undefined;
      return new Head(model, scope, rows, { norm, head, projection });
    } catch (error) {
      scope.dispose();
      throw error;
    }
  }

  /**
   * logits [rows, vocabulary] of a residual stream h [rows, hidden], both float32.
   * @param norm another one in place of its own
   */
  apply(h: F32, logits: F32, norm = this.#weights.norm): void {
    const { stream, config } = this.#model;
    const { head, projection } = this.#weights;
    using scope = new Scope();
    const part = (tensor: Float) => scope.hold(tensor.rows(0, h.shape[0]!) as Float);
    let input = part(this.#x);
    if (norm) this.#model.applyNorm(h, norm, input);
    else stream.copy(h, input);
    if (projection && this.#projected) {
      const narrow = part(this.#projected);
      stream.gemm(input, projection, narrow, { transposeB: true });
      input = narrow;
    }
    stream.gemm(input, head, logits, { transposeB: true });
    if (config.logitSoftCap > 0) stream.softCap(logits, config.logitSoftCap);
  }

  dispose(): void {
    this.#scope.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Runs `use` on pieces of the logits behind the last block: float32 [rows, vocabulary], with the first row's place.
 * @param rows which tokens; all when left out
 */
export async function eachLogits(
  model: DecoderModel,
  activations: Activations,
  use: (logits: Tensor<'float32'>, first: number) => Promise<void> | void,
  rows?: Uint32Array<ArrayBuffer>,
): Promise<void> {
  const { config, stream, device } = model;
  const total = rows?.length ?? activations.residual.shape[0]!;
  const most = rowsAtOnce(model, total);
  using scope = new Scope();
  const head = scope.hold(await Head.load(model, most));
  const ids = rows && scope.hold(stream.upload('uint32', [rows.length], rows));
  const gathered = ids && scope.hold(device.tensor('float32', [most, config.hidden], 'the chosen rows'));
  const logits = scope.hold(device.tensor('float32', [most, config.vocabulary], 'the logits'));
  for (let first = 0; first < total; first += most) {
    using piece = new Scope();
    const count = Math.min(most, total - first);
    const h = piece.hold(gathered ? gathered.rows(0, count) : activations.residual.rows(first, first + count));
    if (ids) stream.gatherRows(activations.residual, piece.hold(ids.rows(first, first + count)), h);
    const out = piece.hold(logits.rows(0, count));
    head.apply(h, out);
    await use(out, first);
  }
  await stream.sync();
}
