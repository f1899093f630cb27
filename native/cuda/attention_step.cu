// Purpose: attention of one query a head to kept keys and values (the online softmax of FlashAttention, keys divided
// among warps); bound by memory.
//
// A block takes one query head. Of its warps each takes every eighth group of four keys, lanes over the dimensions, and
// the parts are merged at the end. Heads of more than 256 dimensions are made 256 columns a block, scores anew for
// each.
#include <algorithm>
#include <cmath>

#include "cuda/attention.h"
#include "cuda/cuda_backend.h"
#include "cuda/reduce.h"
#include "cuda/vectors.h"

namespace alps {

namespace {

// ---- kernel ---------------------------------------------------------------------------------------------------------

constexpr int stepWarps = 8, stepColumns = 256;
constexpr int stepKeys = 4;  // that a warp takes at a time, so that their loads and their sums overlap

struct StepProblem {
  const void *q, *k, *v;  // [sequences, heads * headDim], k and v [sequences, heads / group * headDim]
  void *keys, *values;    // [sequences * length, heads / group * headDim]
  void* out;              // like q
  int64_t length, position;
  int64_t first;  // the first key that the query sees
  int headDim, heads, group;
  float scale, softCap;
};

// Three blocks a multiprocessor: ptxas else spills for a fourth. The new row of keys and values is read from k and v,
// and no block reads it from where another stores it.
template <typename T, int N>
__global__ void __launch_bounds__(stepWarps * 32, 3) attentionStepKernel(StepProblem problem) {
  constexpr int wide = stepColumns / 32 / N;  // vectors a lane
  SHARED(float, parts, stepWarps* stepColumns);
  SHARED(float, peaks, stepWarps);
  SHARED(float, totals, stepWarps);
  int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  int headDim = problem.headDim, column = static_cast<int>(blockIdx.y) * stepColumns;
  int head = static_cast<int>(blockIdx.x % static_cast<unsigned>(problem.heads));
  int64_t sequence = blockIdx.x / static_cast<unsigned>(problem.heads), position = problem.position;
  int64_t stride = int64_t{problem.heads / problem.group} * headDim, keyAt = int64_t{head / problem.group} * headDim;
  int64_t queryAt = (sequence * problem.heads + head) * headDim;
  const T* q = static_cast<const T*>(problem.q) + queryAt;
  const T* k = static_cast<const T*>(problem.k) + sequence * stride + keyAt;
  const T* v = static_cast<const T*>(problem.v) + sequence * stride + keyAt;
  T* keys = static_cast<T*>(problem.keys) + sequence * problem.length * stride + keyAt;
  T* values = static_cast<T*>(problem.values) + sequence * problem.length * stride + keyAt;

  int c = column + static_cast<int>(threadIdx.x);
  static_assert(stepColumns == stepWarps * 32);
  if (head % problem.group == 0 && c < headDim) {
    keys[position * stride + c] = k[c];
    values[position * stride + c] = v[c];
  }

  float sums[wide][N] = {};  // Σ exp(score − peak) v
  float peak = -INFINITY, total = 0;
  for (int64_t s = problem.first + warp * stepKeys; s <= position; s += stepWarps * stepKeys) {
    float scores[stepKeys] = {};
    for (int from = 0; from < headDim; from += stepColumns) {
#pragma unroll
      for (int i = 0; i < wide; i++) {
        int d = from + (i * 32 + lane) * N;
        if (d >= headDim) continue;
        Vector<T, N> a = load<N>(q + d);
#pragma unroll
        for (int j = 0; j < stepKeys; j++) {
          if (s + j > position) continue;
          Vector<T, N> b = load<N>((s + j == position ? k : keys + (s + j) * stride) + d);
#pragma unroll
          for (int e = 0; e < N; e++) scores[j] = fmaf(floatOf(a.at[e]), floatOf(b.at[e]), scores[j]);
        }
      }
    }
    float highest = peak;
#pragma unroll
    for (int j = 0; j < stepKeys; j++) {
      float score = warpSum(scores[j]) * problem.scale;
      if (problem.softCap > 0) score = problem.softCap * tanhf(score / problem.softCap);
      scores[j] = s + j <= position ? score : -INFINITY;
      highest = fmaxf(highest, scores[j]);
    }
    float shift = highest == -INFINITY ? 0 : highest;  // exp(−∞ − 0), not of NaN
    float fall = highest == peak ? 1 : exp2f((peak - shift) * log2OfE);
    peak = highest;
    total *= fall;
#pragma unroll
    for (int j = 0; j < stepKeys; j++) {
      scores[j] = exp2f((scores[j] - shift) * log2OfE);
      total += scores[j];
    }
#pragma unroll
    for (int i = 0; i < wide; i++) {
      int d = column + (i * 32 + lane) * N;
      if (d >= headDim) continue;
#pragma unroll
      for (int e = 0; e < N; e++) sums[i][e] *= fall;
#pragma unroll
      for (int j = 0; j < stepKeys; j++) {
        if (s + j > position) continue;
        Vector<T, N> b = load<N>((s + j == position ? v : values + (s + j) * stride) + d);
#pragma unroll
        for (int e = 0; e < N; e++) sums[i][e] = fmaf(scores[j], floatOf(b.at[e]), sums[i][e]);
      }
    }
  }

#pragma unroll
  for (int i = 0; i < wide; i++)
#pragma unroll
    for (int e = 0; e < N; e++) parts[warp * stepColumns + (i * 32 + lane) * N + e] = sums[i][e];
  if (lane == 0) peaks[warp] = peak, totals[warp] = total;
  __syncthreads();
  if (c >= headDim) return;
  float highest = -INFINITY, all = 0, sum = 0;
  for (int w = 0; w < stepWarps; w++) highest = fmaxf(highest, peaks[w]);
  for (int w = 0; w < stepWarps; w++) {
    float fall = peaks[w] == highest ? 1 : exp2f((peaks[w] - highest) * log2OfE);
    all += totals[w] * fall;
    sum += parts[w * stepColumns + static_cast<int>(threadIdx.x)] * fall;
  }
  static_cast<T*>(problem.out)[queryAt + c] = rounded<T>(sum / all);
}

}  // namespace

// ---- launcher -------------------------------------------------------------------------------------------------------

void CudaBackend::attentionStep(Tensor q, Tensor k, Tensor v, Tensor keys, Tensor values, Tensor out, int64_t headDim,
                                int64_t position, double scale, int64_t window, double softCap) {
  if (q.size() == 0) return;
  int64_t sequences = q.rows(), heads = q.columns() / headDim;
  StepProblem problem;
  problem.q = q.as<void>(), problem.k = k.as<void>(), problem.v = v.as<void>(), problem.out = out.as<void>();
  problem.keys = keys.as<void>(), problem.values = values.as<void>();
  problem.length = keys.rows() / sequences, problem.position = position;
  problem.first = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
  problem.headDim = static_cast<int>(headDim), problem.heads = static_cast<int>(heads);
  problem.group = static_cast<int>(q.columns() / k.columns());
  problem.scale = static_cast<float>(scale), problem.softCap = static_cast<float>(softCap);
  dispatch(q.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    bool fit = rowsAligned<4>(headDim, q.as<const T>(), k.as<const T>(), v.as<const T>(), keys.as<const T>(),
                              values.as<const T>());
    withVectors<4>(fit, [&](auto width) {
      launch(queue(), attentionStepKernel<T, decltype(width)::value>,
             {sequences * heads, (headDim + stepColumns - 1) / stepColumns}, stepWarps * 32, 0, problem);
    });
  });
}

}  // namespace alps
