import type { DecoderConfig } from './config.js';
import type { Architecture, BlockSpec, LinearSpec, Part } from './families/family.js';

/** All matrices of an architecture that are pruned. */
export function linearsOf(architecture: Architecture): LinearSpec[] {
  const layers = Array.from({ length: architecture.config.layers }, (_, layer) => architecture.block(layer));
  return layers.flatMap(({ attention, mlp }) => [
    ...attention[0],
    attention[1],
    ...mlp.flatMap(([inputs, output]) => [...inputs, output]),
  ]);
}

/** The checkpoint's tensor that holds a matrix. */
export function tensorOf({ name, expert }: LinearSpec): string {
  return expert ? name : `${name}.weight`;
}

/** A matrix's name for people: experts in one tensor are told apart. */
export function titleOf({ name, expert }: LinearSpec): string {
  return expert ? `${name}[${expert.index}]` : name;
}

/** Rows of one part of a matrix. */
export function partRows({ config, spec, part }: { config: DecoderConfig; spec: LinearSpec; part: Part }): number {
  const { hidden, heads, kvHeads, headDim } = config;
  if (part === 'q') return heads * headDim;
  if (part === 'k' || part === 'v') return kvHeads * headDim;
  return part === 'o' || part === 'down' ? hidden : innerSize(config, spec);
}

/** Rows and columns of a matrix, as [outputs, inputs] whatever way it is stored. */
export function linearShape(config: DecoderConfig, spec: LinearSpec): [outputs: number, inputs: number] {
  const outputs = spec.parts.reduce((sum, part) => sum + partRows({ config, spec, part }), 0);
  const [first] = spec.parts;
  if (first === 'o') return [outputs, config.heads * config.headDim];
  return [outputs, first === 'down' ? innerSize(config, spec) : config.hidden];
}

/** Width of an MLP's or an expert's inside. */
function innerSize(config: DecoderConfig, { name }: LinearSpec): number {
  return name.includes('.experts.') && config.experts ? config.experts.intermediate : config.intermediate;
}

function* normTensors(config: DecoderConfig, name: string, size = config.hidden): Iterable<[string, number[]]> {
  yield [`${name}.weight`, [size]];
  if (config.norm === 'layer') yield [`${name}.bias`, [size]];
}

/** Every tensor that a decoder needs, each once, with its shape. */
export function expectedTensors(architecture: Architecture): Map<string, number[]> {
  return new Map(namedTensors(architecture)); // experts may lie in one tensor
}

function* namedTensors(architecture: Architecture): Iterable<[string, number[]]> {
  const { config, embedding, positions, projectIn, projectOut, finalNorm, head } = architecture;
  const { hidden, vocabulary, embeddingSize } = config;
  yield [`${embedding}.weight`, [vocabulary, embeddingSize]];
  if (positions) yield [`${positions.name}.weight`, [positions.rows, hidden]];
  if (projectIn) yield [`${projectIn}.weight`, [hidden, embeddingSize]];
  if (projectOut) yield [`${projectOut}.weight`, [embeddingSize, hidden]];
  if (finalNorm) yield* normTensors(config, finalNorm);
  if (!config.tiedEmbeddings) yield [`${head}.weight`, [vocabulary, embeddingSize]];
  for (let layer = 0; layer < config.layers; layer++) yield* blockTensors(config, architecture.block(layer));
}

function* blockTensors(config: DecoderConfig, block: BlockSpec): Iterable<[string, number[]]> {
  for (const name of [block.attentionNorm, block.mlpNorm, block.attentionOutNorm, block.mlpOutNorm])
    if (name) yield* normTensors(config, name);
  for (const name of [block.queryNorm, block.keyNorm]) if (name) yield [`${name}.weight`, [config.headDim]];
  if (block.router) yield [`${block.router}.weight`, [config.experts!.count, config.hidden]];
  const specs = [...block.attention.flat(), ...block.mlp.flat().flat()];
  for (const spec of specs) {
    const [outputs, inputs] = linearShape(config, spec);
    const stored = spec.transposed ? [inputs, outputs] : [outputs, inputs];
    yield [tensorOf(spec), spec.expert ? [spec.expert.count, ...stored] : stored];
    if (spec.bias) yield [`${spec.name}.bias`, [outputs]];
  }
}
