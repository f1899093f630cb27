import { Scope } from '../device/tensor.js';
import type { DecoderModel, F32 } from './decoder.js';

/** Rows at a time where a step needs scratch memory. */
const chunk = 4096;

/**
 * Token embeddings with what belongs to them: the model's scale, the projection to its width, learned positions.
 * @param tokens ids, window after window of `length`
 * @param out float32 [tokens, hidden]
 */
export async function embedTokens(
  model: DecoderModel,
  tokens: Uint32Array<ArrayBuffer>,
  length: number,
  out: F32,
): Promise<void> {
  const { stream, architecture, config, precision } = model;
  using scope = new Scope();
  const table = scope.hold(await model.load(`${architecture.embedding}.weight`, precision));
  const ids = scope.hold(stream.upload('uint32', [tokens.length], tokens));
  if (architecture.projectIn) {
    const projection = scope.hold(await model.load(`${architecture.projectIn}.weight`, precision));
    const wide = scope.hold(model.device.tensor('float32', [Math.min(chunk, tokens.length), config.embeddingSize]));
    const narrow = scope.hold(model.device.tensor(precision, wide.shape));
    for (let start = 0; start < tokens.length; start += chunk) {
      const end = Math.min(start + chunk, tokens.length);
      using some = ids.rows(start, end);
      using embedded = wide.rows(0, end - start);
      using x = narrow.rows(0, end - start);
      using rows = out.rows(start, end);
      stream.embedding(table, some, embedded);
      stream.copy(embedded, x);
      stream.gemm(x, projection, rows, { transposeB: true });
    }
  } else stream.embedding(table, ids, out);
  if (config.embeddingScale !== 1) stream.axpby(out, out, 0, config.embeddingScale);
  if (architecture.positions) {
    const { name, offset } = architecture.positions;
    const positions = scope.hold(await model.load(`${name}.weight`, 'float32'));
    const rows = scope.hold(positions.rows(offset, offset + length));
    for (let start = 0; start < tokens.length; start += length) {
      using window = out.rows(start, start + length);
      stream.addTo(rows, window);
    }
  }
  await stream.sync();
}
