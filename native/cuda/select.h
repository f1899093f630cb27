// Exact top-k of |scores| per segment, in two passes over the scores whatever their number, without waiting for the
// device. Shared by the projection and by the ADMM pass, which make the scores in the first of the two passes and use
// the mask in the second. The k-th largest magnitude is found by its bits:
//  1. a sample gives a window of magnitudes that almost surely holds the threshold;
//  2. one pass over the scores counts those above the window, and collects those inside, a few percent, with their
//     places and a histogram;
//  3. of the collected ones those of the threshold's bin, some hundreds, are searched by one block, ties by place.
// Where the threshold lies outside the window, or too many scores lie in one bin (ties), three histograms of all the
// scores of the segment follow, and a search for the place where its ties are divided. Their kernels are always
// launched, and end at once where they are not needed: the result is exact in any case, only the time differs.
#pragma once
#include <algorithm>
#include <vector>

#include "core/backend.h"
#include "cuda/runtime.h"
#include "cuda/search.h"
#include "cuda/window.h"

namespace alps {

constexpr int segmentsAtOnce = 64;  // of one set of launches; more segments are done in turn
constexpr int tileThreads = 256;
constexpr int tileQuads = 4;  // a thread
constexpr int64_t tileSize = int64_t{tileThreads} * tileQuads * 4;
constexpr int searchThreads = 512;
constexpr uint32_t candidateCapacity = 4096;

struct SegmentPlan {
  Range range;
  uint64_t keep;
  int64_t firstTile;
  int64_t firstInside;  // in the buffer of scores inside the windows
  int64_t capacity;     // its room there; 0: too small for a window
  __host__ __device__ bool search() const { return keep > 0 && keep < static_cast<uint64_t>(range.size()); }
  __host__ __device__ bool sampled() const { return search() && capacity > 0; }
  __host__ __device__ int64_t origin() const { return range.begin & ~int64_t{3}; }  // of its first tile
};

// Handed to kernels by value.
struct SelectionPlan {
  int count = 0;
  int64_t tiles = 0;
  SegmentPlan segments[segmentsAtOnce];
};

enum Stage : uint32_t { settled = 0, searching, dividing };

struct SegmentState {
  Threshold threshold;  // the result
  uint32_t low, high;   // the window, both ends in it
  Count above, inside;  // scores above and in the window
  uint32_t candidates;  // collected so far
  uint32_t tickets;     // blocks that are done with the running kernel
  Stage stage;          // what is left to do once the window has been searched
  uint32_t from, to;    // searching: the threshold is the rank-th largest in [from, to]
  Count rank;           // dividing: so many of those equal to the threshold are kept
};

struct SelectionMemory {
  SegmentState* states;  // [segments]
  Count* windowBins;     // [segments, bins], of the scores inside the window
  Count* searchBins;     // [segments, bins]
  uint2* inside;         // magnitude, place in the segment
  uint2* candidates;     // [segments, candidateCapacity], likewise
  uint32_t* equals;      // [tiles], scores equal to the threshold
};

// What a pass over the scores does. `Pass` has, with a Quad of four elements' values in registers:
//   const float* scores; bool aligned (all its tensors hold quads);
//   static constexpr bool makes: scores are made by make()
//   sample<whole>(at, range, score): what the scores of a quad will be once made
//   Raw read<whole>(at, range); Quad make<whole>(raw, at, range): makes the scores of a quad, in two halves so that
//     several quads are read before the first one is written
//   Quad load<whole>(at, range): a quad made before
//   use<whole>(quad, kept, at, range): uses the mask, four bits
// Each quad has `float score[4]`.

namespace selection {

__device__ inline int segmentOf(const SelectionPlan& plan, int64_t tile) {
  int s = 0;
  while (s + 1 < plan.count && plan.segments[s + 1].firstTile <= tile) s++;
  return s;
}

// One block a segment: its state, empty histograms, and its window.
template <typename Pass>
__global__ void __launch_bounds__(windowThreads) windowKernel(Pass pass, SelectionPlan plan, SelectionMemory memory) {
  const SegmentPlan& segment = plan.segments[blockIdx.x];
  SegmentState& state = memory.states[blockIdx.x];
  int t = static_cast<int>(threadIdx.x);
  for (int i = t; i < bins; i += windowThreads)
    memory.windowBins[blockIdx.x * bins + i] = memory.searchBins[blockIdx.x * bins + i] = 0;
  if (t == 0) {
    state = {};
    state.threshold = segment.keep == 0 ? keepNone() : keepAll();
    state.high = largestMagnitude;
  }
  __syncthreads();
  if (!segment.sampled()) return;
  // One quad in each of equal strata, at a place that a hash of its number gives.
  int64_t size = segment.range.size();
  int quads = sampledQuads(size);
  int64_t stratum = size / (int64_t{windowThreads} * quads);
  uint32_t bits[4][4];
#pragma unroll
  for (int q = 0; q < 4; q++) {
    if (q >= quads) break;
    uint64_t number = static_cast<uint64_t>(q * windowThreads + t);
    int64_t offset =
        static_cast<int64_t>(((number + 1) * 0x9e3779b97f4a7c15u >> 32) % static_cast<uint64_t>(stratum - 3));
    int64_t at = segment.range.begin + static_cast<int64_t>(number) * stratum + offset;
    at = max(segment.range.begin, at & ~int64_t{3});
    float score[4];
    if (pass.aligned && at % 4 == 0)
      pass.template sample<true>(at, segment.range, score);
    else
      pass.template sample<false>(at, segment.range, score);
    for (int j = 0; j < 4; j++) bits[q][j] = magnitude(score[j]);
  }
  Window window = findWindow(bits, quads, size, segment.keep);
  if (t == 0) state.low = window.low, state.high = window.high;
}

// Makes the scores of a tile; bits gets their magnitudes, −1 for what is not in the range.
template <bool whole, typename Pass>
__device__ inline void makeTile(const Pass& pass, int64_t first, Range range, int32_t (&bits)[tileQuads][4]) {
  constexpr int together = 2;
#pragma unroll
  for (int half = 0; half < tileQuads; half += together) {
    typename Pass::Raw raw[together];
    int64_t at[together];
#pragma unroll
    for (int q = 0; q < together; q++) {
      at[q] = first + ((half + q) * tileThreads + static_cast<int>(threadIdx.x)) * 4;
      raw[q] = pass.template read<whole>(at[q], range);
    }
#pragma unroll
    for (int q = 0; q < together; q++) {
      auto quad = pass.template make<whole>(raw[q], at[q], range);
      for (int j = 0; j < 4; j++) {
        bool in = whole || (at[q] + j >= range.begin && at[q] + j < range.end);
        bits[half + q][j] = in ? static_cast<int32_t>(magnitude(quad.score[j])) : -1;
      }
    }
  }
}

// histogram[bin]++ for the lanes of a warp that have one. Those in the first lane's bin are added at once: where many
// scores are equal, they are most of them.
__device__ inline void countTogether(Count* histogram, bool has, int bin) {
  uint32_t all = __ballot_sync(0xffffffffu, has);
  if (all == 0) return;
  int leader = __ffs(static_cast<int>(all)) - 1, lane = static_cast<int>(threadIdx.x % 32);
  int common = __shfl_sync(0xffffffffu, bin, leader);
  uint32_t same = __ballot_sync(0xffffffffu, has && bin == common);
  if (lane == leader)
    atomicAdd(histogram + bin, static_cast<Count>(__popc(same)));
  else if (has && bin != common)
    atomicAdd(histogram + bin, Count{1});
}

// One block a tile: makes its scores; those inside the window are collected.
template <typename Pass>
__global__ void __launch_bounds__(tileThreads, 4) collectKernel(Pass pass, SelectionPlan plan, SelectionMemory memory) {
  SHARED(Count, start, 1);
  int s = segmentOf(plan, blockIdx.x);
  const SegmentPlan& segment = plan.segments[s];
  Range range = segment.range;
  int64_t first = segment.origin() + (blockIdx.x - segment.firstTile) * tileSize;
  if (!Pass::makes && !segment.sampled()) return;
  int32_t bits[tileQuads][4];
  if (pass.aligned && first >= range.begin && first + tileSize <= range.end)
    makeTile<true>(pass, first, range, bits);
  else
    makeTile<false>(pass, first, range, bits);
  if (!segment.sampled()) return;

  SegmentState& state = memory.states[s];
  int32_t low = static_cast<int32_t>(state.low), high = static_cast<int32_t>(state.high);
  int shift = shiftOf(static_cast<uint64_t>(high - low));
  uint32_t counts = 0, total;  // above in the upper half, inside in the lower one: a tile has fewer than 2^16 scores
#pragma unroll
  for (int q = 0; q < tileQuads; q++)
#pragma unroll
    for (int j = 0; j < 4; j++) counts += bits[q][j] > high ? 1u << 16 : bits[q][j] >= low ? 1u : 0u;
  uint32_t place = blockScan(counts, total) & 0xffff, inside = total & 0xffff;
  if (threadIdx.x == 0) {
    if (total >> 16) atomicAdd(&state.above, Count{total >> 16});
    *start = inside ? atomicAdd(&state.inside, Count{inside}) : 0;
  }
  __syncthreads();
  bool room = *start + inside <= static_cast<Count>(segment.capacity);
  uint2* out = memory.inside + segment.firstInside + *start;
  Count* histogram = memory.windowBins + s * bins;
  bool many = inside > tileSize / 4;
#pragma unroll
  for (int q = 0; q < tileQuads; q++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      bool in = bits[q][j] >= low && bits[q][j] <= high;
      if (many) countTogether(histogram, in, (bits[q][j] - low) >> shift);
      if (!in) continue;
      if (!many) atomicAdd(histogram + ((bits[q][j] - low) >> shift), Count{1});
      int64_t at = first + (q * tileThreads + static_cast<int>(threadIdx.x)) * 4 + j - range.begin;
      if (room) out[place++] = make_uint2(static_cast<uint32_t>(bits[q][j]), static_cast<uint32_t>(at));
    }
  }
}

template <bool whole, typename Pass>
__device__ inline void useTile(const Pass& pass, int64_t first, Range range, const Threshold& threshold) {
  typename Pass::Quad quads[tileQuads];
#pragma unroll
  for (int q = 0; q < tileQuads; q++)
    quads[q] = pass.template load<whole>(first + (q * tileThreads + static_cast<int>(threadIdx.x)) * 4, range);
#pragma unroll
  for (int q = 0; q < tileQuads; q++) {
    int64_t at = first + (q * tileThreads + static_cast<int>(threadIdx.x)) * 4;
    uint32_t kept = 0;
    for (int j = 0; j < 4; j++) kept |= (threshold.keeps(magnitude(quads[q].score[j]), at + j) ? 1u : 0u) << j;
    pass.template use<whole>(quads[q], kept, at, range);
  }
}

// One block a tile, the last ones first: they are still in the second-level cache.
template <typename Pass>
__global__ void __launch_bounds__(tileThreads, 4) useKernel(Pass pass, SelectionPlan plan, SelectionMemory memory) {
  int64_t tile = int64_t{gridDim.x} - 1 - blockIdx.x;
  int s = segmentOf(plan, tile);
  const SegmentPlan& segment = plan.segments[s];
  Range range = segment.range;
  Threshold threshold = memory.states[s].threshold;
  int64_t first = segment.origin() + (tile - segment.firstTile) * tileSize;
  if (pass.aligned && first >= range.begin && first + tileSize <= range.end)
    useTile<true>(pass, first, range, threshold);
  else
    useTile<false>(pass, first, range, threshold);
}

}  // namespace selection

// The selection over segments of one shape, and its memory. Whatever uses a recorded run() must end before it.
class Selection {
 public:
  Selection(Runtime& runtime, int64_t columns, const Counts& rowEnds, const Counts& keep);

  // Keeps exactly keep[s] of the magnitudes in segment s, ties to the lowest index.
  template <typename Pass>
  void run(const Pass& pass) const {
    Queue queue = runtime_.queue();
    for (const SelectionPlan& plan : plans_) {
      auto segments = plan.segments;
      bool sampled = std::any_of(segments, segments + plan.count, [](const auto& s) { return s.sampled(); });
      bool search = std::any_of(segments, segments + plan.count, [](const auto& s) { return s.search(); });
      SelectionMemory memory = this->memory();
      launch(queue, selection::windowKernel<Pass>, {plan.count}, windowThreads, 0, pass, plan, memory);
      if (Pass::makes || sampled)
        launch(queue, selection::collectKernel<Pass>, {plan.tiles}, tileThreads, 0, pass, plan, memory);
      if (search) findThresholds(pass.scores, pass.aligned, plan, sampled);
      launch(queue, selection::useKernel<Pass>, {plan.tiles}, tileThreads, 0, pass, plan, memory);
    }
  }

 private:
  SelectionMemory memory() const;
  void findThresholds(const float* scores, bool aligned, const SelectionPlan& plan, bool sampled) const;

  Runtime& runtime_;
  std::vector<SelectionPlan> plans_;
  Scratch<SegmentState> states_;
  Scratch<Count> windowBins_, searchBins_;
  Scratch<uint2> candidates_, inside_;
  Scratch<uint32_t> equals_;
};

}  // namespace alps
