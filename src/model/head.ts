import { Scope, type Tensor } from '../device/tensor.js';
import type { Activations } from './block-run.js';
import type { DecoderModel, Float } from './decoder.js';

/** Bytes of the logits that are held at once. */
const logitBytes = 64 << 20;

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
  const { config, stream, device, precision, architecture } = model;
  const total = rows?.length ?? activations.residual.shape[0]!;
  const most = Math.max(1, Math.min(total, Math.floor(logitBytes / 4 / config.vocabulary)));
  using scope = new Scope();
  const norm = await model.loadNorm(architecture.finalNorm, scope);
  const head = scope.hold(await model.loadHead());
  const projection = architecture.projectOut
    ? scope.hold(await model.load(`${architecture.projectOut}.weight`, precision))
    : undefined;
  const ids = rows && scope.hold(stream.upload('uint32', [rows.length], rows));
  const gathered = ids && scope.hold(device.tensor('float32', [most, config.hidden], 'the chosen rows'));
  const x = scope.hold(device.tensor(precision, [most, config.hidden], 'the head’s inputs'));
  const projected = projection && scope.hold(device.tensor(precision, [most, config.embeddingSize]));
  const logits = scope.hold(device.tensor('float32', [most, config.vocabulary], 'the logits'));
  for (let first = 0; first < total; first += most) {
    using piece = new Scope();
    const count = Math.min(most, total - first);
    const part = <T extends 'float32' | Float['dtype']>(tensor: Tensor<T>) => piece.hold(tensor.rows(0, count));
    let h = gathered ? part(gathered) : piece.hold(activations.residual.rows(first, first + count));
    if (ids) {
      const chosen = piece.hold(ids.rows(first, first + count));
      stream.gatherRows(activations.residual, chosen, h);
    }
    let input: Float = part(x);
    if (norm) model.applyNorm(h, norm, input);
    else stream.copy(h, input);
    if (projection && projected) {
      const narrow = part(projected);
      stream.gemm(input, projection, narrow, { transposeB: true });
      input = narrow;
    }
    h = part(logits);
    stream.gemm(input, head, h, { transposeB: true });
    if (config.logitSoftCap > 0) stream.softCap(h, config.logitSoftCap);
    await use(h, first);
  }
  await stream.sync();
}
