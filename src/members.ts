import type { Stream } from './device/stream.js';
import type { Team } from './device/team.js';
import { Scope } from './device/tensor.js';
import { AlpsError } from './errors.js';
import type { GroupInputs } from './group-pruning.js';
import type { Block, Linear } from './model/block.js';
import { Activations, type Windows } from './model/block-run.js';
import type { DecoderModel, F32 } from './model/decoder.js';
import { MomentCollector } from './pruning/input-moments.js';

/** What one device of a team has: the decoder, and its share of the calibration windows on the way through it. */
export interface Member {
  model: DecoderModel;
  /** Undefined without calibration. */
  activations: Activations | undefined;
  /** The same windows on their way through the dense model, where layers reproduce what it gives. */
  dense: Activations | undefined;
}

/**
 * Divides the calibration windows over the devices: consecutive ones to each, their numbers differing by one at most.
 * @param scope gets what must be freed
 * @param withDense whether the dense model runs beside
 * @throws AlpsError `INVALID_ARGUMENT` when there are more devices than windows
 */
export async function membersOf(
  team: Team,
  models: readonly DecoderModel[],
  windows: Windows | undefined,
  scope: Scope,
  withDense: boolean,
): Promise<Member[]> {
  if (windows && windows.windows < models.length) {
    throw new AlpsError(
      'INVALID_ARGUMENT',
      `Expected at most ${windows.windows} devices, one for each calibration window, but received ${models.length}`,
    );
  }
  return team.each(async (place) => {
    const model = models[place]!;
    const share = windows && (models.length === 1 ? windows : shareOf(windows, place, models.length));
    const activations = share && scope.hold(await Activations.create(model, share));
    return {
      model,
      activations,
      dense: share && withDense ? scope.hold(await Activations.create(model, share)) : undefined,
    };
  });
}

function shareOf({ tokens, windows, length }: Windows, place: number, count: number): Windows {
  const first = Math.floor((windows * place) / count);
  const end = Math.floor((windows * (place + 1)) / count);
  return { tokens: tokens.slice(first * length, end * length), windows: end - first, length };
}

export interface GroupOfTeam {
  /** The block on each member's device. */
  blocks: readonly Block[];
  stage: number;
  group: number;
  /** Places of the members that get the inputs. */
  solvers: readonly number[];
  /** Whether DSnoT's sums are asked for. */
  moments: boolean;
}

/**
 * XᵀX of what a group of layers sees, over the windows of all members, with what DSnoT and dense targets need beside it.
 * @returns one for each solver, on its device; the caller disposes them
 */
export async function groupInputs(
  team: Team,
  members: readonly Member[],
  { blocks, stage, group, solvers, moments }: GroupOfTeam,
): Promise<GroupInputs[]> {
  const tokens = members.map(({ activations }, place) => activations!.tokensOf(blocks[place]!, stage, group));
  const { inputs } = blocks[0]!.stages[stage]![group]![0] as Linear;
  const label = `the Gram matrix of block ${blocks[0]!.layer}, stage ${stage}`;
  const scope = new Scope();
  using collected = new Scope();
  const collectors: MomentCollector[] = [];
  try {
    // Members that none of an expert’s tokens are on add nothing; where no member has any, the sum is zero.
    const partial = members.map(({ model, activations }, place): F32 | undefined => {
      if (tokens[place] === 0 && members.length > 1) return undefined;
      const { stream, device } = model;
      const gram = scope.hold(device.tensor('float32', [inputs, inputs], label));
      const collector = moments ? collected.hold(new MomentCollector(stream, activations!.length)) : undefined;
      if (collector) collectors.push(collector);
      activations!.input(blocks[place]!, stage, group, (x) => {
        stream.gramAccumulate(x, gram);
        collector?.add(x);
      });
      return gram;
    });
    const grams = await sumOver(team, members, partial, { shape: [inputs, inputs], label, solvers, scope });
    for (const place of solvers) members[place]!.model.stream.symmetrize(grams[place]!);
    const dense = await denseInputs(team, members, { blocks, stage, solvers, scope });
    const total = tokens.reduce((all, count) => all + count, 0);
    const [first, ...others] = collectors;
    const diagonal = first && (await diagonalOf(grams[solvers[0]!]!, members[solvers[0]!]!.model.stream));
    const found = first && (await first.finish(diagonal!, others));
    return solvers.map((place) => {
      const own = new Scope();
      const gram = own.hold(grams[place]!);
      const seen = dense && { cross: own.hold(dense.cross[place]!), residual: dense.residual?.[place] };
      if (seen?.residual) own.hold(seen.residual);
      const dispose = () => own.dispose();
      return { gram, tokens: total, moments: found, dense: seen, dispose, [Symbol.dispose]: dispose };
    });
  } catch (error) {
    scope.dispose();
    throw error;
  }
}

/** What the dense model's layers see of the same tokens, by the solvers' places. Not for experts, whose tokens are others there. */
async function denseInputs(
  team: Team,
  members: readonly Member[],
  { blocks, stage, solvers, scope }: Pick<GroupOfTeam, 'blocks' | 'stage' | 'solvers'> & { scope: Scope },
): Promise<{ cross: F32[]; residual: F32[] | undefined } | undefined> {
  if (!members[0]!.dense || (stage >= 2 && blocks[0]!.router)) return undefined;
  const { inputs } = blocks[0]!.stages[stage]![0]![0] as Linear;
  const { config } = members[0]!.model;
  // Behind a norm of its own, what a layer adds to the residual stream is not linear in its weights.
  const adds = (stage === 1 || stage === 3) && config.normPlacement !== 'sandwich';
  const shapes = { cross: [inputs, inputs], residual: [inputs, config.hidden] };
  const partial = members.map(({ model: { stream, device, precision }, activations, dense }, place) => {
    const cross = scope.hold(device.tensor('float32', shapes.cross, 'the pruned inputs against the dense ones'));
    const residual = adds
      ? scope.hold(device.tensor('float32', shapes.residual, 'the inputs against the residual’s difference'))
      : undefined;
    for (let chunk = 0; chunk < activations!.chunkCount; chunk++) {
      using piece = new Scope();
      const x = piece.hold(activations!.chunkInput(blocks[place]!, stage, chunk));
      stream.gemm(x, piece.hold(dense!.chunkInput(blocks[place]!, stage, chunk)), cross, { transposeA: true, beta: 1 });
      if (!residual) continue;
      const h = piece.hold(dense!.chunkResidual(chunk));
      const difference = piece.hold(device.tensor('float32', h.shape, 'the residual’s difference'));
      stream.copy(h, difference);
      stream.axpby(piece.hold(activations!.chunkResidual(chunk)), difference, -1, 1);
      const narrow =
        precision === 'float32'
          ? difference
          : piece.hold(device.tensor(precision, h.shape, 'the residual’s difference'));
      if (narrow !== difference) stream.copy(difference, narrow);
      stream.gemm(x, narrow, residual, { transposeA: true, beta: 1 });
    }
    return { cross, residual };
  });
  const sum = (key: 'cross' | 'residual', label: string) =>
    sumOver(
      team,
      members,
      partial.map((one) => one[key]),
      { shape: shapes[key], label, solvers, scope },
    );
  const cross = await sum('cross', 'the pruned inputs against the dense ones');
  return { cross, residual: adds ? await sum('residual', 'the inputs against the residual’s difference') : undefined };
}

/**
 * Sums one matrix of each member. Each goes to the solvers through the host's memory, and is added there in the members' order, so that
 * the bits depend on the list of devices alone.
 * @param partial undefined for a member that adds nothing
 * @param scope holds them, and gets the sums
 * @returns the sums, at the solvers' places
 */
async function sumOver(
  team: Team,
  members: readonly Member[],
  partial: readonly (F32 | undefined)[],
  { shape, label, solvers, scope }: { shape: number[]; label: string; solvers: readonly number[]; scope: Scope },
): Promise<F32[]> {
  const values = await team.each(async (place) => {
    const own = partial[place];
    if (!own || solvers.every((solver) => solver === place)) return undefined;
    const read = await members[place]!.model.stream.read(own);
    if (!solvers.includes(place)) own.dispose();
    return read;
  });
  const sums: F32[] = [];
  await team.each(async (place) => {
    if (!solvers.includes(place)) return;
    const { stream, device } = members[place]!.model;
    let sum: F32 | undefined;
    for (const [from, own] of partial.entries()) {
      if (!own) continue;
      const term = from === place ? own : scope.hold(stream.upload('float32', shape, values[from]!, label));
      if (sum) {
        stream.axpby(term, sum, 1, 1);
        term.dispose();
        // One term at a time takes memory.
        await stream.sync();
      } else sum = term;
    }
    sums[place] = sum ?? scope.hold(device.tensor('float32', shape, label));
    await stream.sync();
  });
  return sums;
}

async function diagonalOf(gram: F32, stream: Stream): Promise<Float32Array> {
  using diagonal = stream.device.tensor('float32', [gram.shape[0]!]);
  stream.diagonal(gram, diagonal);
  return stream.read(diagonal);
}
