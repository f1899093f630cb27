import type { Stream } from '../device/stream.js';
import { Scope, type Tensor } from '../device/tensor.js';
import { type Block, type LinearPart, type MlpParts, stageCount } from './block.js';
import type { DecoderModel, F32, Float, Norm } from './decoder.js';
import { Embedding } from './embedding.js';
import { ExpertRun } from './expert-run.js';
import { chunkLength, innerWidth, rowsAtOnce } from './memory.js';
import { ropeTables } from './rope.js';

/** Token windows in the device's memory, cut into chunks that bound the scratch memory of a step. */
export interface Windows {
  /** Token ids, window after window. */
  tokens: Uint32Array<ArrayBuffer>;
  windows: number;
  /** Tokens of one window. */
  length: number;
}

/** Tokens of a chunk. */
type Range = readonly [start: number, end: number];

/** Keys and values of the tokens before, by block, for windows that grow by a token at a time. */
class KeyValueCache {
  position = 0;
  readonly #blocks: { keys: Float; values: Float }[];

  constructor({ device, precision, config }: DecoderModel, windows: number, length: number, scope: Scope) {
    const shape = [windows * length, config.kvHeads * config.headDim];
    const make = (label: string) => scope.hold(device.tensor(precision, shape, label));
    this.#blocks = Array.from({ length: config.layers }, () => ({
      keys: make('kept keys'),
      values: make('kept values'),
    }));
  }

  /** Of one block. */
  of(layer: number): { keys: Float; values: Float } {
    return this.#blocks[layer]!;
  }
}

/**
 * The residual stream of a set of windows, and the four stages of a block on it:
 * 0: x = norm(h) feeds q, k, v, whose attention is a; 1: h += o(a); 2: x = norm(h) feeds gate and up, whose product is u;
 * 3: h += down(u). `begin` and `input` give what a stage's layers see, `advance` applies them. Between the two a traversal
 * may replace weights, but those of stages 0 and 2 not before 1 and 3 where these are made on demand. Norms stand where the model has them; with
 * experts, stages 2 and 3 run each on its own tokens.
 *
 * Either of whole windows ({@link create}), or of windows that grow by a token at a time ({@link growing}), whose keys and values are kept.
 */
export class Activations {
  readonly model: DecoderModel;
  readonly windows: number;
  readonly length: number;
  /** h, float32 [tokens, hidden]. */
  readonly residual: F32;
  readonly #scope = new Scope();
  readonly #chunks: Range[] = [];
  readonly #angles: { cosine: F32; sine: F32 }[] = [];
  readonly #scratch: Record<'x' | 'q' | 'k' | 'v' | 'gate', Float>;
  /** What attention or MLP add, where a norm stands between that and the residual stream. */
  readonly #branch: F32 | undefined;
  /** What attention gives between stages 0 and 1, or the MLP's inner layers between 2 and 3: never both. Of all tokens, or of one chunk. */
  readonly #between: Float;
  readonly #makesOnDemand: boolean;
  readonly #experts: ExpertRun | undefined;
  readonly #cache: KeyValueCache | undefined;

  private constructor(
    model: DecoderModel,
    windows: number,
    length: number,
    { positions = 0, makesOnDemand = false }: { positions?: number; makesOnDemand?: boolean } = {},
  ) {
    const { device, stream, precision, config } = model;
    this.#makesOnDemand = makesOnDemand;
    this.model = model;
    this.windows = windows;
    this.length = length;
    const tokens = windows * length;
    const perChunk = chunkLength(rowsAtOnce(config, device), length);
    for (let start = 0; start < tokens; start += perChunk) {
      this.#chunks.push([start, Math.min(tokens, start + perChunk)]);
    }
    const widest = Math.min(perChunk, tokens);
    const hold = this.#scope.hold.bind(this.#scope);
    const make = (rows: number, columns: number, label: string) =>
      hold(device.tensor(precision, [rows, columns], label));
    try {
      const { hidden, heads, kvHeads, headDim } = config;
      const intermediate = innerWidth(config);
      this.residual = hold(device.tensor('float32', [tokens, hidden], 'the residual stream'));
      const numbers = (makesOnDemand ? widest : tokens) * Math.max(heads * headDim, intermediate);
      this.#between = hold(device.tensor(precision, [numbers], 'what attention or MLP make inside'));
      this.#scratch = {
        x: make(widest, hidden, 'normalised inputs'),
        q: make(widest, heads * headDim, 'queries'),
        k: make(widest, kvHeads * headDim, 'keys'),
        v: make(widest, kvHeads * headDim, 'values'),
        gate: make(widest, config.mlp === 'gated' ? intermediate : 0, 'gates'),
      };
      this.#branch =
        config.normPlacement === 'sandwich'
          ? hold(device.tensor('float32', [widest, hidden], 'a branch’s outputs'))
          : undefined;
      this.#cache = positions > 0 ? new KeyValueCache(model, windows, positions, this.#scope) : undefined;
      const angles = positions || length;
      for (const rope of config.ropes) {
        const { cosine, sine, half } = ropeTables(rope, angles);
        this.#angles.push({
          cosine: hold(stream.upload('float32', [angles, half], cosine)),
          sine: hold(stream.upload('float32', [angles, half], sine)),
        });
      }
      this.#experts = config.experts ? hold(new ExpertRun(model, this.residual)) : undefined;
    } catch (error) {
      this.#scope.dispose();
      throw error;
    }
  }

  /**
   * Embeds the tokens.
   * @param how `makesOnDemand`: stages 0 and 2 (without experts) are run chunk by chunk when stages 1 and 3 are, whose inputs are not kept then;
   * `embedded`: the residual stream of the same tokens, where there is one, before its first block
   */
  static async create(
    model: DecoderModel,
    { tokens, windows, length }: Windows,
    how: { makesOnDemand?: boolean; embedded?: F32 } = {},
  ): Promise<Activations> {
    const activations = new Activations(model, windows, length, how);
    try {
      if (how.embedded) {
        model.stream.copy(how.embedded, activations.residual);
        return activations;
      }
      using scope = new Scope();
      const embedding = scope.hold(await Embedding.load(model));
      const ids = scope.hold(model.stream.upload('uint32', [tokens.length], tokens));
      embedding.apply(ids, { length, position: 0 }, activations.residual);
      await model.stream.sync();
      return activations;
    } catch (error) {
      activations.dispose();
      throw error;
    }
  }

  /** Windows without a token so far, for {@link grow}; of at most `length` tokens. */
  static growing(model: DecoderModel, windows: number, length: number): Activations {
    return new Activations(model, windows, 1, { positions: length });
  }

  /** Makes the residual stream that of the next token of each window. @param position of it; 0 begins anew */
  grow(embedding: Embedding, ids: Tensor<'uint32'>, position: number): void {
    this.#cache!.position = position;
    embedding.apply(ids, { length: 1, position }, this.residual);
  }

  get #stream(): Stream {
    return this.model.stream;
  }

  /** Must be awaited before a stage's inputs are looked at or its layers applied: experts get their tokens here. */
  async begin(block: Block, stage: number): Promise<void> {
    if (stage === 2 && block.router) await this.#experts!.route(block);
  }

  /** Tokens that a group of layers sees. */
  tokensOf(block: Block, stage: number, group: number): number {
    return stage >= 2 && block.router ? this.#experts!.tokensOf(group) : this.windows * this.length;
  }

  /** Runs `use` on each chunk of what the layers of a group see: [tokens, inputs]. The tensor is valid until `use` returns. */
  input(block: Block, stage: number, group: number, use: (x: Float) => void): void {
    if (stage >= 2 && block.router) {
      if (stage === 2) this.#experts!.input(block, group, use);
      else this.#experts!.inner(group, use);
      return;
    }
    for (const chunk of this.#chunks.keys()) {
      using x = this.chunkInput(block, stage, chunk);
      use(x);
    }
  }

  /**
   * What the layers of a stage without experts see of one chunk, in the order of {@link input}: [tokens, inputs]. Valid until the next call; the
   * caller disposes it.
   */
  chunkInput(block: Block, stage: number, chunk: number): Float {
    const range = this.#chunks[chunk]!;
    if (stage % 2 === 0) return this.#normalised(block, stage, range);
    if (this.#makesOnDemand) this.#make(block, stage - 1, range);
    return this.#made(stage, range);
  }

  /** How many chunks the tokens are cut into. */
  get chunkCount(): number {
    return this.#chunks.length;
  }

  /** The residual stream of one chunk; the caller disposes it. */
  chunkResidual(chunk: number): F32 {
    return this.residual.rows(...this.#chunks[chunk]!);
  }

  /** What stage 1 or 3 sees of some tokens, where it is kept. */
  #made(stage: number, [start, end]: Range): Float {
    const { config } = this.model;
    const width = stage === 1 ? config.heads * config.headDim : config.intermediate;
    const first = this.#makesOnDemand ? 0 : start;
    using numbers = this.#between.rows(first * width, (first + end - start) * width);
    return numbers.reshape(end - start, width) as Float;
  }

  #normalised(block: Block, stage: number, [start, end]: Range): Float {
    const x = this.#scratch.x.rows(0, end - start) as Float;
    using h = this.residual.rows(start, end);
    if (this.model.config.normPlacement === 'post') this.#stream.copy(h, x);
    else this.model.applyNorm(h, stage === 0 ? block.attentionNorm : block.mlpNorm, x);
    return x;
  }

  /** Applies the layers of a stage to all tokens. */
  advance(block: Block, stage: number): void {
    if (stage >= 2 && block.router) {
      if (stage === 2) this.#experts!.advanceInner(block, (parts, x, gate, out) => this.#gate(parts, x, gate, out));
      else this.#experts!.advanceOuter(block, ({ down }, x, out) => this.#linear(down, x, out));
      return;
    }
    if (stage % 2 === 0) {
      if (!this.#makesOnDemand) for (const range of this.#chunks) this.#make(block, stage, range);
      return;
    }
    for (const chunk of this.#chunks.keys()) {
      using x = this.chunkInput(block, stage, chunk);
      this.advanceChunk(block, stage, chunk, x);
    }
  }

  /** Stage 0 or 2 on some tokens. */
  #make(block: Block, stage: number, range: Range): void {
    using scope = new Scope();
    const part = (tensor: Float) => scope.hold(tensor.rows(0, range[1] - range[0]) as Float);
    const x = scope.hold(this.#normalised(block, stage, range));
    const out = scope.hold(this.#made(stage + 1, range));
    if (stage === 0) this.#attend(block, x, part, out);
    else this.#gate(block.mlp[0]!, x, part(this.#scratch.gate), out);
  }

  /**
   * Applies stage 1, or 3 without experts, to one chunk.
   * @param x the chunk's input
   * @param onSum called with the residual stream h + W x of the chunk, where a stage adds to it as it is, before bias and norm
   */
  advanceChunk(block: Block, stage: number, chunk: number, x: Float, onSum?: (h: F32) => void): void {
    using h = this.chunkResidual(chunk);
    if (stage === 1) this.#add(block.attention.o, x, h, block.attentionNorm, block.attentionOutNorm, onSum);
    else this.#add(block.mlp[0]!.down, x, h, block.mlpNorm, block.mlpOutNorm, onSum);
  }

  #linear({ weight, bias }: LinearPart, x: Float, out: Float): void {
    this.#stream.gemm(x, weight, out, { transposeB: true });
    if (bias) this.#stream.addBias(out, bias);
  }

  /** h += linear(x), with the norm on the sum (`post`) or on what is added (`sandwich`) where the model has one. */
  #add(
    linear: LinearPart,
    x: Float,
    h: F32,
    norm: Norm,
    outNorm: Norm | undefined,
    onSum: ((h: F32) => void) | undefined,
  ): void {
    if (this.#branch && outNorm) {
      using branch = this.#branch.rows(0, h.shape[0]!);
      this.#linear(linear, x, branch);
      this.model.applyNorm(branch, outNorm, branch);
      this.#stream.addTo(branch, h);
      return;
    }
    this.#stream.gemm(x, linear.weight, h, { transposeB: true, beta: 1 });
    onSum?.(h);
    if (linear.bias) this.#stream.addBias(h, linear.bias);
    if (this.model.config.normPlacement === 'post') this.model.applyNorm(h, norm, h);
  }

  #attend(block: Block, x: Float, part: (tensor: Float) => Float, out: Float): void {
    const stream = this.#stream;
    const { headDim, normEps, normOffset, ropeOf, attentionSoftCap } = this.model.config;
    const [q, k, v] = [part(this.#scratch.q), part(this.#scratch.k), part(this.#scratch.v)];
    this.#linear(block.attention.q, x, q);
    this.#linear(block.attention.k, x, k);
    this.#linear(block.attention.v, x, v);
    if (block.queryNorm) stream.rmsNorm(q, block.queryNorm, normEps, q, normOffset);
    if (block.keyNorm) stream.rmsNorm(k, block.keyNorm, normEps, k, normOffset);
    const position = this.#cache?.position ?? 0;
    const angles = this.#angles[ropeOf[block.layer] ?? -1];
    if (angles) {
      using cosine = angles.cosine.rows(position, position + this.length);
      using sine = angles.sine.rows(position, position + this.length);
      stream.rope(q, cosine, sine, headDim, this.length);
      stream.rope(k, cosine, sine, headDim, this.length);
    }
    const { attentionScale: scale, slidingWindow: window } = block;
    const how = { headDim, scale, window, softCap: attentionSoftCap };
    if (this.#cache) stream.attentionStep({ q, k, v, ...this.#cache.of(block.layer) }, out, { ...how, position });
    else stream.attention(q, k, v, out, { ...how, sequence: this.length });
  }

  #gate({ gate, up }: MlpParts, x: Float, gates: Float, out: Float): void {
    const { activation } = this.model.config;
    this.#linear(up, x, out);
    if (!gate) {
      this.#stream.activate(out, out, activation);
      return;
    }
    this.#linear(gate, x, gates);
    this.#stream.gatedActivation(gates, out, out, activation);
  }

  /** All four stages. */
  async run(block: Block): Promise<void> {
    await this.apply(block);
    await this.#stream.sync();
  }

  /** The same without waiting for what was queued. */
  async apply(block: Block): Promise<void> {
    for (let stage = 0; stage < stageCount; stage++) {
      await this.begin(block, stage);
      this.advance(block, stage);
    }
  }

  /** The whole model, block by block: each is read, run and dropped. */
  async runAll(onBlock?: (layer: number) => void): Promise<void> {
    for (let layer = 0; layer < this.model.config.layers; layer++) {
      const block = await this.model.loadBlock(layer);
      try {
        await this.run(block);
      } finally {
        block.dispose();
      }
      onBlock?.(layer);
    }
  }

  dispose(): void {
    this.#scope.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
