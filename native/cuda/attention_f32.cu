// Purpose: attention with products in float32 (not TF32), and in bfloat16 for heads too wide for tensor cores' tiles.
//
// A block takes 64 queries of one head, and walks over the keys they see, 64 at a time; a thread has 8 × 4 of the
// scores and 8 rows of the sums. Queries and keys pass through shared memory 32 dimensions at a time, so heads may have
// any number of them; values pass some keys at a time. Four terms of a sum are read at once (16 bytes), for each of 12
// rows: half as many cycles of shared memory as of arithmetic.
#include "cuda/attention.h"
#include "cuda/mma.h"

namespace alps {

namespace {

// ---- kernel --------------------------------------------------------------------------------------------------------

constexpr int threads = 128, queries = 64, keys = 64;
constexpr int depth = 32;          // dimensions of queries and keys at a time
constexpr int stride = depth + 4;  // rows of queries and keys: eight of them in eight sets of banks
constexpr int weightStride = keys + 4;
constexpr int stageSize = (queries + keys) * stride;

// rows × width elements to shared memory; zeros past `count` rows and `headDim` columns. There after waitForCopies()
// and a barrier.
template <typename T, int rows, int width, int toStride>
__device__ inline void loadStage(float* to, const T* from, int64_t fromStride, int count, int headDim, bool aligned) {
  constexpr int fours = width / 4, step = threads / fours;
  int row = static_cast<int>(threadIdx.x) / fours, column = static_cast<int>(threadIdx.x) % fours * 4;
  to += row * toStride + column;
  if constexpr (sizeof(T) == 4)
    if (aligned) {
      if (column >= headDim) count = 0;
      const T* at = from + row * fromStride + column;
#pragma unroll
      for (int i = 0; i < rows / step; i++) {
        bool valid = row + i * step < count;
        copyAsync(to + i * step * toStride, valid ? at : from, valid);
        at += step * fromStride;
      }
      return;
    }
#pragma unroll 1
  for (; row < rows; row += step, to += step * toStride)
#pragma unroll
    for (int j = 0; j < 4; j++)
      to[j] = row < count && column + j < headDim ? floatOf(from[row * fromStride + column + j]) : 0;
}

__device__ inline float4 four(const float* shared) { return *reinterpret_cast<const float4*>(shared); }

__device__ inline float dot(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// columns: of the output that a block makes, from blockIdx.y * columns on. Scores are made anew for each.
template <typename T, int columns>
__global__ void __launch_bounds__(threads, columns <= 128 ? 3 : 2) attentionF32Kernel(AttentionProblem problem) {
  constexpr int wide = columns / 64;         // groups of 4 columns a thread
  constexpr int valueKeys = 4096 / columns;  // at a time
  static_assert(valueKeys * columns <= stageSize);
  SHARED(float, stage, stageSize);  // queries and keys, or values [valueKeys, columns]
  SHARED(float, weights, queries* weightStride);
  float* keyStage = stage + queries * stride;

  AttentionPlace place = placeOf(problem, blockIdx.x, queries);
  // A thread has queries y, y + 8, ..., keys x, x + 16, ... and columns 4x .. 4x + 3, 4x + 64 .., ...
  int x = static_cast<int>(threadIdx.x % 16), y = static_cast<int>(threadIdx.x / 16);
  int headDim = problem.headDim, firstColumn = static_cast<int>(blockIdx.y) * columns;
  int64_t queryAt = (place.token + place.begin) * problem.queryStride + int64_t{place.head} * headDim;
  int64_t keyAt = place.token * problem.keyStride + int64_t{place.head / problem.group} * headDim;
  const T* q = static_cast<const T*>(problem.q) + queryAt;
  int count = place.end - place.begin;

  float sums[8][wide][4] = {};  // Σ exp(score − peak) v
  float peak[8], total[8];
#pragma unroll
  for (int i = 0; i < 8; i++) peak[i] = -INFINITY, total[i] = 0;

  for (int first = firstKey(problem, place.begin); first < place.end; first += keys) {
    const T* k = static_cast<const T*>(problem.k) + keyAt + first * problem.keyStride;
    const T* v = static_cast<const T*>(problem.v) + keyAt + first * problem.keyStride;
    float scores[8][4] = {};
    for (int d = 0; d < headDim; d += depth) {
      __syncthreads();
      loadStage<T, queries, depth, stride>(stage, q + d, problem.queryStride, count, headDim - d, problem.aligned);
      loadStage<T, keys, depth, stride>(keyStage, k + d, problem.keyStride, place.end - first, headDim - d,
                                        problem.aligned);
      waitForCopies();
      __syncthreads();
#pragma unroll 1
      for (int e = 0; e < depth; e += 4) {
        float4 b[4];
#pragma unroll
        for (int j = 0; j < 4; j++) b[j] = four(keyStage + (x + 16 * j) * stride + e);
#pragma unroll
        for (int i = 0; i < 8; i++) {
          float4 a = four(stage + (y + 8 * i) * stride + e);
#pragma unroll
          for (int j = 0; j < 4; j++) scores[i][j] = dot(a, b[j], scores[i][j]);
        }
      }
    }

#pragma unroll
    for (int i = 0; i < 8; i++) {
      float highest = peak[i];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float score = scores[i][j] * problem.scale;
        if (problem.softCap > 0) score = problem.softCap * tanhf(score / problem.softCap);
        scores[i][j] = sees(problem, place.begin + y + 8 * i, first + x + 16 * j) ? score : -INFINITY;
        highest = fmaxf(highest, scores[i][j]);
      }
#pragma unroll
      for (int by = 8; by > 0; by /= 2) highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, by));
      float shift = highest == -INFINITY ? 0 : highest;  // no key seen yet: exp(−∞ − 0)
      float fall = highest == peak[i] ? 1 : exp2f((peak[i] - shift) * log2OfE);
      peak[i] = highest;
      total[i] *= fall;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float weight = exp2f((scores[i][j] - shift) * log2OfE);
        total[i] += weight;
        weights[(y + 8 * i) * weightStride + x + 16 * j] = floatOf(rounded<T>(weight));
      }
#pragma unroll
      for (int c = 0; c < wide; c++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][c][j] *= fall;
    }

#pragma unroll 1
    for (int part = 0; part < keys && first + part < place.end; part += valueKeys) {
      __syncthreads();
      loadStage<T, valueKeys, columns, columns>(stage, v + part * problem.keyStride + firstColumn, problem.keyStride,
                                                place.end - first - part, headDim - firstColumn, problem.aligned);
      waitForCopies();
      __syncthreads();
#pragma unroll 1
      for (int e = 0; e < valueKeys; e += 4) {
        float4 a[8];
#pragma unroll
        for (int i = 0; i < 8; i++) a[i] = four(weights + (y + 8 * i) * weightStride + part + e);
#pragma unroll
        for (int l = 0; l < 4; l++)
#pragma unroll
          for (int c = 0; c < wide; c++) {
            float4 b = four(stage + (e + l) * columns + 64 * c + 4 * x);
#pragma unroll
            for (int i = 0; i < 8; i++) {
              float weight = l == 0 ? a[i].x : l == 1 ? a[i].y : l == 2 ? a[i].z : a[i].w;
              float(&sum)[4] = sums[i][c];
              sum[0] = fmaf(weight, b.x, sum[0]), sum[1] = fmaf(weight, b.y, sum[1]);
              sum[2] = fmaf(weight, b.z, sum[2]), sum[3] = fmaf(weight, b.w, sum[3]);
            }
          }
      }
    }
  }

  T* out = static_cast<T*>(problem.out) + queryAt + firstColumn;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    float all = total[i];
#pragma unroll
    for (int by = 8; by > 0; by /= 2) all += __shfl_xor_sync(0xffffffffu, all, by);
    if (y + 8 * i >= count) continue;
    float inverse = 1 / all;
    T* row = out + (y + 8 * i) * problem.queryStride;
#pragma unroll
    for (int c = 0; c < wide; c++)
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (firstColumn + 64 * c + 4 * x + j < headDim) row[64 * c + 4 * x + j] = rounded<T>(sums[i][c][j] * inverse);
  }
}

}  // namespace

// ---- launcher ------------------------------------------------------------------------------------------------------

template <typename T>
void attentionInFloat32(Queue queue, const AttentionProblem& problem) {
  int64_t blocks = attentionBlocks(problem, queries), all = (problem.headDim + 255) / 256;
  if constexpr (sizeof(T) == 4) {  // the tensor cores have bfloat16 up to 256
    if (problem.headDim <= 64) return launch(queue, attentionF32Kernel<T, 64>, {blocks}, threads, 0, problem);
    if (problem.headDim <= 128) return launch(queue, attentionF32Kernel<T, 128>, {blocks}, threads, 0, problem);
  }
  launch(queue, attentionF32Kernel<T, 256>, {blocks, all}, threads, 0, problem);
}

template void attentionInFloat32<float>(Queue, const AttentionProblem&);
template void attentionInFloat32<bf16_t>(Queue, const AttentionProblem&);

}  // namespace alps
