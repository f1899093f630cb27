import { Scope, type Tensor } from '../device/tensor.js';
import type { DecoderModel, F32, Float } from './decoder.js';
import { chunkTokens } from './memory.js';

/** Token embeddings with what belongs to them: the model's scale, the projection to its width, learned positions. */
export class Embedding {
  readonly #model: DecoderModel;
  readonly #scope: Scope;
  /** [vocabulary, embeddingSize] */
  readonly table: Float;
  readonly #projection: Float | undefined;
  readonly #positions: F32 | undefined;

  private constructor(
    model: DecoderModel,
    scope: Scope,
    table: Float,
    projection: Float | undefined,
    positions: F32 | undefined,
  ) {
    this.#model = model;
    this.#scope = scope;
    this.table = table;
    this.#projection = projection;
    this.#positions = positions;
  }

  /** Reads the weights. */
  static async load(model: DecoderModel): Promise<Embedding> {
    const { architecture, precision } = model;
    const scope = new Scope();
    try {
      const table = scope.hold(await model.load(`${architecture.embedding}.weight`, precision));
      const projection =
        architecture.projectIn && scope.hold(await model.load(`${architecture.projectIn}.weight`, precision));
      const positions =
        architecture.positions && scope.hold(await model.load(`${architecture.positions.name}.weight`, 'float32'));
      return new Embedding(model, scope, table, projection || undefined, positions);
    } catch (error) {
      scope.dispose();
      throw error;
    }
  }

  /**
   * @param ids window after window of `length`
   * @param position of a window's first token
   * @param out float32 [tokens, hidden]
   */
  apply(ids: Tensor<'uint32'>, { length, position }: { length: number; position: number }, out: F32): void {
    const { stream, architecture, config, precision, device } = this.#model;
    const tokens = ids.size;
    using scope = new Scope();
    if (this.#projection) {
      const wide = scope.hold(device.tensor('float32', [Math.min(chunkTokens, tokens), config.embeddingSize]));
      const narrow = scope.hold(device.tensor(precision, wide.shape));
      for (let start = 0; start < tokens; start += chunkTokens) {
        const end = Math.min(start + chunkTokens, tokens);
        using some = ids.rows(start, end);
        using embedded = wide.rows(0, end - start);
        using x = narrow.rows(0, end - start);
        using rows = out.rows(start, end);
        stream.embedding(this.table, some, embedded);
        stream.copy(embedded, x);
        stream.gemm(x, this.#projection, rows, { transposeB: true });
      }
    } else stream.embedding(this.table, ids, out);
    if (config.embeddingScale !== 1) stream.axpby(out, out, 0, config.embeddingScale);
    if (this.#positions) {
      const first = architecture.positions!.offset + position;
      const rows = scope.hold(this.#positions.rows(first, first + length));
      for (let start = 0; start < tokens; start += length) {
        using window = out.rows(start, start + length);
        stream.addTo(rows, window);
      }
    }
  }

  dispose(): void {
    this.#scope.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
