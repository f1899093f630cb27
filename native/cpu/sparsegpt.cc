// SparseGPT's sweep (Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
// ICML 2023, algorithm 1). In a block of columns each row is swept by itself while it is in cache; what the block
// leaves to the columns after it is one product.
#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "core/stream.h"
#include "cpu/cpu_backend.h"
#include "cpu/select.h"
#include "cpu/sgemm.h"

namespace alps {

namespace {

constexpr int64_t rowsPerTask = 32, columnsPerTile = 512;

// Weights of a segment that stay in the columns before `column`; the whole is exact.
uint64_t shareBefore(uint64_t keep, int64_t column, int64_t columns) {
  return static_cast<uint64_t>(
      std::llround(static_cast<double>(keep) * static_cast<double>(column) / static_cast<double>(columns)));
}

constexpr int64_t smallGroup = 8;

// The mask of one small group, as the kernels' groupMask has it: those work on many groups at a time.
void chooseFew(const float* scores, uint8_t* mask, int64_t group, int64_t kept) {
  uint32_t bits[smallGroup];
  for (int64_t i = 0; i < group; i++) bits[i] = std::bit_cast<uint32_t>(scores[i]) & 0x7fffffff;
  for (int64_t i = 0; i < group; i++) {
    int64_t rank = 0;
    for (int64_t j = 0; j < i; j++) rank += bits[j] >= bits[i];
    for (int64_t j = i + 1; j < group; j++) rank += bits[j] > bits[i];
    mask[i] = rank < kept;
  }
}

}  // namespace

void CpuBackend::sparseGpt(Tensor weight, Tensor factor, Tensor mask, Pattern pattern, Counts rowEnds, Counts keep,
                           int64_t block) {
  int64_t m = weight.dim(0), n = weight.dim(1);
  if (m == 0 || n == 0) return;
  float* w = weight.as();
  const float* l = factor.as();
  block = std::min(block, n);
  std::vector<float> upper(static_cast<size_t>(block * block));  // the block's rows of Lᵀ
  std::vector<float> scores(static_cast<size_t>(m * block));     // weight² / L[j, j]², [m, width]
  std::vector<uint8_t> kept(scores.size());                      // their mask
  std::vector<float> errors(scores.size());                      // what each pruned weight leaves, [m, width]
  for (int64_t start = 0; start < n; start += block) {
    throwIfCancelled();
    int64_t width = std::min(block, n - start), end = start + width;
    for (int64_t i = 0; i < width; i++)
      for (int64_t j = 0; j < width; j++)
        upper[static_cast<size_t>(i * width + j)] = j >= i ? l[(start + j) * n + start + i] : 0.0f;
    auto score = [&](float value, int64_t i) {
      float ratio = value / upper[static_cast<size_t>(i * width + i)];
      return ratio * ratio;
    };
    if (pattern.group == 0) {
      pool_.ranges(m, rowsPerTask, [&](int64_t begin, int64_t last) {
        for (int64_t r = begin; r < last; r++)
          for (int64_t i = 0; i < width; i++)
            scores[static_cast<size_t>(r * width + i)] = score(w[r * n + start + i], i);
      });
      Counts budget;
      for (uint64_t k : keep) budget.push_back(shareBefore(k, end, n) - shareBefore(k, start, n));
      SelectionLoops loops;
      loops.sample = [&](int64_t at, int64_t count, float* out) { std::copy_n(scores.data() + at, count, out); };
      loops.use = [&](int64_t at, int64_t count, int32_t above) {
        kernels_.pruning.maskAbove(scores.data() + at, kept.data() + at, above, static_cast<size_t>(count));
      };
      selectTop(pool_, kernels_.pruning, scores.data(), width, rowEnds, budget, loops);
    }
    pool_.ranges(m, rowsPerTask, [&](int64_t begin, int64_t last) {
      for (int64_t r = begin; r < last; r++) {
        float *row = w + r * n + start, *error = errors.data() + r * width, *rowScores = scores.data() + r * width;
        uint8_t* rowKept = kept.data() + r * width;
        for (int64_t i = 0; i < width; i++) {
          if (pattern.group > 0 && i % pattern.group == 0) {
            for (int64_t j = i; j < i + pattern.group; j++) rowScores[j] = score(row[j], j);
            if (pattern.group <= smallGroup)
              chooseFew(rowScores + i, rowKept + i, pattern.group, pattern.kept);
            else
              kernels_.pruning.groupMask(rowScores + i, rowKept + i, static_cast<size_t>(pattern.group), pattern.kept,
                                         pattern.group);
          }
          const float* u = upper.data() + i * width;
          error[i] = rowKept[i] ? 0.0f : row[i] / u[i];
          if (error[i] != 0) kernels_.axpby(u + i, row + i, -error[i], 1, static_cast<size_t>(width - i));
        }
        for (int64_t i = 0; i < width; i++)
          if (!rowKept[i]) row[i] = 0;
        std::copy_n(rowKept, width, mask.as<uint8_t>() + r * n + start);
      }
    });
    // The columns after the block: W −= errors · Lᵀ[block, after].
    int64_t rest = n - end, across = (rest + columnsPerTile - 1) / columnsPerTile;
    constexpr int64_t rowTile = 128;
    int64_t down = (m + rowTile - 1) / rowTile;
    pool_.run(across * down, [&](int64_t task) {
      int64_t column = end + task / down * columnsPerTile, r = task % down * rowTile;
      sgemm(false, true, std::min(rowTile, m - r), std::min(columnsPerTile, n - column), width, -1,
            errors.data() + r * width, /* lda = */ width, l + column * n + start, /* ldb = */ n, 1, w + r * n + column,
            /* ldc = */ n);
    });
  }
}

}  // namespace alps
