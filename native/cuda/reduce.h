// Sums over the threads of a block, in a fixed order: the same bits every time.
#pragma once
#include "cuda/platform.h"

namespace alps {

template <typename T>
__device__ inline T warpSum(T value) {
  for (int by = 16; by > 0; by /= 2) value += __shfl_xor_sync(0xffffffffu, value, by);
  return value;
}

// The block's sum, in every thread. All threads of the block must call it; blocks are whole warps, at most 1024
// threads.
template <typename T>
__device__ inline T blockSum(T value) {
  SHARED(T, sums, 32);
  value = warpSum(value);
  int warp = static_cast<int>(threadIdx.x / 32), warps = static_cast<int>(blockDim.x / 32);
  if (threadIdx.x % 32 == 0) sums[warp] = value;
  __syncthreads();
  T total = 0;
  for (int i = 0; i < warps; i++) total += sums[i];
  __syncthreads();  // the next call writes sums again
  return total;
}

}  // namespace alps
