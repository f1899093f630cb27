import { Scope } from '../device/tensor.js';
import type { DecoderModel, F32, Float, Norm } from './decoder.js';
import type { LinearSpec, Part } from './families/family.js';
import { linearShape, partRows, tensorOf, titleOf } from './shapes.js';

/** A matrix of a block that is pruned as one. */
export interface Linear {
  spec: LinearSpec;
  /** For messages and reports. */
  name: string;
  /** [outputs, inputs], in the model's precision. Pruning writes into it. */
  weight: Float;
  /** Whether it did: the weights are no longer the checkpoint's. */
  isPruned: boolean;
  bias: F32 | undefined;
  outputs: number;
  inputs: number;
}

/** The rows of a matrix that do one thing; views on its memory. */
export interface LinearPart {
  weight: Float;
  bias: F32 | undefined;
}

/** An MLP, or one expert; `gate` is undefined in a plain one. */
export interface MlpParts {
  gate: LinearPart | undefined;
  up: LinearPart;
  down: LinearPart;
}

/** The weights of one decoder block, on a device. */
export interface Block {
  layer: number;
  /** By stage of the dataflow, then by input: linears that share one are a group. Experts are groups of their own. */
  stages: readonly (readonly Linear[])[][];
  attention: { q: LinearPart; k: LinearPart; v: LinearPart; o: LinearPart };
  /** One, or one for each expert. */
  mlp: MlpParts[];
  /** [experts, hidden], float32, where there are experts. */
  router: F32 | undefined;
  attentionNorm: Norm;
  mlpNorm: Norm;
  attentionOutNorm: Norm | undefined;
  mlpOutNorm: Norm | undefined;
  queryNorm: F32 | undefined;
  keyNorm: F32 | undefined;
  slidingWindow: number;
  /** What scores are multiplied by. */
  attentionScale: number;
  dispose(): void;
}

/** Stages of a block: what makes queries, keys and values; the layer behind attention; the MLP's inner layers; its last. */
export const stageCount = 4;

/**
 * Reads a block's weights onto the device.
 * @param options `settled`: waits for each matrix that is converted, so that what it is made from is freed before the next one is read
 */
export async function loadBlock(model: DecoderModel, layer: number, { settled = false } = {}): Promise<Block> {
  const scope = new Scope();
  const spec = model.architecture.block(layer);
  const headNorm = async (name: string | undefined) =>
    name === undefined ? undefined : scope.hold(await model.load(`${name}.weight`, 'float32'));
  try {
    const loaded = new Map<LinearSpec, Linear>();
    for (const linear of [...spec.attention.flat(), ...spec.mlp.flat().flat()]) {
      const [outputs, inputs] = linearShape(model.config, linear);
      const weight: Float = scope.hold(await model.loadLinear(linear, model.precision));
      const isConverted = linear.transposed || weight.dtype !== model.storedDtype(tensorOf(linear));
      if (settled && isConverted) await model.stream.sync();
      const bias = linear.bias ? scope.hold(await model.load(`${linear.name}.bias`, 'float32')) : undefined;
      loaded.set(linear, { spec: linear, name: titleOf(linear), weight, isPruned: false, bias, outputs, inputs });
    }
    const all = (specs: LinearSpec[]) => specs.map((linear) => loaded.get(linear)!);
    const [qkv, o] = spec.attention;
    const attention = partsOf(model, all([...qkv, o]), scope);
    const stages = [
      [all(qkv)],
      [all([o])],
      spec.mlp.map(([inputs]) => all(inputs)),
      spec.mlp.map(([, output]) => all([output])),
    ];
    return {
      layer,
      stages,
      attention: { q: attention.q!, k: attention.k!, v: attention.v!, o: attention.o! },
      mlp: spec.mlp.map(([inputs, output]) => {
        const { gate, up, down } = partsOf(model, all([...inputs, output]), scope);
        return { gate, up: up!, down: down! };
      }),
      router: spec.router ? scope.hold(await model.load(`${spec.router}.weight`, 'float32')) : undefined,
      attentionNorm: (await model.loadNorm(spec.attentionNorm, scope))!,
      mlpNorm: (await model.loadNorm(spec.mlpNorm, scope))!,
      attentionOutNorm: await model.loadNorm(spec.attentionOutNorm, scope),
      mlpOutNorm: await model.loadNorm(spec.mlpOutNorm, scope),
      queryNorm: await headNorm(spec.queryNorm),
      keyNorm: await headNorm(spec.keyNorm),
      slidingWindow: model.config.slidingWindow[layer] ?? 0,
      attentionScale: model.config.attentionScale[layer]!,
      dispose: () => scope.dispose(),
    };
  } catch (error) {
    scope.dispose();
    throw error;
  }
}

/** out [outputs, inputs] := a layer's weights as the checkpoint has them, to the bit. */
export async function copyStored(model: DecoderModel, { spec, weight, isPruned }: Linear, out: F32): Promise<void> {
  const { stream } = model;
  const stored = model.storedDtype(tensorOf(spec));
  // What is on the device already, unless it was pruned or rounded.
  if (!isPruned && (weight.dtype === stored || (weight.dtype === 'float32' && stored !== 'float64')))
    return stream.copy(weight, out);
  using loaded = await model.loadLinear(spec, 'float32');
  stream.copy(loaded, out);
}

/**
 * A block with layers of its own in stages 0 and 2, copies of the other's that stay when those are pruned; it has all else, and the experts,
 * together with the other.
 */
export function withCopies(model: DecoderModel, block: Block): Block {
  const { device, stream } = model;
  const scope = new Scope();
  const copyOf = (linear: Linear): Linear => {
    const weight = scope.hold(device.empty(linear.weight.dtype, linear.weight.shape, linear.name)) as Float;
    stream.copy(linear.weight, weight);
    return { ...linear, weight };
  };
  try {
    const stages = block.stages.map((groups, stage) =>
      stage === 0 || (stage === 2 && !block.router) ? groups.map((linears) => linears.map(copyOf)) : groups,
    );
    const of = (...which: number[]) =>
      partsOf(
        model,
        which.flatMap((stage) => stages[stage]!.flat()),
        scope,
      );
    const attention = of(0, 1) as Block['attention'];
    const mlp = block.router ? block.mlp : [of(2, 3) as MlpParts];
    return { ...block, stages, attention, mlp, dispose: () => scope.dispose() };
  } catch (error) {
    scope.dispose();
    throw error;
  }
}

/** Views on the parts of some linears. */
function partsOf({ config }: DecoderModel, linears: Linear[], scope: Scope): Partial<Record<Part, LinearPart>> {
  const parts: Partial<Record<Part, LinearPart>> = {};
  for (const { spec, weight, bias } of linears) {
    let row = 0;
    for (const part of spec.parts) {
      const end = row + partRows({ config, spec, part });
      parts[part] = {
        weight: scope.hold(weight.rows(row, end)) as Float,
        bias: bias && scope.hold(bias.rows(row, end)),
      };
      row = end;
    }
  }
  return parts;
}
