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
}

/**
 * Divides the calibration windows over the devices: consecutive ones to each, their numbers differing by one at most.
 * @param scope gets what must be freed
 * @throws AlpsError `INVALID_ARGUMENT` when there are more devices than windows
 */
export async function membersOf(
  team: Team,
  models: readonly DecoderModel[],
  windows: Windows | undefined,
  scope: Scope,
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
    return { model, activations: share && scope.hold(await Activations.create(model, share)) };
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
 * XᵀX of what a group of layers sees, over the windows of all members, and for DSnoT its sums. Each member's Gram matrix goes to the
 * solvers through the host's memory, and is added there in the members' order, so that the bits depend on the list of devices alone.
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
    const values = await team.each(async (place) => {
      const gram = partial[place];
      if (!gram || solvers.every((solver) => solver === place)) return undefined;
      const read = await members[place]!.model.stream.read(gram);
      if (!solvers.includes(place)) gram.dispose();
      return read;
    });
    const sums: F32[] = [];
    await team.each(async (place) => {
      if (!solvers.includes(place)) return;
      const { stream, device } = members[place]!.model;
      let sum: F32 | undefined;
      for (const [from, own] of partial.entries()) {
        if (!own) continue;
        const term =
          from === place ? own : scope.hold(stream.upload('float32', [inputs, inputs], values[from]!, label));
        if (sum) {
          stream.axpby(term, sum, 1, 1);
          term.dispose();
          // One term at a time takes memory.
          await stream.sync();
        } else sum = term;
      }
      sum ??= scope.hold(device.tensor('float32', [inputs, inputs], label));
      stream.symmetrize(sum);
      await stream.sync();
      sums[place] = sum;
    });
    const total = tokens.reduce((all, count) => all + count, 0);
    const [first, ...others] = collectors;
    const diagonal = first && (await diagonalOf(sums[solvers[0]!]!, members[solvers[0]!]!.model.stream));
    const found = first && (await first.finish(diagonal!, others));
    return solvers.map((place) => {
      const gram = sums[place]!;
      const dispose = () => gram.dispose();
      return { gram, tokens: total, moments: found, dispose, [Symbol.dispose]: dispose };
    });
  } catch (error) {
    scope.dispose();
    throw error;
  }
}

async function diagonalOf(gram: F32, stream: Stream): Promise<Float32Array> {
  using diagonal = stream.device.tensor('float32', [gram.shape[0]!]);
  stream.diagonal(gram, diagonal);
  return stream.read(diagonal);
}
