import type { CheckpointWriter } from './checkpoint/writer.js';
import type { Team } from './device/team.js';
import { Scope, type Tensor } from './device/tensor.js';
import type { Member } from './members.js';
import type { DecoderModel, F32, Norm } from './model/decoder.js';

/** Sums for each channel of what the norm gives for `tokens`: p of the pruned model, d of the dense one. */
interface Sums {
  tokens: number;
  p: Float64Array;
  d: Float64Array;
  pp: Float64Array;
  pd: Float64Array;
}

/** Tokens that are looked at at once. */
const rowsAtOnce = 256;

/** Bytes of tensors that {@link refitFinalNorm} takes at most. */
export function finalNormBytes(hidden: number): number {
  return (16 * rowsAtOnce + 64) * hidden;
}

/**
 * Refits the norm in front of the head, channel by channel, by least squares of what it gives in the dense model on what it gives in the pruned one
 * (docs/algorithm.md, "The last norm"), and writes it. Nothing happens to models without such a norm.
 * @param members with activations of the pruned and of the dense model, both behind the last block
 */
export async function refitFinalNorm(team: Team, members: readonly Member[], writer: CheckpointWriter): Promise<void> {
  const [{ model }] = members as [Member];
  const { finalNorm } = model.architecture;
  if (finalNorm === undefined) return;
  const parts = await team.each((place) => sumsOf(members[place]!, finalNorm));
  const sums = parts.reduce(added);
  using scope = new Scope();
  const norm = (await model.loadNorm(finalNorm, scope))!;
  const [gain, bias] = [await model.stream.read(norm.weight), norm.bias && (await model.stream.read(norm.bias))];
  const { normOffset } = model.config;
  const fits = Array.from(gain, (_, j) => leastSquares(sums, j, bias !== undefined));
  const fitted = gain.map((g, j) => fits[j]!.slope * (g + normOffset) - normOffset);
  await store(model, `${finalNorm}.weight`, { fitted, before: gain }, writer);
  if (!bias) return;
  const moved = bias.map((b, j) => fits[j]!.slope * b + fits[j]!.offset);
  await store(model, `${finalNorm}.bias`, { fitted: moved, before: bias }, writer);
}

async function sumsOf({ model, activations, dense }: Member, name: string): Promise<Sums> {
  const { stream, device } = model;
  stream.enterPhase('target');
  using scope = new Scope();
  const norm = (await model.loadNorm(name, scope))!;
  const [tokens = 0, hidden = 0] = activations!.residual.shape;
  const channel = () => scope.hold(device.tensor('float64', [hidden], 'sums of the last norm'));
  const [p, d] = [channel(), channel()];
  const products = { pp: new Float64Array(hidden), pd: new Float64Array(hidden) };
  for (let first = 0; first < tokens; first += rowsAtOnce) {
    using piece = new Scope();
    const end = Math.min(tokens, first + rowsAtOnce);
    const turned = [activations!, dense!].map(({ residual }, i) =>
      outputs(model, residual, norm, { first, end, sums: i === 0 ? p : d, scope: piece }),
    );
    const [mine, theirs] = turned as [F32, F32];
    for (const [key, other] of [
      ['pp', mine],
      ['pd', theirs],
    ] as const) {
      const rows = piece.hold(device.tensor('float64', [hidden]));
      stream.rowDots(mine, other, rows);
      addTo(products[key], await stream.read(rows));
    }
  }
  return { tokens, p: await stream.read(p), d: await stream.read(d), ...products };
}

/** What the norm gives for some tokens, turned: [hidden, tokens]. Adds it up by channel as well. */
function outputs(
  model: DecoderModel,
  residual: F32,
  norm: Norm,
  { first, end, sums, scope }: { first: number; end: number; sums: Tensor<'float64'>; scope: Scope },
): F32 {
  const { stream, device } = model;
  const h = scope.hold(residual.rows(first, end));
  const y = scope.hold(device.tensor('float32', h.shape, 'outputs of the last norm'));
  model.applyNorm(h, norm, y);
  stream.columnSums(y, sums);
  const turned = scope.hold(device.tensor('float32', [h.shape[1]!, h.shape[0]!], 'outputs of the last norm'));
  stream.transpose(y, turned);
  return turned;
}

/** Of d ≈ slope p + offset for one channel; the channel stays where that says nothing. */
function leastSquares(
  { tokens, p, d, pp, pd }: Sums,
  j: number,
  withOffset: boolean,
): { slope: number; offset: number } {
  const [meanP, meanD] = withOffset ? [p[j]! / tokens, d[j]! / tokens] : [0, 0];
  const variance = pp[j]! - tokens * meanP ** 2;
  const slope = variance > 1e-12 * pp[j]! ? (pd[j]! - tokens * meanP * meanD) / variance : 1;
  const offset = meanD - slope * meanP;
  return Number.isFinite(slope) && Number.isFinite(offset) ? { slope, offset } : { slope: 1, offset: 0 };
}

function addTo(sum: Float64Array, values: Float64Array): void {
  for (let j = 0; j < sum.length; j++) sum[j]! += values[j]!;
}

function added(a: Sums, b: Sums): Sums {
  for (const key of ['p', 'd', 'pp', 'pd'] as const) addTo(a[key], b[key]);
  return { ...a, tokens: a.tokens + b.tokens };
}

/** Writes a vector in its checkpoint's dtype; entries that are out of its range stay as they were. */
async function store(
  model: DecoderModel,
  name: string,
  { fitted, before }: Record<'fitted' | 'before', Float32Array<ArrayBuffer>>,
  writer: CheckpointWriter,
): Promise<void> {
  const { stream, device } = model;
  using exact = stream.upload('float32', [fitted.length], fitted);
  using stored = device.tensor(model.storedDtype(name), [fitted.length], name);
  stream.copy(exact, stored);
  stream.copy(stored, exact);
  const rounded = await stream.read(exact);
  stream.write(
    exact,
    fitted.map((value, j) => (Number.isFinite(rounded[j]) ? value : before[j]!)),
  );
  stream.copy(exact, stored);
  const { buffer, byteOffset, byteLength } = await stream.read(stored);
  await writer.write(name, new Uint8Array(buffer, byteOffset, byteLength));
}
