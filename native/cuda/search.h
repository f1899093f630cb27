// The rank-th largest of many magnitudes by histograms of their bits: each one over the bin that the last one pointed
// at, from the range of all magnitudes to a single one.
#pragma once
#include "cuda/quads.h"
#include "cuda/scan.h"

namespace alps {

using Count = unsigned long long;  // of scores; CUDA has atomics of this type

constexpr int binBits = 11;
constexpr int bins = 1 << binBits;

// Kept are magnitudes above `bits`, and those equal to it up to element `last`.
struct Threshold {
  uint32_t bits;
  int64_t last;
  __device__ bool keeps(uint32_t magnitude, int64_t at) const {
    return magnitude > bits || (magnitude == bits && at <= last);
  }
};
__device__ inline Threshold keepAll() { return {0, INT64_MAX}; }
__device__ inline Threshold keepNone() { return {UINT32_MAX, -1}; }

__device__ inline int bitWidth(uint64_t x) {
  uint32_t high = static_cast<uint32_t>(x >> 32);
  return high ? 64 - __clz(static_cast<int>(high)) : 32 - __clz(static_cast<int>(x));
}

// How far values of [low, low + width] are shifted to fall into the bins.
__device__ inline int shiftOf(uint64_t width) { return max(0, bitWidth(width) - binBits); }

struct Bin {
  int index;
  Count rank;   // in the bin, from 1
  Count count;  // values in it
};

// The bin that holds the rank-th largest value. All threads of the block; their number divides that of the bins. The
// histogram may have been made by other blocks, so it is read past the first-level cache.
template <typename C>
__device__ inline Bin findBin(const volatile C* histogram, Count rank) {
  SHARED(Bin, found, 1);
  if (threadIdx.x == 0) *found = {0, 1, 0};
  int perThread = bins / static_cast<int>(blockDim.x), top = bins - 1 - static_cast<int>(threadIdx.x) * perThread;
  Count sum = 0, total;
  for (int i = 0; i < perThread; i++) sum += histogram[top - i];
  Count before = blockScan(sum, total);
  if (before < rank && rank <= before + sum) {
    for (int bin = top;; bin--) {
      Count count = histogram[bin];
      if (rank <= before + count) {
        *found = {bin, rank - before, count};
        break;
      }
      before += count;
    }
  }
  __syncthreads();
  Bin bin = *found;
  __syncthreads();
  return bin;
}

// Magnitudes [low, high], the rank-th largest of which is looked for.
struct Search {
  uint32_t low = 0, high = largestMagnitude;
  Count rank = 0;
  bool ended = false;  // all of the range are kept, or it is a single one

  __device__ void narrow(const Bin& bin, int shift) {
    low += static_cast<uint32_t>(bin.index) << shift;
    high = min(high, low + ((1u << shift) - 1));
    rank = bin.rank;
    ended = low == high || bin.rank == bin.count;
  }
};

__device__ inline void clearBins(uint32_t* histogram) {
  for (int i = static_cast<int>(threadIdx.x); i < bins; i += static_cast<int>(blockDim.x)) histogram[i] = 0;
}

__device__ inline void countIn(uint32_t* histogram, uint32_t bits, uint32_t low, uint32_t width, int shift) {
  uint32_t offset = bits - low;
  if (offset <= width) atomicAdd(histogram + (offset >> shift), 1u);
}

// In no bin and equal to no magnitude.
constexpr uint32_t outside = UINT32_MAX;

// Scores [begin, end) as a block reads them: in rounds of one quad a thread, from the multiple of four before begin.
struct Rounds {
  const float* scores;
  Range range;
  bool aligned;

  __device__ int64_t first() const { return range.begin & ~int64_t{3}; }
  __device__ int64_t count() const {
    int64_t each = 4 * int64_t{blockDim.x};
    return (range.end - first() + each - 1) / each;
  }
  __device__ int64_t place(int64_t round) const { return first() + (round * blockDim.x + threadIdx.x) * 4; }
  // The magnitudes of elements at, at + 1, ...; `outside` for those that are not in the range.
  __device__ void load(int64_t at, uint32_t (&bits)[4]) const {
    float values[4];
    if (aligned && at >= range.begin && at + 4 <= range.end) {
      load4<true>(scores, at, range, values);
      for (int j = 0; j < 4; j++) bits[j] = magnitude(values[j]);
    } else {
      load4<false>(scores, at, range, values);
      for (int j = 0; j < 4; j++)
        bits[j] = at + j >= range.begin && at + j < range.end ? magnitude(values[j]) : outside;
    }
  }
};

// Bit j: bits[j] is equal to `to`.
__device__ inline uint32_t equalBits(const uint32_t (&bits)[4], uint32_t to) {
  uint32_t equal = 0;
  for (int j = 0; j < 4; j++) equal |= (bits[j] == to ? 1u : 0u) << j;
  return equal;
}

// Element of the rank-th score that equals `bits` among those of one round, in order, or −1 when there are fewer; rank
// is then less by their number. `equal`: bit j for the thread's element at + j. All threads of the block.
__device__ inline int64_t findEqual(uint32_t equal, int64_t at, Count& rank) {
  SHARED(int64_t, found, 1);
  uint32_t own = static_cast<uint32_t>(__popc(equal)), total;
  uint32_t before = blockScan(own, total);
  if (rank > total) {
    rank -= total;
    return -1;
  }
  if (before < rank && rank <= before + own) {
    int64_t left = static_cast<int64_t>(rank) - before;
    for (int j = 0; j < 4; j++)
      if ((equal >> j & 1) && --left == 0) *found = at + j;
  }
  __syncthreads();
  int64_t element = *found;
  __syncthreads();
  return element;
}

// The threshold of one block's own scores, 0 < keep < their number. `held`: a thread's part, at most `rounds` quads,
// stays in its registers. histogram: shared, [bins].
template <bool held, int rounds = 4>
struct BlockSearch {
  Rounds source;
  uint32_t* histogram;
  uint32_t kept[held ? rounds : 1][4];

  __device__ BlockSearch(const Rounds& from, uint32_t* bins) : source(from), histogram(bins) {
    if constexpr (held) {
#pragma unroll
      for (int r = 0; r < rounds; r++) source.load(source.place(r), kept[r]);
    }
  }

  // action(bits, at) for each round of the calling thread, in order, until one returns true.
  template <typename Action>
  __device__ void forRounds(const Action& action) {
    if constexpr (held) {
      bool stop = false;
#pragma unroll
      for (int r = 0; r < rounds; r++)
        if (!stop) stop = action(kept[r], source.place(r));
    } else {
      int64_t count = source.count();
      for (int64_t r = 0; r < count; r++) {
        int64_t at = source.place(r);
        source.load(at, kept[0]);
        if (action(kept[0], at)) break;
      }
    }
  }

  __device__ Threshold find(Count keep) {
    Search search;
    search.rank = keep;
    Bin bin{};
    while (!search.ended) {
      uint32_t low = search.low, width = search.high - search.low;
      int shift = shiftOf(width);
      clearBins(histogram);
      __syncthreads();
      forRounds([&](const uint32_t(&bits)[4], int64_t) {
        for (uint32_t each : bits) countIn(histogram, each, low, width, shift);
        return false;
      });
      __syncthreads();
      bin = findBin(histogram, search.rank);
      search.narrow(bin, shift);
    }
    Threshold threshold{search.low, INT64_MAX};
    if (bin.rank == bin.count) return threshold;
    Count rank = bin.rank;
    forRounds([&](const uint32_t(&bits)[4], int64_t at) {
      threshold.last = findEqual(equalBits(bits, search.low), at, rank);
      return threshold.last >= 0;
    });
    return threshold;
  }
};

}  // namespace alps
