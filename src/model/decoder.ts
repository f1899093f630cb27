import type { LayerShape } from '../allocation/allocation.js';
import { floatDtypes, isFloatDtype, type SafetensorsDtype } from '../checkpoint/dtype.js';
import { type Checkpoint, quantizationOf } from '../checkpoint/folder.js';
import type { Device } from '../device/device.js';
import type { Stream } from '../device/stream.js';
import { allocateArray, type Scope, type Tensor } from '../device/tensor.js';
import { AlpsError, describe } from '../errors.js';
import { type Block, loadBlock } from './block.js';
import type { DecoderConfig } from './config.js';
import type { Architecture, LinearSpec } from './families/family.js';
import { familyOf } from './families/index.js';
import { expectedTensors, linearShape, linearsOf, tensorOf, titleOf } from './shapes.js';

export type Precision = 'float32' | 'bfloat16';
export type F32 = Tensor<'float32'>;
export type Float = Tensor<Precision>;

/** A decoder whose weights stay in its checkpoint until a block is asked for. */
export class DecoderModel {
  readonly checkpoint: Checkpoint;
  readonly architecture: Architecture;
  readonly stream: Stream;
  readonly precision: Precision;

  private constructor(checkpoint: Checkpoint, architecture: Architecture, stream: Stream, precision: Precision) {
    this.checkpoint = checkpoint;
    this.architecture = architecture;
    this.stream = stream;
    this.precision = precision;
  }

  get device(): Device {
    return this.stream.device;
  }
  get config(): DecoderConfig {
    return this.architecture.config;
  }

  /**
   * Reads the configuration and checks that every tensor is there with its shape.
   * @throws AlpsError `UNSUPPORTED_MODEL`, `INVALID_CHECKPOINT`
   */
  static open(checkpoint: Checkpoint, stream: Stream, precision: Precision = 'float32'): DecoderModel {
    const architecture = readArchitecture(checkpoint);
    const model = new DecoderModel(checkpoint, architecture, stream, precision);
    for (const [name, shape] of expectedTensors(architecture)) model.#check(name, shape);
    return model;
  }

  /** All matrices that are pruned, in the order of the dataflow. */
  linears(): LinearSpec[] {
    return linearsOf(this.architecture);
  }

  /** Their names in reports, and their sizes. */
  layerSizes(): LayerShape[] {
    return this.linears().map((spec) => {
      const [outputs, inputs] = linearShape(this.config, spec);
      return { name: titleOf(spec), outputs, inputs };
    });
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

  /** The dtype in which the checkpoint has a tensor. */
  storedDtype(name: string) {
    return floatDtypes[this.checkpoint.tensors.get(name)!.dtype as SafetensorsDtype & keyof typeof floatDtypes];
  }

  /** A tensor of the checkpoint on the device, converted to a dtype. */
  async load<D extends Precision>(name: string, dtype: D): Promise<Tensor<D>> {
    const bytes = await this.checkpoint.read(name);
    return this.#convert(this.#upload(name, this.checkpoint.tensors.get(name)!.shape, bytes), dtype);
  }

  #upload(name: string, shape: readonly number[], bytes: Uint8Array<ArrayBuffer>): Tensor {
    const stored = this.storedDtype(name);
    const array = allocateArray(stored, 0).constructor as new (buffer: ArrayBuffer) => never;
    return this.stream.upload(stored, shape, new array(bytes.buffer), name);
  }

  #convert<D extends Precision>(raw: Tensor, dtype: D): Tensor<D> {
    if (raw.dtype === dtype) return raw as Tensor as Tensor<D>;
    try {
      const converted = this.device.empty(dtype, raw.shape, 'converted weights');
      this.stream.copy(raw, converted);
      return converted;
    } finally {
      raw.dispose();
    }
  }

  /**
   * A linear layer's weights [outputs, inputs], however they are stored.
   * @param read fills `out` with a tensor's bytes from `offset` on; default: of the checkpoint
   */
  async loadLinear<D extends Precision>(
    spec: LinearSpec,
    dtype: D,
    read: (name: string, out: Uint8Array, offset: number) => Promise<void> = (name, out, offset) =>
      this.checkpoint.readInto(name, out, { offset }),
  ): Promise<Tensor<D>> {
    const tensor = tensorOf(spec);
    const { index, count } = spec.expert ?? { index: 0, count: 1 };
    const bytes = new Uint8Array(this.checkpoint.tensors.get(tensor)!.byteLength / count);
    await read(tensor, bytes, bytes.length * index);
    return this.linearOf(spec, bytes, dtype);
  }

  /** The same from the bytes that the checkpoint has, or is to have; they must not change until the stream gets there. */
  linearOf<D extends Precision>(spec: LinearSpec, bytes: Uint8Array<ArrayBuffer>, dtype: D): Tensor<D> {
    const tensor = tensorOf(spec);
    const [outputs, inputs] = linearShape(this.config, spec);
    const shape = spec.transposed ? [inputs, outputs] : [outputs, inputs];
    const raw = this.#upload(tensor, shape, bytes);
    if (!spec.transposed) return this.#convert(raw, dtype);
    try {
      const turned = this.device.empty(raw.dtype, [outputs, inputs], tensor);
      this.stream.transpose(raw, turned);
      return this.#convert(turned, dtype);
    } finally {
      raw.dispose();
    }
  }

  /** Reads a block's weights onto the device. The caller disposes it. */
  loadBlock(layer: number): Promise<Block> {
    return loadBlock(this, layer);
  }

  /** A norm's weight, and its bias where the model's norms have one; undefined without a name. */
  async loadNorm(name: string | undefined, scope: Scope): Promise<Norm | undefined> {
    if (name === undefined) return undefined;
    const weight = scope.hold(await this.load(`${name}.weight`, 'float32'));
    if (this.config.norm === 'rms') return { weight };
    return { weight, bias: scope.hold(await this.load(`${name}.bias`, 'float32')) };
  }

  /** out = norm(x), by the model's kind of norm. */
  applyNorm(x: Float, { weight, bias }: Norm, out: Float): void {
    const { normEps, normOffset } = this.config;
    if (bias) this.stream.layerNorm(x, weight, bias, normEps, out);
    else this.stream.rmsNorm(x, weight, normEps, out, normOffset);
  }

  /** [vocabulary, embeddingSize]; the embedding table where the two are tied. */
  loadHead(): Promise<Float> {
    const { embedding, head } = this.architecture;
    return this.load(`${this.config.tiedEmbeddings ? embedding : head}.weight`, this.precision);
  }
}

export interface Norm {
  weight: F32;
  bias?: F32;
}

/** Reads a checkpoint's architecture without its weights. */
export function readArchitecture(checkpoint: Checkpoint): Architecture {
  const family = familyOf(checkpoint.config);
  const quantization = quantizationOf(checkpoint);
  if (quantization) {
    throw new AlpsError(
      'UNSUPPORTED_MODEL',
      `${checkpoint.folder} is quantised (${quantization}); prune the original weights`,
    );
  }
  const architecture = family.read(checkpoint.config, (name) => checkpoint.tensors.has(name));
  const { config, embedding, head } = architecture;
  if (checkpoint.tensors.has(`${head}.weight`)) {
    // A head of its own counts, whatever config.json says of ties, as in transformers from version 5 on; a tied one alone is the table too.
    if (config.tiedEmbeddings && !checkpoint.tensors.has(`${embedding}.weight`)) architecture.embedding = head;
    else config.tiedEmbeddings = false;
  }
  const { heads, kvHeads, ropes, headDim, experts } = config;
  if (heads % kvHeads !== 0) {
    throw new AlpsError(
      'INVALID_CHECKPOINT',
      `config.json: ${heads} heads are no multiple of ${kvHeads} key-value heads`,
    );
  }
  if (ropes.length > 0 && headDim % 2 !== 0)
    throw new AlpsError('INVALID_CHECKPOINT', `config.json: the head_dim ${headDim} is odd`);
  if (experts && experts.perToken > experts.count)
    throw new AlpsError(
      'INVALID_CHECKPOINT',
      `config.json: ${experts.perToken} experts a token, but there are ${experts.count}`,
    );
  return architecture;
}
