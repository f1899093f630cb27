import { Scope } from './device/tensor.js';
import { AlpsError, describe } from './errors.js';
import { Activations, type Windows } from './model/block-run.js';
import type { DecoderModel } from './model/decoder.js';
import { titleOf } from './model/shapes.js';

/** One layer of a dense model: its weights and the Gram matrix of its calibration inputs. */
export interface DenseLayer {
  name: string;
  /** Row-major [outputs, inputs]. */
  weight: Float32Array<ArrayBuffer>;
  shape: [outputs: number, inputs: number];
  /** XᵀX, row-major [inputs, inputs]. */
  gram: Float32Array<ArrayBuffer>;
}

/**
 * Runs the dense model up to a layer and takes what that layer sees.
 * @throws AlpsError `INVALID_ARGUMENT` for a name that is no layer of a block
 */
export async function denseLayer(model: DecoderModel, windows: Windows, name: string): Promise<DenseLayer> {
  const { stream, device, config, architecture } = model;
  using activations = await Activations.create(model, windows);
  for (let layer = 0; layer < config.layers; layer++) {
    const { attention, mlp } = architecture.block(layer);
    const names = [...attention.flat(), ...mlp.flat().flat()].map(titleOf);
    const block = await model.loadBlock(layer);
    try {
      if (!names.includes(name)) {
        await activations.run(block);
        continue;
      }
      for (const [stage, groups] of block.stages.entries()) {
        await activations.begin(block, stage);
        for (const [group, linears] of groups.entries()) {
          const linear = linears.find((one) => one.name === name);
          if (!linear) continue;
          using scope = new Scope();
          const { outputs, inputs } = linear;
          const gram = scope.hold(device.tensor('float32', [inputs, inputs], `the Gram matrix of ${name}`));
          activations.input(block, stage, group, (x) => stream.gramAccumulate(x, gram));
          stream.symmetrize(gram);
          const weight = scope.hold(await model.loadLinear(linear.spec, 'float32'));
          const [w, g] = await Promise.all([stream.read(weight), stream.read(gram)]);
          return { name, weight: w, gram: g, shape: [outputs, inputs] };
        }
        activations.advance(block, stage);
      }
    } finally {
      block.dispose();
    }
  }
  throw new AlpsError('INVALID_ARGUMENT', `${model.checkpoint.folder} has no layer ${describe(name)}`);
}
