import { DenseCollector, makesOnDemand } from './dense-collector.js';
import type { Team } from './device/team.js';
import { Scope } from './device/tensor.js';
import { AlpsError } from './errors.js';
import type { GroupInputs } from './group-pruning.js';
import type { Block, Linear } from './model/block.js';
import { Activations, type Windows } from './model/block-run.js';
import type { DecoderModel, F32 } from './model/decoder.js';
import type { DenseTarget } from './pruning/dense-target.js';
import { MomentCollector, SquareCollector } from './pruning/input-moments.js';

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
    const how = { makesOnDemand: makesOnDemand(model.config), embedded: activations?.residual };
    return {
      model,
      activations,
      dense: share && withDense ? scope.hold(await Activations.create(model, share, how)) : undefined,
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
  /** The same with the dense model's weights, where that runs beside. */
  denseBlocks: readonly Block[];
  stage: number;
  group: number;
  /** Places of the members that get the inputs. */
  solvers: readonly number[];
  /** Whether DSnoT's sums are asked for. */
  moments: boolean;
  /** Whether the whole of XᵀX is; else its diagonal. */
  gram: boolean;
  /** How the dense model's activations are reproduced; undefined: not at all. */
  target: DenseTarget | undefined;
  /** Whether 8-bit integers will do for what dense targets sum of the inputs' differences. */
  int8: boolean;
}

/**
 * XᵀX, or its diagonal, of what a group of layers sees, over the windows of all members, with what DSnoT and dense targets need beside it.
 * Where dense targets sum outputs (`sumsOutputs` in dense-collector.ts), the dense model goes through the stage on the way.
 * @returns one for each solver, on its device; the caller disposes them
 */
export async function groupInputs(team: Team, members: readonly Member[], wanted: GroupOfTeam): Promise<GroupInputs[]> {
  const { blocks, denseBlocks, stage, group, solvers, moments } = wanted;
  if (!wanted.gram) {
    if (wanted.target) throw new AlpsError('INTERNAL', 'Dense targets need the Gram matrix');
    return diagonalInputs(members, wanted);
  }
  const tokens = members.map(({ activations }, place) => activations!.tokensOf(blocks[place]!, stage, group));
  const { inputs } = blocks[0]!.stages[stage]![group]![0] as Linear;
  const label = `the Gram matrix of block ${blocks[0]!.layer}, stage ${stage}`;
  const scope = new Scope();
  using collected = new Scope();
  const collectors: MomentCollector[] = [];
  try {
    const dense = members.map((member, place) => {
      const collector = DenseCollector.of(member, denseBlocks[place]!, stage, wanted, scope);
      return collector && collected.hold(collector);
    });
    // Members that none of an expert’s tokens are on add nothing; where no member has any, the sum is zero.
    const partial = members.map(({ model, activations }, place): F32 | undefined => {
      if (tokens[place] === 0 && members.length > 1) return undefined;
      const { stream, device } = model;
      stream.enterPhase('gram');
      const gram = scope.hold(device.tensor('float32', [inputs, inputs], label));
      const collector = moments ? collected.hold(new MomentCollector(stream, activations!.length)) : undefined;
      if (collector) collectors.push(collector);
      activations!.input(blocks[place]!, stage, group, (x) => {
        stream.gramAccumulate(x, gram);
        collector?.add(x);
        dense[place]?.add(x);
      });
      return gram;
    });
    const sum = (matrices: readonly (F32 | undefined)[], name: string) =>
      sumOver(team, members, matrices, {
        shape: matrices.find(Boolean)?.shape ?? [inputs, inputs],
        label: name,
        solvers,
        scope,
      });
    const grams = await sum(partial, label);
    for (const place of solvers) members[place]!.model.stream.symmetrize(grams[place]!);
    const [sample] = dense;
    const sumOfDense = async (which: 'sum' | 'errors', name: string) =>
      sample?.[which] &&
      (await sum(
        dense.map((one) => one?.[which]),
        name,
      ));
    const denseSums = await sumOfDense('sum', 'the sums for the dense target');
    const errors = await sumOfDense('errors', 'the inputs’ errors');
    const objectives = await objectivesOf(members, dense, { errors, grams, solvers, target: wanted.target, scope });
    const total = tokens.reduce((all, count) => all + count, 0);
    const [first, ...others] = collectors;
    const found = first && (await first.finish(inputs, others));
    return solvers.map((place) => {
      const own = new Scope();
      const gram = own.hold(grams[place]!);
      const objective = objectives && own.hold(objectives[place]!);
      const seen = denseSums && {
        kind: sample!.kind,
        sum: own.hold(denseSums[place]!),
        strength: wanted.target!.strength,
        objective,
      };
      const dispose = () => own.dispose();
      return {
        gram,
        diagonal: undefined,
        tokens: total,
        moments: found,
        dense: seen,
        dispose,
        [Symbol.dispose]: dispose,
      };
    });
  } catch (error) {
    scope.dispose();
    throw error;
  }
}

/**
 * What the solvers go by in place of the Gram matrices (`objective` of DenseInputs).
 * @param errors sums of the inputs' errors at the solvers' places, which become the objectives; undefined where there are none, or squares alone
 * @param scope gets the objectives
 */
async function objectivesOf(
  members: readonly Member[],
  [first, ...others]: readonly (DenseCollector | undefined)[],
  how: { errors: F32[] | undefined; grams: F32[]; solvers: readonly number[]; target?: DenseTarget; scope: Scope },
): Promise<F32[] | undefined> {
  const { errors, grams, solvers, target, scope } = how;
  const own = first?.errorSquares;
  if (!target || !(errors ?? own)) return undefined;
  const over = own && others.length > 0 ? await own.finish(others.map((one) => one!.errorSquares!)) : undefined;
  const objectives: F32[] = [];
  for (const place of solvers) {
    const { stream, device } = members[place]!.model;
    const gram = grams[place]!;
    if (errors) {
      const objective = errors[place]!;
      stream.symmetrize(objective);
      stream.axpby(gram, objective, 1, target.errorWeight);
      objectives[place] = objective;
      continue;
    }
    const objective = scope.hold(device.empty('float32', gram.shape, 'the Gram matrix and the inputs’ errors'));
    using squares = over ? stream.upload('float32', [over.length], over, 'the inputs’ errors') : own!.rounded();
    stream.copy(gram, objective);
    stream.addToDiagonal(objective, squares, target.errorWeight);
    objectives[place] = objective;
  }
  return objectives;
}

/** {@link groupInputs} without the Gram matrix: sums of each input, which the host adds in the members' order. */
async function diagonalInputs(
  members: readonly Member[],
  { blocks, stage, group, solvers, moments }: GroupOfTeam,
): Promise<GroupInputs[]> {
  using scope = new Scope();
  const { inputs } = blocks[0]!.stages[stage]![group]![0] as Linear;
  const collectors = members.map(({ model, activations }, place) => {
    const { stream } = model;
    stream.enterPhase('gram');
    const squares = scope.hold(new SquareCollector(stream, inputs));
    const sums = scope.hold(new MomentCollector(stream, activations!.length));
    activations!.input(blocks[place]!, stage, group, (x) => {
      squares.add(x);
      if (moments) sums.add(x);
    });
    return { squares, sums };
  });
  const [first, ...others] = collectors;
  const diagonal = await first!.squares.finish(others.map(({ squares }) => squares));
  const tokens = members.reduce((sum, { activations }, i) => sum + activations!.tokensOf(blocks[i]!, stage, group), 0);
  const found = moments
    ? await first!.sums.finish(
        inputs,
        others.map(({ sums }) => sums),
      )
    : undefined;
  const dispose = () => {};
  const seen = { gram: undefined, diagonal, tokens, moments: found, dense: undefined };
  return solvers.map(() => ({ ...seen, dispose, [Symbol.dispose]: dispose }));
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
  {
    shape,
    label,
    solvers,
    scope,
  }: { shape: readonly number[]; label: string; solvers: readonly number[]; scope: Scope },
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
  });
  return sums;
}
