// The mask of N:M groups, and the pass over the scores around it, in one kernel: scores are made, ranked in registers
// and used. Passes are those of select.h. Ties to the lowest index.
#pragma once
#include "cuda/quads.h"

namespace alps {

constexpr int groupThreads = 256;
constexpr int64_t largestShuffled = 32;  // groups of at most a warp's lanes are ranked by shuffles, or in one thread

// One thread a group of 4, 8 or 16, or two groups of 2.
template <typename Pass, int group, bool whole>
__device__ inline void maskGroup(const Pass& pass, int64_t at, Range range, int kept) {
  constexpr int quads = (group + 3) / 4, count = quads * 4;
  typename Pass::Raw raw[quads];
#pragma unroll
  for (int q = 0; q < quads; q++) raw[q] = pass.template read<whole>(at + 4 * q, range);
  typename Pass::Quad made[quads];
  uint32_t bits[count];
#pragma unroll
  for (int q = 0; q < quads; q++) {
    made[q] = pass.template make<whole>(raw[q], at + 4 * q, range);
#pragma unroll
    for (int j = 0; j < 4; j++) bits[4 * q + j] = magnitude(made[q].score[j]);
  }
  uint32_t mask = 0;
#pragma unroll
  for (int j = 0; j < count; j++) {
    int rank = 0;
#pragma unroll
    for (int i = 0; i < count; i++)
      if (i / group == j / group && i != j) rank += i < j ? bits[i] >= bits[j] : bits[i] > bits[j];
    mask |= (rank < kept ? 1u : 0u) << j;
  }
#pragma unroll
  for (int q = 0; q < quads; q++) pass.template use<whole>(made[q], mask >> (4 * q) & 15, at + 4 * q, range);
}

template <typename Pass, int group>
__global__ void __launch_bounds__(groupThreads) groupKernel(Pass pass, int64_t size, int kept) {
  constexpr int count = group < 4 ? 4 : group;
  int64_t at = (int64_t{blockIdx.x} * groupThreads + threadIdx.x) * count;
  Range range{0, size};
  if (at >= size) return;
  if (pass.aligned && at + count <= size)
    maskGroup<Pass, group, true>(pass, at, range, kept);
  else
    maskGroup<Pass, group, false>(pass, at, range, kept);
}

// One lane an element: whole groups of any size up to 32 in each warp.
template <typename Pass>
__global__ void __launch_bounds__(groupThreads) shuffledGroupKernel(Pass pass, int64_t size, int group, int kept) {
  int lane = static_cast<int>(threadIdx.x % 32), each = 32 / group * group;
  int64_t warp = int64_t{blockIdx.x} * (groupThreads / 32) + threadIdx.x / 32, at = warp * each + lane;
  bool own = lane < each && at < size;
  Range range{at, own ? at + 1 : at};
  auto quad = pass.template make<false>(pass.template read<false>(at, range), at, range);
  uint32_t bits = magnitude(quad.score[0]);
  int place = lane % group, first = lane - place, rank = 0;
  for (int r = 1; r < group; r++) {
    int other = place + r < group ? place + r : place + r - group;
    uint32_t met = __shfl_sync(0xffffffffu, bits, (first + other) % 32);  // lanes past the groups meet anyone
    rank += other < place ? met >= bits : met > bits;
  }
  pass.template use<false>(quad, rank < kept ? 1u : 0u, at, range);
}

// group is at most largestShuffled.
template <typename Pass>
void maskGroups(Queue queue, const Pass& pass, int64_t size, int64_t group, int64_t kept) {
  auto blocks = [&](int64_t perThread) {
    int64_t each = perThread * groupThreads;
    return Grid{(size + each - 1) / each};
  };
  int count = static_cast<int>(kept);
  switch (group) {
    case 2:
      return launch(queue, groupKernel<Pass, 2>, blocks(4), groupThreads, 0, pass, size, count);
    case 4:
      return launch(queue, groupKernel<Pass, 4>, blocks(4), groupThreads, 0, pass, size, count);
    case 8:
      return launch(queue, groupKernel<Pass, 8>, blocks(8), groupThreads, 0, pass, size, count);
    case 16:
      return launch(queue, groupKernel<Pass, 16>, blocks(16), groupThreads, 0, pass, size, count);
    default:
      int64_t each = 32 / group * group * (groupThreads / 32);
      launch(queue, shuffledGroupKernel<Pass>, {(size + each - 1) / each}, groupThreads, 0, pass, size,
             static_cast<int>(group), count);
  }
}

}  // namespace alps
