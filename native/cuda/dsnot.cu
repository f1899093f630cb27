// Purpose: DSnoT's prune-and-grow (Zhang et al., "Dynamic Sparse No Training", ICLR 2024): a row swaps a pruned weight
// for a kept one as long as that brings the expected change of its output towards 0. One block a row.
//
// The candidates are lists in ascending order, of which only the next entry is ever asked for. So none is sorted: each
// thread knows the first entry among its own columns that is not used yet, the block's first is the smallest of
// these, and only the thread it came from looks through its columns again.
#include "cuda/cuda_backend.h"
#include "cuda/reduce.h"

namespace alps {

namespace {

constexpr int rowThreads = 256;

// What the mask's bytes mean while a row is worked on: bit 0 is the mask on entry.
enum Mark : uint8_t { pruned = 0, kept = 1, grown = 2, dropped = 3 };

// Candidates are numbers that have their order: that of a float, then that of the column.
constexpr uint64_t nobody = ~uint64_t{0};

__device__ inline uint64_t candidate(float order, int64_t column) {
  uint32_t bits = __float_as_uint(order + 0.0f);  // −0 is 0
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t{bits} << 32 | static_cast<uint32_t>(column);
}
__device__ inline int64_t columnOf(uint64_t candidate) { return static_cast<int64_t>(candidate & 0xffffffffu); }

// The block's smallest, in every thread.
__device__ inline uint64_t blockMin(uint64_t value) {
  SHARED(uint64_t, smallest, rowThreads / 32);
  for (int by = 16; by > 0; by /= 2) value = min(value, __shfl_xor_sync(0xffffffffu, value, by));
  if (threadIdx.x % 32 == 0) smallest[threadIdx.x / 32] = value;
  __syncthreads();
  for (int i = 0; i < rowThreads / 32; i++) value = min(value, smallest[i]);
  __syncthreads();  // the next call writes again
  return value;
}

struct Row {
  const float *weight, *metric, *expected, *variance;
  uint8_t* mask;
  int64_t n;

  __device__ float share(int64_t j) const { return weight[j] * expected[j]; }

  // A list: the columns that the mask kept, or did not keep, on entry and whose contribution has this sign.
  struct List {
    bool kept, positive;
  };

  // A column as a candidate of the list; nobody if it is not in it.
  __device__ uint64_t entry(List list, int64_t j, bool stays, float value) const {
    // 0: nothing ever arrives there, or the weight is 0. NaN is in no list.
    bool inside = stays == list.kept && (list.positive ? value > 0 : value < 0);
    return inside ? candidate(stays ? fabsf(metric[j]) : -fabsf(value) / variance[j], j) : nobody;
  }

  // The list's first candidate behind `after` among this thread's columns.
  __device__ uint64_t next(List list, uint64_t after) const {
    uint64_t first = nobody;
#pragma unroll 2
    for (int64_t j = threadIdx.x; j < n; j += rowThreads) {
      uint64_t one = entry(list, j, mask[j] & 1, share(j));
      if (one > after) first = min(first, one);
    }
    return first;
  }

  // The kept weight of a group that matters least and was not swapped, as a candidate.
  __device__ uint64_t lowestOfGroup(int64_t column, int64_t group) const {
    uint64_t lowest = nobody;
    int64_t start = column / group * group;
    for (int64_t j = start + threadIdx.x; j < start + group; j += rowThreads)
      if (mask[j] == kept) lowest = min(lowest, candidate(fabsf(metric[j]), j));
    return blockMin(lowest);
  }
};

// A list as the block sees it.
struct Queued {
  Row::List list;
  uint64_t own = nobody;  // this thread's first unused candidate

  // Takes the first candidate of all threads. nobody: there is none left.
  __device__ uint64_t take(const Row& row) {
    uint64_t first = blockMin(own);
    if (first != nobody && first == own) own = row.next(list, first);
    return first;
  }
};

__global__ void __launch_bounds__(rowThreads, 4)
    dsnotKernel(const float* weight, const float* metric, const float* expected, const float* variance, uint8_t* mask,
                int64_t n, Pattern pattern, int64_t cycles, double threshold, bool sameSign) {
  int64_t at = int64_t{blockIdx.x} * n;
  Row row{weight + at, metric + at, expected, variance, mask + at, n};
  double error = 0;  // expected change of the output: what the pruned weights contributed
  for (int64_t j = threadIdx.x; j < n; j += rowThreads)
    if (!row.mask[j]) error += row.share(j);
  error = blockSum(error);
  bool positive = error > 0;
  if (cycles == 0 || !(fabs(error) > threshold)) return;
  Queued grow[2] = {{{false, false}}, {{false, true}}}, prune[2] = {{{true, false}}, {{true, true}}};
#pragma unroll 2
  for (int64_t j = threadIdx.x; j < n; j += rowThreads) {
    bool stays = row.mask[j];
    row.mask[j] = stays;
    float value = row.share(j);
    for (int sign = 0; sign < 2; sign++) {
      grow[sign].own = min(grow[sign].own, row.entry(grow[sign].list, j, stays, value));
      prune[sign].own = min(prune[sign].own, row.entry(prune[sign].list, j, stays, value));
    }
  }
  for (int64_t cycle = 0; cycle < cycles && fabs(error) > threshold; cycle++) {
    bool side = error > 0;  // grow a pruned weight whose contribution has the error's sign ...
    uint64_t in = side ? grow[1].take(row) : grow[0].take(row);
    if (in == nobody) break;
    // ... for a kept one with the opposite sign that matters least, or in N:M the one of its group that matters least.
    uint64_t out = pattern.group > 0 ? row.lowestOfGroup(columnOf(in), pattern.group)
                   : side            ? prune[0].take(row)
                                     : prune[1].take(row);
    if (out == nobody) {
      if (pattern.group > 0) continue;
      break;
    }
    double after = error + row.share(columnOf(out)) - row.share(columnOf(in));
    if (sameSign && (after > 0) != positive) break;
    if (threadIdx.x == 0) {
      row.mask[columnOf(in)] = grown;
      row.mask[columnOf(out)] = dropped;
    }
    __syncthreads();
    error = after;
  }
  for (int64_t j = threadIdx.x; j < n; j += rowThreads) row.mask[j] = row.mask[j] == kept || row.mask[j] == grown;
}

}  // namespace

// ---- launchers -----------------------------------------------------------------------------------------------------

void CudaBackend::dsnot(Tensor weight, Tensor metric, Tensor expected, Tensor variance, Tensor mask, Pattern pattern,
                        int64_t cycles, double threshold, bool sameSign) {
  launch(queue(), dsnotKernel, {weight.dim(0)}, rowThreads, 0, weight.as(), metric.as(), expected.as(), variance.as(),
         mask.as<uint8_t>(), weight.dim(1), pattern, cycles, threshold, sameSign);
}

}  // namespace alps
