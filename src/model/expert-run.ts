import { Scope } from '../device/tensor.js';
import type { Block, MlpParts } from './block.js';
import type { DecoderModel, F32, Float } from './decoder.js';
import { chunkTokens } from './memory.js';

/** Where an expert's tokens are: their rows of the residual stream, and their rows among all experts' activations. */
interface Share {
  rows: Uint32Array<ArrayBuffer>;
  weights: Float32Array<ArrayBuffer>;
  start: number;
}

/** A mixture of experts on all tokens: each expert sees the tokens that the router sends to it, in their order. */
export class ExpertRun {
  readonly #model: DecoderModel;
  readonly #residual: F32;
  readonly #scope = new Scope();
  readonly #gathered: F32;
  readonly #x: Float;
  readonly #gate: Float;
  readonly #out: F32;
  /** Inner activations of all experts, expert after expert: [tokens × experts a token, intermediate]. */
  readonly #inner: Float;
  #shares: Share[] = [];

  constructor(model: DecoderModel, residual: F32) {
    const { device, precision, config } = model;
    const { intermediate, perToken } = config.experts!;
    const tokens = residual.shape[0]!;
    const rows = Math.min(chunkTokens, tokens);
    this.#model = model;
    this.#residual = residual;
    const hold = this.#scope.hold.bind(this.#scope);
    try {
      this.#gathered = hold(device.tensor('float32', [rows, config.hidden], 'an expert’s tokens'));
      this.#x = hold(device.tensor(precision, [rows, config.hidden], 'an expert’s inputs'));
      this.#gate = hold(device.tensor(precision, [rows, intermediate], 'an expert’s gates'));
      this.#out = hold(device.tensor('float32', [rows, config.hidden], 'an expert’s outputs'));
      this.#inner = hold(device.tensor(precision, [tokens * perToken, intermediate], 'the experts’ inner activations'));
    } catch (error) {
      this.#scope.dispose();
      throw error;
    }
  }

  /** Sends the tokens to their experts, by the residual stream as it is now. */
  async route(block: Block): Promise<void> {
    const { stream, device, config } = this.#model;
    const { count, perToken, normalise } = config.experts!;
    const tokens = this.#residual.shape[0]!;
    using scope = new Scope();
    const ids = scope.hold(device.tensor('uint32', [tokens, perToken], 'the tokens’ experts'));
    const weights = scope.hold(device.tensor('float32', [tokens, perToken], 'the experts’ weights'));
    const logits = scope.hold(device.tensor('float32', [Math.min(chunkTokens, tokens), count], 'the router’s logits'));
    for (let start = 0; start < tokens; start += chunkTokens) {
      using piece = new Scope();
      const rows = Math.min(chunkTokens, tokens - start);
      const x = piece.hold(this.#gathered.rows(0, rows));
      const scores = piece.hold(logits.rows(0, rows));
      this.#model.applyNorm(piece.hold(this.#residual.rows(start, start + rows)), block.mlpNorm, x);
      stream.gemm(x, block.router!, scores, { transposeB: true });
      stream.topExperts(
        scores,
        piece.hold(ids.rows(start, start + rows)),
        piece.hold(weights.rows(start, start + rows)),
        normalise,
      );
    }
    const [chosen, shares] = await Promise.all([stream.read(ids), stream.read(weights)]);
    this.#shares = sharesOf(chosen, shares, { count, perToken });
  }

  /** Tokens that an expert sees. */
  tokensOf(expert: number): number {
    return this.#shares[expert]!.rows.length;
  }

  /** Runs `use` on each chunk of what an expert's inner layers see. */
  input(block: Block, expert: number, use: (x: Float) => void): void {
    this.#eachChunk(expert, (rows) => {
      using x = this.#normalised(block, rows);
      use(x);
    });
  }

  /** Runs `use` on each chunk of what an expert's last layer sees. */
  inner(expert: number, use: (x: Float) => void): void {
    this.#eachChunk(expert, (rows, start) => {
      using x = this.#inner.rows(start, start + rows.length);
      use(x);
    });
  }

  #eachChunk(expert: number, use: (rows: Uint32Array<ArrayBuffer>, start: number, first: number) => void): void {
    const { rows, start } = this.#shares[expert]!;
    for (let first = 0; first < rows.length; first += chunkTokens)
      use(rows.slice(first, first + chunkTokens), start + first, first);
  }

  #normalised(block: Block, rows: Uint32Array<ArrayBuffer>): Float {
    const { stream } = this.#model;
    using ids = stream.upload('uint32', [rows.length], rows);
    using h = this.#gathered.rows(0, rows.length);
    stream.gatherRows(this.#residual, ids, h);
    const x = this.#x.rows(0, rows.length) as Float;
    this.#model.applyNorm(h, block.mlpNorm, x);
    return x;
  }

  /** Applies the experts' inner layers. */
  advanceInner(block: Block, apply: (parts: MlpParts, x: Float, gate: Float, out: Float) => void): void {
    block.mlp.forEach((parts, expert) => {
      this.#eachChunk(expert, (rows, start) => {
        using x = this.#normalised(block, rows);
        using gate = this.#gate.rows(0, rows.length);
        using out = this.#inner.rows(start, start + rows.length);
        apply(parts, x, gate, out);
      });
    });
  }

  /** Adds the experts' weighted outputs to the residual stream, in the experts' order. */
  advanceOuter(block: Block, apply: (parts: MlpParts, x: Float, out: F32) => void): void {
    const { stream } = this.#model;
    block.mlp.forEach((parts, expert) => {
      const { weights } = this.#shares[expert]!;
      this.#eachChunk(expert, (rows, start, first) => {
        using scope = new Scope();
        const x = scope.hold(this.#inner.rows(start, start + rows.length));
        const out = scope.hold(this.#out.rows(0, rows.length));
        apply(parts, x, out);
        const ids = scope.hold(stream.upload('uint32', [rows.length], rows));
        const share = scope.hold(stream.upload('float32', [rows.length], weights.slice(first, first + rows.length)));
        stream.scatterAddRows(out, ids, share, this.#residual);
      });
    });
  }

  dispose(): void {
    this.#scope.dispose();
  }
}

/** Turns "the experts of each token" into "the tokens of each expert", tokens ascending. */
export function sharesOf(
  ids: Uint32Array,
  weights: Float32Array,
  { count, perToken }: { count: number; perToken: number },
): Share[] {
  const lengths = new Uint32Array(count);
  for (const id of ids) lengths[id]!++;
  let start = 0;
  const shares = Array.from(lengths, (length): Share => {
    const share = { rows: new Uint32Array(length), weights: new Float32Array(length), start };
    start += length;
    return share;
  });
  const filled = new Uint32Array(count);
  for (let i = 0; i < ids.length; i++) {
    const expert = ids[i]!;
    const at = filled[expert]!++;
    shares[expert]!.rows[at] = Math.floor(i / perToken);
    shares[expert]!.weights[at] = weights[i]!;
  }
  return shares;
}
