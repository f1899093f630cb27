// Purpose: the search for the thresholds of a selection (select.h), between its two passes over the scores.
#include "cuda/select.h"

namespace alps {

namespace {

constexpr int64_t smallestSampled = 1 << 16;  // scores; below, one block searches them all
constexpr int64_t insidePart = 8;             // room for one eighth of the scores inside a window
constexpr int tileRounds = static_cast<int>(tileSize / (searchThreads * 4));

// ---- kernels --------------------------------------------------------------------------------------------------------

// True in the threads of the last of the segment's blocks to come here; what the others wrote before is then there.
__device__ bool lastBlock(SegmentState& state) {
  SHARED(uint32_t, ticket, 1);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *ticket = atomicAdd(&state.tickets, 1u);
    if (*ticket == gridDim.x - 1) state.tickets = 0;
    __threadfence();
  }
  __syncthreads();
  bool last = *ticket == gridDim.x - 1;
  __syncthreads();
  return last;
}

// Written by other blocks of this launch: read past the first-level cache.
template <typename T>
__device__ T fresh(const T* at) {
  return *const_cast<const volatile T*>(at);
}

// Notes how far a search has come. One thread.
__device__ void note(SegmentState& state, const Search& search, bool all) {
  state.threshold = {search.low, INT64_MAX};
  state.from = search.low;
  state.to = search.high;
  state.rank = search.rank;
  state.stage = all ? settled : search.low == search.high ? dividing : searching;
}

// The rank-th largest of count candidates, largest magnitude and then lowest place first, decides what is kept.
__device__ void searchCandidates(const uint2* candidates, uint32_t count, const Search& range, SegmentState& state,
                                 int64_t begin, uint32_t* histogram) {
  SHARED(uint64_t, keys, candidateCapacity);
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    const uint32_t* candidate = &candidates[i].x;
    keys[i] = static_cast<uint64_t>(fresh(candidate)) << 32 | static_cast<uint32_t>(~fresh(candidate + 1));
  }
  uint64_t low = static_cast<uint64_t>(range.low) << 32, high = static_cast<uint64_t>(range.high) << 32 | UINT32_MAX;
  Bin bin{0, range.rank, count};
  while (low < high && bin.rank < bin.count) {
    int shift = shiftOf(high - low);
    clearBins(histogram);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x)
      if (keys[i] >= low && keys[i] <= high) atomicAdd(histogram + ((keys[i] - low) >> shift), 1u);
    __syncthreads();
    bin = findBin(histogram, bin.rank);
    low += static_cast<uint64_t>(bin.index) << shift;
    high = min(high, low + ((uint64_t{1} << shift) - 1));
  }
  if (threadIdx.x == 0)
    state.threshold = {static_cast<uint32_t>(low >> 32), begin + static_cast<uint32_t>(~static_cast<uint32_t>(low))};
}

// Grid y: segments. Small ones are searched whole; of the others what was collected inside the window.
__global__ void __launch_bounds__(searchThreads)
    refineKernel(const float* scores, bool aligned, SelectionPlan plan, SelectionMemory memory) {
  SHARED(uint32_t, histogram, bins);
  const SegmentPlan& segment = plan.segments[blockIdx.y];
  SegmentState& state = memory.states[blockIdx.y];
  bool first = blockIdx.x == 0 && threadIdx.x == 0;
  if (!segment.search()) return;
  if (!segment.sampled()) {
    if (blockIdx.x > 0) return;
    BlockSearch<false> search({scores, segment.range, aligned}, histogram);
    Threshold threshold = search.find(segment.keep);
    if (threadIdx.x == 0) state.threshold = threshold;
    return;
  }
  Search search{state.low, state.high, segment.keep};
  if (search.rank <= state.above || search.rank > state.above + state.inside) {
    if (search.rank <= state.above) {
      search.low = search.high + 1, search.high = largestMagnitude;
    } else {
      search.rank -= state.above + state.inside;
      search.high = search.low - 1, search.low = 0;
    }
    if (first) note(state, search, false);
    return;
  }
  search.rank -= state.above;
  int shift = shiftOf(search.high - search.low);
  Bin bin = findBin(memory.windowBins + blockIdx.y * bins, search.rank);
  search.narrow(bin, shift);
  if (bin.rank == bin.count || bin.count > candidateCapacity || state.inside > static_cast<Count>(segment.capacity)) {
    if (first) note(state, search, bin.rank == bin.count);
    return;
  }
  const uint2* inside = memory.inside + segment.firstInside;
  uint2* candidates = memory.candidates + blockIdx.y * candidateCapacity;
  constexpr int together = 4;
  Count step = Count{gridDim.x} * blockDim.x, count = state.inside;
  for (Count i = Count{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += together * step) {
    uint2 entries[together];
    for (int k = 0; k < together; k++)
      entries[k] = i + k * step < count ? inside[i + k * step] : make_uint2(UINT32_MAX, 0);
    for (const uint2& entry : entries)
      if (entry.x >= search.low && entry.x <= search.high) candidates[atomicAdd(&state.candidates, 1u)] = entry;
  }
  if (!lastBlock(state)) return;
  searchCandidates(candidates, static_cast<uint32_t>(bin.count), search, state, segment.range.begin, histogram);
}

// The segment's tiles are dealt to its blocks in turn.
template <typename Action>
__device__ void forTiles(const float* scores, bool aligned, const SegmentPlan& segment, const Action& action) {
  for (int64_t tile = blockIdx.x;; tile += gridDim.x) {
    int64_t at = segment.origin() + tile * tileSize;
    if (at >= segment.range.end) return;
    Range range{max(at, segment.range.begin), min(at + tileSize, segment.range.end)};
    action(tile, Rounds{scores, range, aligned});
  }
}

// Grid y: segments. One histogram of all the scores of those whose window did not do. Three are enough for 31 bits.
__global__ void __launch_bounds__(searchThreads)
    searchKernel(const float* scores, bool aligned, SelectionPlan plan, SelectionMemory memory) {
  SHARED(uint32_t, histogram, bins);
  const SegmentPlan& segment = plan.segments[blockIdx.y];
  SegmentState& state = memory.states[blockIdx.y];
  if (state.stage != searching) return;
  Search search{state.from, state.to, state.rank};
  uint32_t low = search.low, width = search.high - search.low;
  int shift = shiftOf(width);
  clearBins(histogram);
  __syncthreads();
  forTiles(scores, aligned, segment, [&](int64_t, const Rounds& rounds) {
#pragma unroll
    for (int r = 0; r < tileRounds; r++) {
      uint32_t bits[4];
      rounds.load(rounds.place(r), bits);
      for (uint32_t each : bits) countIn(histogram, each, low, width, shift);
    }
  });
  __syncthreads();
  Count* sums = memory.searchBins + blockIdx.y * bins;
  for (int i = static_cast<int>(threadIdx.x); i < bins; i += searchThreads)
    if (histogram[i]) atomicAdd(sums + i, Count{histogram[i]});
  if (!lastBlock(state)) return;
  Bin bin = findBin(sums, search.rank);
  search.narrow(bin, shift);
  if (threadIdx.x == 0) note(state, search, bin.rank == bin.count);
  for (int i = static_cast<int>(threadIdx.x); i < bins; i += searchThreads) sums[i] = 0;
}

// Grid y: segments. The place of the last score that is kept among those equal to the threshold: equals are counted by
// tile, and looked for in the one that the rank points to.
__global__ void __launch_bounds__(searchThreads)
    divideKernel(const float* scores, bool aligned, SelectionPlan plan, SelectionMemory memory) {
  SHARED(int64_t, found, 1);
  SHARED(Count, left, 1);
  const SegmentPlan& segment = plan.segments[blockIdx.y];
  SegmentState& state = memory.states[blockIdx.y];
  if (state.stage != dividing) return;
  uint32_t* equals = memory.equals + segment.firstTile;
  uint32_t threshold = state.threshold.bits;
  auto equalIn = [&](const Rounds& rounds, int round) {
    uint32_t bits[4];
    rounds.load(rounds.place(round), bits);
    return equalBits(bits, threshold);
  };
  forTiles(scores, aligned, segment, [&](int64_t tile, const Rounds& rounds) {
    uint32_t count = 0, total;
#pragma unroll
    for (int r = 0; r < tileRounds; r++) count += static_cast<uint32_t>(__popc(equalIn(rounds, r)));
    blockScan(count, total);
    if (threadIdx.x == 0) equals[tile] = total;
  });
  if (!lastBlock(state)) return;
  Count rank = state.rank;
  int64_t tiles = (segment.range.end - segment.origin() + tileSize - 1) / tileSize, tile = -1;
  for (int64_t base = 0; base < tiles && tile < 0; base += searchThreads) {
    int64_t own = base + threadIdx.x;
    Count count = own < tiles ? fresh(equals + own) : 0, total;
    Count before = blockScan(count, total);
    if (rank > total) {
      rank -= total;
      continue;
    }
    if (before < rank && rank <= before + count) *found = own, *left = rank - before;
    __syncthreads();
    tile = *found;
    rank = *left;
  }
  int64_t at = segment.origin() + tile * tileSize;
  Rounds rounds{scores, {max(at, segment.range.begin), min(at + tileSize, segment.range.end)}, aligned};
  int64_t last = -1;
  for (int r = 0; r < tileRounds && last < 0; r++) last = findEqual(equalIn(rounds, r), rounds.place(r), rank);
  if (threadIdx.x == 0) state.threshold.last = last;
}

// ---- launchers ------------------------------------------------------------------------------------------------------

std::vector<SelectionPlan> planOf(int64_t columns, const Counts& rowEnds, const Counts& keep) {
  std::vector<SelectionPlan> plans;
  int64_t begin = 0, inside = 0;
  for (size_t s = 0; s < rowEnds.size(); s++) {
    if (s % segmentsAtOnce == 0) {
      plans.emplace_back();
      inside = 0;
    }
    SelectionPlan& plan = plans.back();
    Range range{begin, static_cast<int64_t>(rowEnds[s]) * columns};
    SegmentPlan segment{range, keep[s], plan.tiles, inside, 0};
    // Places in a segment are kept in 32 bits.
    if (segment.search() && range.size() >= smallestSampled && range.size() < int64_t{UINT32_MAX})
      segment.capacity = range.size() / insidePart + 2048;
    inside += segment.capacity;
    if (range.size() > 0) plan.tiles += (range.end - segment.origin() + tileSize - 1) / tileSize;
    plan.segments[plan.count++] = segment;
    begin = range.end;
  }
  return plans;
}

// The most that `value` gives for one of the plans.
template <typename Value>
int64_t most(const std::vector<SelectionPlan>& plans, const Value& value) {
  int64_t result = 0;
  for (const SelectionPlan& plan : plans) result = std::max<int64_t>(result, value(plan));
  return result;
}

int64_t insideOf(const SelectionPlan& plan) {
  const SegmentPlan& last = plan.segments[plan.count - 1];
  return last.firstInside + last.capacity;
}

}  // namespace

Selection::Selection(Runtime& runtime, int64_t columns, const Counts& rowEnds, const Counts& keep)
    : runtime_(runtime),
      plans_(planOf(columns, rowEnds, keep)),
      states_(runtime, most(plans_, [](const auto& plan) { return plan.count; })),
      windowBins_(runtime, most(plans_, [](const auto& plan) { return plan.count * bins; })),
      searchBins_(runtime, most(plans_, [](const auto& plan) { return plan.count * bins; })),
      candidates_(runtime, most(plans_, [](const auto& plan) { return plan.count * candidateCapacity; })),
      inside_(runtime, most(plans_, insideOf)),
      equals_(runtime, most(plans_, [](const auto& plan) { return plan.tiles; })) {}

SelectionMemory Selection::memory() const {
  return {states_.data(), windowBins_.data(), searchBins_.data(), inside_.data(), candidates_.data(), equals_.data()};
}

void Selection::findThresholds(const float* scores, bool aligned, const SelectionPlan& plan, bool sampled) const {
  Queue queue = runtime_.queue();
  int64_t room = int64_t{runtime_.properties().multiprocessors} * 4;  // blocks that run at a time
  int64_t each = std::max<int64_t>(1, room / plan.count);
  auto blocks = [&](int64_t work, int64_t perBlock) { return std::clamp<int64_t>(work / perBlock, 1, each); };
  launch(queue, refineKernel, {blocks(insideOf(plan), 4 * insidePart * searchThreads), plan.count}, searchThreads, 0,
         scores, aligned, plan, memory());
  if (!sampled) return;
  Grid grid{blocks(plan.tiles, 1), plan.count};
  for (int i = 0; i < 3; i++) launch(queue, searchKernel, grid, searchThreads, 0, scores, aligned, plan, memory());
  launch(queue, divideKernel, grid, searchThreads, 0, scores, aligned, plan, memory());
}

}  // namespace alps
