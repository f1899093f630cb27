// What the attention kernels share: the problem, which part of it a block takes, and which keys a query sees.
#pragma once
#include "cuda/platform.h"

namespace alps {

struct AttentionProblem {
  const void *q, *k, *v;           // [tokens, heads * headDim], k and v [tokens, heads / group * headDim]
  void* out;                       // like q
  int64_t queryStride, keyStride;  // elements from one token to the next
  uint32_t parts;                  // windows * heads, the heads of a window side by side
  uint32_t section;                // parts that run side by side, see placeOf()
  int headDim, heads, group, sequence;
  int window;  // 0: none
  float scale, softCap;
  bool aligned;  // every head of every token of q, k, v and out starts and ends at a multiple of 16 bytes
};

// The queries [begin, end) of one head of one sequence.
struct AttentionPlace {
  int64_t token;  // the sequence's first
  int head;
  int begin, end;
};

inline int64_t attentionBlocks(const AttentionProblem& problem, int rows) {
  return int64_t{problem.parts} * ((problem.sequence + rows - 1) / rows);
}

// Blocks take the parts by sections whose keys and values stay in the L2 cache together, and within a section the last
// queries, which see the most keys, first: what is left at the end is short.
__device__ inline AttentionPlace placeOf(const AttentionProblem& problem, uint32_t block, int rows) {
  uint32_t blocks = static_cast<uint32_t>((problem.sequence + rows - 1) / rows);
  uint32_t first = block / (problem.section * blocks) * problem.section;
  uint32_t parts = min(problem.section, problem.parts - first), within = block - first * blocks;
  uint32_t part = first + within % parts, heads = static_cast<uint32_t>(problem.heads);
  int begin = static_cast<int>(blocks - 1 - within / parts) * rows;
  return {int64_t{part / heads} * problem.sequence, static_cast<int>(part % heads), begin,
          min(problem.sequence, begin + rows)};
}

// The first key that any query from `begin` on sees.
__device__ inline int firstKey(const AttentionProblem& problem, int begin) {
  return problem.window > 0 ? max(0, begin - problem.window + 1) : 0;
}

__device__ inline bool sees(const AttentionProblem& problem, int query, int key) {
  return key <= query && (problem.window == 0 || key > query - problem.window);
}

constexpr float log2OfE = 1.4426950408889634f;

// bfloat16, headDim at most 256.
void attentionOnTensorCores(Queue queue, const AttentionProblem& problem);
// T: float or bf16_t; products in float32.
template <typename T>
void attentionInFloat32(Queue queue, const AttentionProblem& problem);

}  // namespace alps
