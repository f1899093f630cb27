// Purpose: routing of a mixture of experts.
#include <cmath>

#include "cuda/cuda_backend.h"
#include "cuda/reduce.h"

namespace alps {

namespace {

// ---- kernels --------------------------------------------------------------------------------------------------------

// Larger for larger logits and, among equal ones, for lower ids. NaN comes after all numbers; never 0.
__device__ inline uint64_t keyOf(float logit, int64_t id) {
  uint32_t bits = __float_as_uint(logit + 0.0f);  // −0 is 0
  uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000;
  return static_cast<uint64_t>(logit != logit ? 0 : ordered) << 32 | (0xffffffff - static_cast<uint32_t>(id));
}

// One warp a token. Each turn takes the largest key below the one before; the row stays in the first-level cache.
__global__ void topExpertsKernel(const float* logits, int64_t tokens, int64_t experts, int64_t k, bool normalise,
                                 uint32_t* ids, float* weights) {
  int64_t token = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (token >= tokens) return;
  int lane = static_cast<int>(threadIdx.x % 32);
  const float* row = logits + token * experts;
  uint32_t* chosen = ids + token * k;
  uint64_t last = ~uint64_t{0};
  double top = 0;
  for (int64_t e = 0; e < k; e++) {
    uint64_t best = 0;
    for (int64_t j = lane; j < experts; j += 32) {
      uint64_t key = keyOf(row[j], j);
      if (key < last && key > best) best = key;
    }
    for (int by = 16; by > 0; by /= 2) {
      uint64_t other = __shfl_xor_sync(0xffffffffu, best, by);
      best = other > best ? other : best;
    }
    last = best;
    uint32_t id = 0xffffffff - static_cast<uint32_t>(best);
    if (e == 0) top = row[id];
    if (lane == 0) chosen[e] = id;
  }
  __syncwarp();  // the ids that lane 0 wrote
  double total = 0;
  if (normalise)
    for (int64_t e = lane; e < k; e += 32) total += exp(row[chosen[e]] - top);
  else
    for (int64_t j = lane; j < experts; j += 32) total += exp(row[j] - top);
  total = warpSum(total);
  for (int64_t e = lane; e < k; e += 32) weights[token * k + e] = static_cast<float>(exp(row[chosen[e]] - top) / total);
}

}  // namespace

// ---- launchers ------------------------------------------------------------------------------------------------------

void CudaBackend::topExperts(Tensor logits, Tensor ids, Tensor weights, bool normalise) {
  int64_t tokens = logits.dim(0), warps = blockSize_ / 32;
  launch(queue(), topExpertsKernel, {(tokens + warps - 1) / warps}, blockSize_, 0, logits.as(), tokens, logits.dim(1),
         ids.dim(1), normalise, ids.as<uint32_t>(), weights.as());
}

}  // namespace alps
