// Sums over the threads before one.
#pragma once
#include "cuda/platform.h"

namespace alps {

// The sum of the values of the block's threads before the calling one; `total` gets that of all. All threads of the
// block must call it; blocks are whole warps, at most 1024 threads.
template <typename T>
__device__ inline T blockScan(T value, T& total) {
  SHARED(T, sums, 32);
  int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  int warps = static_cast<int>(blockDim.x / 32);
  T inclusive = value;
  for (int by = 1; by < 32; by *= 2) {
    T other = __shfl_up_sync(0xffffffffu, inclusive, static_cast<unsigned>(by));
    if (lane >= by) inclusive += other;
  }
  if (lane == 31) sums[warp] = inclusive;
  __syncthreads();
  T before = 0;
  total = 0;
  for (int i = 0; i < warps; i++) {
    if (i < warp) before += sums[i];
    total += sums[i];
  }
  __syncthreads();  // the next call writes sums again
  return before + inclusive - value;
}

}  // namespace alps
