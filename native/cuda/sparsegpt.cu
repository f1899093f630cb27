// Purpose: SparseGPT's sweep (Frantar and Alistarh, ICML 2023, algorithm 1). A warp sweeps a row of at most 128 columns
// in registers; what these leave to the columns after them is one product.
#include <algorithm>
#include <cmath>

#include "cuda/cuda_backend.h"

namespace alps {

namespace {

constexpr int sweepWidth = 128;  // columns of a sweep
constexpr int perLane = sweepWidth / 32;
constexpr int sweepThreads = 256, sweepWarps = sweepThreads / 32;

// ---- kernels -------------------------------------------------------------------------------------------------------

// upper [sweepWidth, sweepWidth] := the rows start ... start + width of Lᵀ, from the diagonal on; zeros elsewhere.
__global__ void upperKernel(const float* l, int64_t n, int64_t start, int width, float* upper) {
  int step = static_cast<int>(gridDim.x * blockDim.x);
  for (int at = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); at < sweepWidth * sweepWidth; at += step) {
    int column = at / sweepWidth, row = at % sweepWidth;
    bool inside = row <= column && column < width;
    upper[row * sweepWidth + column] = inside ? l[(start + column) * n + start + row] : 0.0f;
  }
}

// The root of what it costs to prune a weight, up to its sign: the square may not be a number of float32.
__device__ inline float scoreOf(float weight, float pivot) { return weight / pivot; }

// scores [m, width] of the columns from start on. A warp a row.
__global__ void scoreKernel(const float* weight, const float* l, int64_t m, int64_t n, int64_t start, int64_t width,
                            float* scores) {
  int64_t warps = int64_t{gridDim.x} * (blockDim.x / 32);
  for (int64_t r = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32; r < m; r += warps)
    for (int64_t j = threadIdx.x % 32; j < width; j += 32)
      scores[r * width + j] = scoreOf(weight[r * n + start + j], l[(start + j) * (n + 1)]);
}

// One warp: in the group of columns first ... first + pattern.group, whose numbers the lanes hold, marks the
// pattern.kept highest scores, ties to the lower column. `kept` has a bit for each of a lane's columns; bits
// [sweepWidth] is scratch.
__device__ inline void chooseGroup(const float (&x)[perLane], const float* upper, int first, Pattern pattern,
                                   uint32_t* bits, uint32_t& kept) {
  int lane = static_cast<int>(threadIdx.x) % 32, end = first + static_cast<int>(pattern.group);
#pragma unroll
  for (int p = 0; p < perLane; p++) {
    int column = lane + 32 * p;
    if (column >= first && column < end)
      bits[column] = __float_as_uint(scoreOf(x[p], upper[column * (sweepWidth + 1)])) & 0x7fffffff;
  }
  __syncwarp();
#pragma unroll
  for (int p = 0; p < perLane; p++) {
    int column = lane + 32 * p, rank = 0;
    if (column < first || column >= end) continue;
    for (int other = first; other < end; other++)
      rank += bits[other] > bits[column] || (bits[other] == bits[column] && other < column);
    if (rank < pattern.kept) kept |= 1u << p;
  }
  __syncwarp();
}

// Columns start ... start + width of weight and mask [m, n], and errors [m, sweepWidth]: what each pruned weight
// leaves. Without groups, `chosen` (rows of chosenLd bytes) says which weights stay.
template <bool groups>
__global__ void __launch_bounds__(sweepThreads, 4)
    sweepKernel(float* weight, int64_t m, int64_t n, int64_t start, int width, const float* upper,
                const uint8_t* chosen, int64_t chosenLd, Pattern pattern, uint8_t* mask, float* errors) {
  SHARED(uint32_t, memory, groups ? sweepWarps * sweepWidth : 1);
  int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int group = static_cast<int>(pattern.group);
  for (int64_t r = int64_t{blockIdx.x} * sweepWarps + warp; r < m; r += int64_t{gridDim.x} * sweepWarps) {
    float* row = weight + r * n + start;
    float x[perLane], error[perLane];
    uint32_t kept = 0;  // bit p: column lane + 32 p
#pragma unroll
    for (int p = 0; p < perLane; p++) {
      int column = lane + 32 * p;
      x[p] = column < width ? row[column] : 0.0f;
      error[p] = 0;
      if (!groups && column < width && chosen[r * chosenLd + column]) kept |= 1u << p;
    }
#pragma unroll
    for (int q = 0; q < perLane; q++) {
      for (int t = 0; t < 32 && 32 * q + t < width; t++) {
        int i = 32 * q + t;
        if (groups && i % group == 0) chooseGroup(x, upper, i, pattern, memory + warp * sweepWidth, kept);
        const float* u = upper + i * sweepWidth;
        float value = __shfl_sync(0xffffffffu, x[q], t), pivot = u[i];
        bool stays = __shfl_sync(0xffffffffu, kept, t) >> q & 1;
        float left = stays ? 0.0f : value / pivot;
        if (lane == t) error[q] = left;
        if (left == 0) continue;
        if (lane >= t) x[q] -= left * u[32 * q + lane];
#pragma unroll
        for (int p = q + 1; p < perLane; p++) x[p] -= left * u[32 * p + lane];
      }
    }
#pragma unroll
    for (int p = 0; p < perLane; p++) {
      int column = lane + 32 * p;
      if (column >= width) continue;
      uint8_t stays = kept >> p & 1;
      row[column] = stays ? x[p] : 0.0f;
      mask[r * n + start + column] = stays;
      errors[r * sweepWidth + column] = error[p];
    }
  }
}

// ---- selection -----------------------------------------------------------------------------------------------------

// Weights of a segment that stay in the columns before `column`; the whole is exact.
uint64_t shareBefore(uint64_t keep, int64_t column, int64_t columns) {
  return static_cast<uint64_t>(
      std::llround(static_cast<double>(keep) * static_cast<double>(column) / static_cast<double>(columns)));
}

// Scratch memory as a tensor.
template <typename T>
Tensor asTensor(Scratch<T> memory, DType dtype, int64_t rows, int64_t columns) {
  class ScratchStorage final : public Storage {
   public:
    ScratchStorage(Scratch<T> memory, size_t bytes) : memory_(std::move(memory)), bytes_(bytes) {}
    void* data() override { return memory_.data(); }
    size_t bytes() const override { return bytes_; }

   private:
    Scratch<T> memory_;
    size_t bytes_;
  };
  size_t bytes = static_cast<size_t>(rows * columns) * sizeof(T);
  return {std::make_shared<ScratchStorage>(std::move(memory), bytes), 0, dtype, {rows, columns}};
}

}  // namespace

// ---- launchers -----------------------------------------------------------------------------------------------------

void CudaBackend::sparseGpt(Tensor weight, Tensor factor, Tensor mask, Pattern pattern, Counts rowEnds, Counts keep,
                            int64_t block) {
  int64_t m = weight.dim(0), n = weight.dim(1);
  if (m == 0 || n == 0) return;
  float *w = weight.as(), *l = factor.as();
  // Columns whose mask is known at once: a block; a group that is wider than a sweep. The narrow groups of a sweep are
  // chosen on the way.
  bool onTheWay = pattern.group > 0 && pattern.group <= sweepWidth;
  int64_t span = pattern.group == 0 ? std::min(block, n) : pattern.group;
  if (onTheWay) span = std::min(block, sweepWidth / pattern.group * pattern.group);
  auto upper = scratch<float>(sweepWidth * sweepWidth), errors = scratch<float>(m * sweepWidth);
  // Warps take several rows where there are many: the rows of Lᵀ then stay in the multiprocessors' own caches.
  Grid rows{std::min<int64_t>((m + sweepWarps - 1) / sweepWarps, int64_t{runtime_->properties().multiprocessors} * 8)};
  for (int64_t start = 0; start < n; start += span) {
    throwIfCancelled();
    int64_t columns = std::min(span, n - start);
    Tensor chosen;
    if (!onTheWay) {
      Tensor scores = asTensor(scratch<float>(m * columns), DType::f32, m, columns);
      chosen = asTensor(scratch<uint8_t>(m * columns), DType::u8, m, columns);
      launch(queue(), scoreKernel, rows, sweepThreads, 0, w, l, m, n, start, columns, scores.as());
      Counts budget;
      for (uint64_t k : keep) budget.push_back(shareBefore(k, start + columns, n) - shareBefore(k, start, n));
      project(scores, chosen, pattern, rowEnds, budget);
    }
    for (int64_t at = 0; at < columns; at += sweepWidth) {
      int64_t column = start + at, width = std::min<int64_t>(sweepWidth, columns - at), end = column + width;
      launch(queue(), upperKernel, blocksFor(sweepWidth * sweepWidth), blockSize_, 0, l, n, column, width,
             upper.data());
      const uint8_t* stay = onTheWay ? nullptr : chosen.as<uint8_t>() + at;
      launch(queue(), onTheWay ? sweepKernel<true> : sweepKernel<false>, rows, sweepThreads, 0, w, m, n, column, width,
             upper.data(), stay, columns, pattern, mask.as<uint8_t>(), errors.data());
      // The columns after it: W −= errors · Lᵀ[these, after].
      if (end < n)
        products_->f32(m, n - end, width, -1, {errors, sweepWidth}, {l + end * n + column, n, true}, 1, w + end,
                       /* ldc = */ n);
    }
  }
}

}  // namespace alps
