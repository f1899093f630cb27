import type { Stream } from '../device/stream.js';
import { Scope } from '../device/tensor.js';
import type { Block, DecoderModel, F32, Float, Linear } from './decoder.js';
import type { LinearRole } from './families/family.js';
import { ropeTables } from './rope.js';

/** Token windows in the device's memory, cut into chunks that bound the scratch memory of a step. */
export interface Windows {
  /** Token ids, window after window. */
  tokens: Uint32Array<ArrayBuffer>;
  windows: number;
  /** Tokens of one window. */
  length: number;
}

/** The linear layers that share an input, in the order of the dataflow. */
export const stages: readonly (readonly LinearRole[])[] = [['q', 'k', 'v'], ['o'], ['gate', 'up'], ['down']];

const chunkTokens = 4096;

/**
 * The residual stream of a set of windows, and the four stages of a block on it:
 * 0: x = norm(h) feeds q, k, v, whose attention is a; 1: h += o(a); 2: x = norm(h) feeds gate and up, whose product is u;
 * 3: h += down(u). `input` gives what a stage's layers see, `advance` applies them. Between the two a traversal may replace weights.
 */
export class Activations {
  readonly model: DecoderModel;
  readonly windows: number;
  readonly length: number;
  /** h, float32 [tokens, hidden]. */
  readonly residual: F32;
  readonly #scope = new Scope();
  readonly #chunks: [start: number, end: number][] = [];
  readonly #cosine: F32;
  readonly #sine: F32;
  readonly #scratch: Record<'x' | 'q' | 'k' | 'v' | 'gate', Float>;
  readonly #mixed: Float;
  readonly #gated: Float;

  private constructor(model: DecoderModel, { tokens, windows, length }: Windows) {
    const { device, stream, precision, config } = model;
    this.model = model;
    this.windows = windows;
    this.length = length;
    const perChunk = Math.max(1, Math.floor(chunkTokens / length)) * length;
    for (let start = 0; start < tokens.length; start += perChunk) {
      this.#chunks.push([start, Math.min(tokens.length, start + perChunk)]);
    }
    const widest = Math.min(perChunk, tokens.length);
    const hold = this.#scope.hold.bind(this.#scope);
    const make = (rows: number, columns: number, label: string) =>
      hold(device.tensor(precision, [rows, columns], label));
    try {
      const { hidden, heads, kvHeads, headDim, intermediate } = config;
      this.residual = hold(device.tensor('float32', [tokens.length, hidden], 'the residual stream'));
      this.#mixed = make(tokens.length, heads * headDim, 'the attention outputs');
      this.#gated = make(tokens.length, intermediate, 'the MLP’s inner activations');
      this.#scratch = {
        x: make(widest, hidden, 'normalised inputs'),
        q: make(widest, heads * headDim, 'queries'),
        k: make(widest, kvHeads * headDim, 'keys'),
        v: make(widest, kvHeads * headDim, 'values'),
        gate: make(widest, intermediate, 'gates'),
      };
      const { cosine, sine, half } = ropeTables(config, length);
      this.#cosine = hold(stream.upload('float32', [length, half], cosine));
      this.#sine = hold(stream.upload('float32', [length, half], sine));
    } catch (error) {
      this.#scope.dispose();
      throw error;
    }
  }

  /** Embeds the tokens. */
  static async create(model: DecoderModel, windows: Windows): Promise<Activations> {
    const activations = new Activations(model, windows);
    try {
      using table = await model.loadEmbedding();
      using ids = model.stream.upload('uint32', [windows.tokens.length], windows.tokens);
      model.stream.embedding(table, ids, activations.residual);
      await model.stream.sync();
      return activations;
    } catch (error) {
      activations.dispose();
      throw error;
    }
  }

  get #stream(): Stream {
    return this.model.stream;
  }

  /** Runs `use` on each chunk of what the layers of a stage see: [tokens, inputs]. The tensor is valid until the next op on the same stage. */
  input(block: Block, stage: number, use: (x: Float) => void): void {
    for (const [start, end] of this.#chunks) {
      using x = this.#inputOf(block, stage, start, end);
      use(x);
    }
  }

  #inputOf(block: Block, stage: number, start: number, end: number): Float {
    if (stage === 1) return this.#mixed.rows(start, end);
    if (stage === 3) return this.#gated.rows(start, end);
    const x = this.#scratch.x.rows(0, end - start);
    using h = this.residual.rows(start, end);
    this.#stream.rmsNorm(h, stage === 0 ? block.attentionNorm : block.mlpNorm, this.model.config.normEps, x);
    return x;
  }

  /** Applies the layers of a stage to all tokens. */
  advance(block: Block, stage: number): void {
    for (const [start, end] of this.#chunks) {
      using scope = new Scope();
      const hold = <T extends { dispose(): void }>(tensor: T) => scope.hold(tensor);
      const x = hold(this.#inputOf(block, stage, start, end));
      const part = (tensor: Float) => hold(tensor.rows(0, end - start) as Float);
      if (stage === 0) this.#attend(block, x, part, hold(this.#mixed.rows(start, end)));
      else if (stage === 2) this.#gate(block, x, part, hold(this.#gated.rows(start, end)));
      else this.#addLinear(stage === 1 ? block.linears.o : block.linears.down, x, hold(this.residual.rows(start, end)));
    }
  }

  #linear({ weight, bias }: Linear, x: Float, out: Float): void {
    this.#stream.gemm(x, weight, out, { transposeB: true });
    if (bias) this.#stream.addBias(out, bias);
  }

  #addLinear({ weight, bias }: Linear, x: Float, h: F32): void {
    this.#stream.gemm(x, weight, h, { transposeB: true, beta: 1 });
    if (bias) this.#stream.addBias(h, bias);
  }

  #attend(block: Block, x: Float, part: (tensor: Float) => Float, out: Float): void {
    const stream = this.#stream;
    const { headDim, normEps } = this.model.config;
    const [q, k, v] = [part(this.#scratch.q), part(this.#scratch.k), part(this.#scratch.v)];
    this.#linear(block.linears.q, x, q);
    this.#linear(block.linears.k, x, k);
    this.#linear(block.linears.v, x, v);
    if (block.queryNorm) stream.rmsNorm(q, block.queryNorm, normEps, q);
    if (block.keyNorm) stream.rmsNorm(k, block.keyNorm, normEps, k);
    stream.rope(q, this.#cosine, this.#sine, headDim, this.length);
    stream.rope(k, this.#cosine, this.#sine, headDim, this.length);
    const scale = 1 / Math.sqrt(headDim);
    stream.attention(q, k, v, out, { headDim, sequence: this.length, scale, window: block.slidingWindow });
  }

  #gate(block: Block, x: Float, part: (tensor: Float) => Float, out: Float): void {
    const gate = part(this.#scratch.gate);
    this.#linear(block.linears.gate, x, gate);
    this.#linear(block.linears.up, x, out);
    this.#stream.gatedActivation(gate, out, out, this.model.config.activation);
  }

  /** All four stages. */
  async run(block: Block): Promise<void> {
    for (let stage = 0; stage < stages.length; stage++) this.advance(block, stage);
    await this.#stream.sync();
  }

  dispose(): void {
    this.#scope.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
