// The window of magnitudes around the threshold of a selection, from a sample of the scores.
#pragma once
#include "cuda/search.h"

namespace alps {

constexpr int windowThreads = 1024;

struct Window {
  uint32_t low, high;  // both ends in it
};

// Quads of the sample that each thread of the window's block takes, at most four.
inline __device__ int sampledQuads(int64_t size) {
  return static_cast<int>(min(max(size / (64 * windowThreads), int64_t{1}), int64_t{4}));
}

// bits: the thread's part of a sample of `size` scores of which `keep` are kept, `quads` of its quads. All threads of a
// block of windowThreads.
__device__ inline Window findWindow(const uint32_t (&bits)[4][4], int quads, int64_t size, uint64_t keep) {
  SHARED(uint32_t, histograms, 2 * bins);
  constexpr int firstShift = 20, secondShift = 9;  // ends of 2^9 neighbouring numbers are exact enough
  // The threshold's rank in the sample, and around it 4.5 standard errors of independent draws: neighbours are alike,
  // so these are nearer to three.
  double sample = static_cast<double>(quads) * windowThreads * 4;
  double part = static_cast<double>(keep) / static_cast<double>(size);
  double margin = 4.5 * sqrt(part * (1 - part) * sample) + 8;
  double ranks[2] = {floor(part * sample - margin), ceil(part * sample + margin)};  // of the upper and the lower end
  bool inside[2] = {ranks[0] >= 1, ranks[1] <= sample};

  clearBins(histograms);
  __syncthreads();
#pragma unroll
  for (int q = 0; q < 4; q++)
    if (q < quads)
      for (int j = 0; j < 4; j++) atomicAdd(histograms + (bits[q][j] >> firstShift), 1u);
  __syncthreads();
  Bin first[2]{};
  for (int end = 0; end < 2; end++)
    if (inside[end]) first[end] = findBin(histograms, static_cast<Count>(ranks[end]));

  clearBins(histograms);
  clearBins(histograms + bins);
  __syncthreads();
#pragma unroll
  for (int q = 0; q < 4; q++) {
    if (q >= quads) continue;
    for (int j = 0; j < 4; j++) {
      uint32_t bin = bits[q][j] >> secondShift & (bins - 1);
      for (int end = 0; end < 2; end++)
        if (inside[end] && static_cast<int>(bits[q][j] >> firstShift) == first[end].index)
          atomicAdd(histograms + end * bins + bin, 1u);
    }
  }
  __syncthreads();
  Window window{0, largestMagnitude};
  for (int end = 0; end < 2; end++) {
    if (!inside[end]) continue;
    Bin second = findBin(histograms + end * bins, first[end].rank);
    uint32_t bits = static_cast<uint32_t>(first[end].index) << firstShift | static_cast<uint32_t>(second.index)
                                                                                << secondShift;
    if (end == 0)
      window.high = bits | ((1u << secondShift) - 1);
    else
      window.low = bits;
  }
  return window;
}

}  // namespace alps
