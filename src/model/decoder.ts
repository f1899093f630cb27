import { floatDtypes, isFloatDtype, type SafetensorsDtype } from '../checkpoint/dtype.js';
import { type Checkpoint, quantizationOf } from '../checkpoint/folder.js';
import type { Device } from '../device/device.js';
import type { Stream } from '../device/stream.js';
import { allocateArray, Scope, type Tensor } from '../device/tensor.js';
import { AlpsError, describe } from '../errors.js';
import type { DecoderConfig } from './config.js';
import type { Family, LinearRole } from './families/family.js';
import { familyOf } from './families/index.js';

export type Precision = 'float32' | 'bfloat16';
export type F32 = Tensor<'float32'>;
export type Float = Tensor<Precision>;

/** A linear layer of a block. */
export interface Linear {
  role: LinearRole;
  /** Tensor name without ".weight". */
  name: string;
  /** [outputs, inputs], in the model's precision. Pruning replaces it. */
  weight: Float;
  bias: F32 | undefined;
  outputs: number;
  inputs: number;
}

/** The weights of one decoder block, on a device. */
export interface Block {
  layer: number;
  linears: Record<LinearRole, Linear>;
  attentionNorm: F32;
  mlpNorm: F32;
  queryNorm: F32 | undefined;
  keyNorm: F32 | undefined;
  slidingWindow: number;
  dispose(): void;
}

const roles: readonly LinearRole[] = ['q', 'k', 'v', 'o', 'gate', 'up', 'down'];

/** A decoder whose weights stay in its checkpoint until a block is asked for. */
export class DecoderModel {
  readonly checkpoint: Checkpoint;
  readonly config: DecoderConfig;
  readonly stream: Stream;
  readonly precision: Precision;
  readonly #family: Family;

  private constructor(
    checkpoint: Checkpoint,
    family: Family,
    config: DecoderConfig,
    stream: Stream,
    precision: Precision,
  ) {
    this.checkpoint = checkpoint;
    this.#family = family;
    this.config = config;
    this.stream = stream;
    this.precision = precision;
  }

  get device(): Device {
    return this.stream.device;
  }

  /**
   * Reads the configuration and checks that every tensor is there with its shape.
   * @throws AlpsError `UNSUPPORTED_MODEL`, `INVALID_CHECKPOINT`
   */
  static open(checkpoint: Checkpoint, stream: Stream, precision: Precision = 'float32'): DecoderModel {
    const family = familyOf(checkpoint.config);
    const quantization = quantizationOf(checkpoint);
    if (quantization) {
      throw new AlpsError(
        'UNSUPPORTED_MODEL',
        `${checkpoint.folder} is quantised (${quantization}); prune the original weights`,
      );
    }
    const config = family.readConfig(checkpoint.config);
    if (config.heads % config.kvHeads !== 0) {
      throw new AlpsError(
        'INVALID_CHECKPOINT',
        `config.json: ${config.heads} heads are no multiple of ${config.kvHeads} key-value heads`,
      );
    }
    if (config.headDim % 2 !== 0)
      throw new AlpsError('INVALID_CHECKPOINT', `config.json: the head_dim ${config.headDim} is odd`);
    const model = new DecoderModel(checkpoint, family, config, stream, precision);
    for (const [name, shape] of model.#expectedTensors()) model.#check(name, shape);
    return model;
  }

  /** Rows and columns of a linear layer. */
  linearShape(role: LinearRole): [outputs: number, inputs: number] {
    const { hidden, intermediate, heads, kvHeads, headDim } = this.config;
    const shapes: Record<LinearRole, [number, number]> = {
      q: [heads * headDim, hidden],
      k: [kvHeads * headDim, hidden],
      v: [kvHeads * headDim, hidden],
      o: [hidden, heads * headDim],
      gate: [intermediate, hidden],
      up: [intermediate, hidden],
      down: [hidden, intermediate],
    };
    return shapes[role];
  }

  /** Tensor names of all linear layers that are pruned, without ".weight". */
  linearNames(): string[] {
    const layers = Array.from({ length: this.config.layers }, (_, layer) => layer);
    return layers.flatMap((layer) => roles.map((role) => this.#family.names.linear(layer, role)));
  }

  #hasBias(role: LinearRole): boolean {
    const { attentionBias, attentionOutputBias, mlpBias } = this.config;
    if (role === 'o') return attentionOutputBias;
    return role === 'q' || role === 'k' || role === 'v' ? attentionBias : mlpBias;
  }

  *#expectedTensors(): Iterable<[name: string, shape: number[]]> {
    const { names } = this.#family;
    const { hidden, vocabulary, layers, headDim, qkNorm } = this.config;
    yield [`${names.embedding}.weight`, [vocabulary, hidden]];
    yield [`${names.finalNorm}.weight`, [hidden]];
    if (!this.config.tiedEmbeddings) yield [`${names.head}.weight`, [vocabulary, hidden]];
    for (let layer = 0; layer < layers; layer++) {
      yield [`${names.attentionNorm(layer)}.weight`, [hidden]];
      yield [`${names.mlpNorm(layer)}.weight`, [hidden]];
      if (qkNorm) {
        yield [`${names.queryNorm(layer)}.weight`, [headDim]];
        yield [`${names.keyNorm(layer)}.weight`, [headDim]];
      }
      for (const role of roles) {
        const shape = this.linearShape(role);
        yield [`${names.linear(layer, role)}.weight`, shape];
        if (this.#hasBias(role)) yield [`${names.linear(layer, role)}.bias`, [shape[0]]];
      }
    }
  }

  #check(name: string, shape: number[]): void {
    const tensor = this.checkpoint.tensors.get(name);
    if (!tensor) throw new AlpsError('INVALID_CHECKPOINT', `${this.checkpoint.folder} lacks the tensor ${name}`);
    if (tensor.shape.length !== shape.length || tensor.shape.some((d, i) => d !== shape[i])) {
      throw new AlpsError(
        'INVALID_CHECKPOINT',
        `Tensor ${name} has the shape ${describe(tensor.shape)}; config.json asks for ${describe(shape)}`,
      );
    }
    if (!isFloatDtype(tensor.dtype))
      throw new AlpsError('UNSUPPORTED_MODEL', `Tensor ${name} has the dtype ${tensor.dtype}`);
  }

  /** A tensor of the checkpoint on the device, converted to a dtype. */
  async load<D extends Precision>(name: string, dtype: D): Promise<Tensor<D>> {
    const info = this.checkpoint.tensors.get(name)!;
    const bytes = await this.checkpoint.read(name);
    const stored = floatDtypes[info.dtype as SafetensorsDtype & keyof typeof floatDtypes];
    const array = allocateArray(stored, 0).constructor as new (buffer: ArrayBuffer) => never;
    const raw = this.stream.upload(stored, info.shape, new array(bytes.buffer), name);
    if (stored === dtype) return raw as Tensor as Tensor<D>;
    try {
      const converted = this.device.tensor(dtype, info.shape, name);
      this.stream.copy(raw, converted);
      return converted;
    } finally {
      raw.dispose();
    }
  }

  /** Reads a block's weights onto the device. The caller disposes it. */
  async loadBlock(layer: number): Promise<Block> {
    const { names } = this.#family;
    const scope = new Scope();
    const norm = async (name: string) => scope.hold(await this.load(`${name}.weight`, 'float32'));
    try {
      const linears = {} as Record<LinearRole, Linear>;
      for (const role of roles) {
        const name = names.linear(layer, role);
        const [outputs, inputs] = this.linearShape(role);
        const weight = await this.load(`${name}.weight`, this.precision);
        const bias = this.#hasBias(role) ? scope.hold(await this.load(`${name}.bias`, 'float32')) : undefined;
        const linear: Linear = { role, name, weight, bias, outputs, inputs };
        linears[role] = linear;
        scope.hold({ dispose: () => linear.weight.dispose() });
      }
      return {
        layer,
        linears,
        attentionNorm: await norm(names.attentionNorm(layer)),
        mlpNorm: await norm(names.mlpNorm(layer)),
        queryNorm: this.config.qkNorm ? await norm(names.queryNorm(layer)) : undefined,
        keyNorm: this.config.qkNorm ? await norm(names.keyNorm(layer)) : undefined,
        slidingWindow: this.config.slidingWindow[layer] ?? 0,
        dispose: () => scope.dispose(),
      };
    } catch (error) {
      scope.dispose();
      throw error;
    }
  }

  /** The weights of the first and the last step. */
  loadEmbedding(): Promise<Float> {
    return this.load(`${this.#family.names.embedding}.weight`, this.precision);
  }
  loadFinalNorm(): Promise<F32> {
    return this.load(`${this.#family.names.finalNorm}.weight`, 'float32');
  }
  /** [vocabulary, hidden]; the embedding table where the two are tied. */
  loadHead(): Promise<Float> {
    const { embedding, head } = this.#family.names;
    return this.load(`${this.config.tiedEmbeddings ? embedding : head}.weight`, this.precision);
  }
}
