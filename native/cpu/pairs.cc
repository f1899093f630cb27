#include "cpu/pairs.h"

#include <utility>

#include "cpu/cpu_backend.h"

namespace alps {

void multiplyPairs(const ProductKernels& kernels, const LeftPairs& left, int64_t row, int64_t rows, RightPairs right,
                   int64_t columns, int64_t k, float alpha, float beta, float* c, int64_t ldc) {
  // A packed factor has a zero behind an odd k. One that is read in place has what follows: its last number is taken
  // alone.
  int64_t whole = left.packed ? pairsOf(k) : k / 2, pairs = pairsOf(k);
  for (int64_t first = 0; first < pairs; first += pairsTogether) {
    int64_t count = std::min(pairsTogether, whole - first);
    bool endsAlone = first + count == whole && whole < pairs;
    float keep = first == 0 ? beta : 1.0f;
    for (int64_t j = 0; j < columns; j += right.width) {
      const uint32_t* panel = right.at(j, first);
      int64_t width = std::min(right.width, columns - j);
      for (int64_t i = 0, height; i < rows; i += height) {
        int64_t at = row + i;
        float* out = c + i * ldc + j;
        if (left.packed) {
          height = std::min({pairRows(width), rows - i, pairColumns - at % pairColumns});
          const uint32_t* a = left.packed + (at / pairColumns * left.pairs + first) * pairColumns + at % pairColumns;
          kernels.pairs(height, width, count, a, sizeof *a, pairColumns * sizeof *a, panel, right.width, alpha, keep,
                        out, ldc);
          continue;
        }
        height = std::min(pairRows(width), rows - i);
        const bf16_t* a = left.rows + at * left.ld + 2 * first;
        if (count > 0)
          kernels.pairs(height, width, count, a, left.ld * static_cast<int64_t>(sizeof *a), 4, panel, right.width,
                        alpha, keep, out, ldc);
        if (!endsAlone) continue;
        uint32_t ends[pairRows(1)];
        for (int64_t r = 0; r < height; r++) ends[r] = left.rows[(at + r) * left.ld + k - 1].bits;
        kernels.pairs(height, width, 1, ends, sizeof *ends, 0, panel + count * right.width, right.width, alpha,
                      count > 0 ? 1.0f : keep, out, ldc);
      }
    }
    if (endsAlone) break;
  }
}

void makeRoom(Lines<uint32_t>& packed, int64_t size) {
  if (packed.size() >= static_cast<size_t>(size)) return;
  Lines<uint32_t>().swap(packed);  // not copied
  packed.resize(static_cast<size_t>(size));
}

void dropLarge(Lines<uint32_t>& packed) {
  if (packed.size() * sizeof packed[0] > mostPacked) Lines<uint32_t>().swap(packed);
}

namespace {

// Few and large enough to read packed pairs seldom, many enough for many threads.
int64_t tileFor(int64_t m, int64_t n) { return m * n < 8 * 192 * 8 * 192 ? 96 : 192; }

// Rows of k that are packed at a time for a product with so many columns.
int64_t depthFor(int64_t columns) {
  int64_t step = 2 * pairsTogether;
  return std::max(step, mostPacked / 2 / columns / step * step);
}

}  // namespace

// The columns of x [k, columns], or of x − minus, in panels, into one of the backend's buffers.
void CpuBackend::packColumns(const bf16_t* x, const bf16_t* minus, int64_t columns, int64_t k,
                             Lines<uint32_t>& packed) {
  makeRoom(packed, packedSize(columns, k));
  pool_.run(panelsOf(columns), [&](int64_t panel) {
    int64_t j = panel * pairColumns;
    products_->packColumns(x + j, minus ? minus + j : nullptr, columns, k, std::min(pairColumns, columns - j),
                           packed.data() + panel * pairsOf(k) * pairColumns, pairColumns);
  });
}

// out [m, n] = alpha aᵀ b + beta out for a [k, m] and b [k, n].
void CpuBackend::pairProduct(const Tensor& a, const Tensor& b, const Tensor& out, float alpha, float beta) {
  int64_t k = a.dim(0), m = a.dim(1), n = b.dim(1), tile = tileFor(m, n), depth = depthFor(m + n);
  int64_t down = (m + tile - 1) / tile, across = (n + tile - 1) / tile;
  for (int64_t l = 0; l < k; l += depth) {
    int64_t length = std::min(depth, k - l), pairs = pairsOf(length);
    packColumns(b.as<bf16_t>() + l * n, nullptr, n, length, rightPairs_);
    packColumns(a.as<bf16_t>() + l * m, nullptr, m, length, leftPairs_);
    LeftPairs left{nullptr, 0, leftPairs_.data(), pairs};
    RightPairs right{rightPairs_.data(), pairs};
    pool_.run(down * across, [&](int64_t task) {
      int64_t i = task / across * tile, j = task % across * tile;
      multiplyPairs(*products_, left, i, std::min(tile, m - i), {right.at(j, 0), pairs}, std::min(tile, n - j), length,
                    alpha, l == 0 ? beta : 1, out.as() + i * n + j, n);
    });
  }
  dropLarge(leftPairs_), dropLarge(rightPairs_);
}

// gram [n, n] += xᵀ x, or (x − minus)ᵀ (x − minus), the upper triangle: of tiles on the diagonal little of what lies
// below it.
void CpuBackend::pairGram(const Tensor& x, const bf16_t* minus, const Tensor& gram) {
  constexpr int64_t narrow = pairColumns / 3;  // columns of one vector
  int64_t k = x.dim(0), n = x.dim(1), tile = tileFor(n, n), depth = depthFor(n);
  std::vector<std::pair<int64_t, int64_t>> tiles;  // those on the diagonal last, they take less time
  for (int64_t i = 0; i < n; i += tile)
    for (int64_t j = i + tile; j < n; j += tile) tiles.emplace_back(i, j);
  for (int64_t i = 0; i < n; i += tile) tiles.emplace_back(i, i);
  for (int64_t l = 0; l < k; l += depth) {
    int64_t length = std::min(depth, k - l), pairs = pairsOf(length);
    packColumns(x.as<bf16_t>() + l * n, minus ? minus + l * n : nullptr, n, length, rightPairs_);
    LeftPairs left{nullptr, 0, rightPairs_.data(), pairs};
    RightPairs right{rightPairs_.data(), pairs};
    auto multiply = [&](int64_t i, int64_t rows, int64_t j, int64_t columns) {
      if (rows > 0)
        multiplyPairs(*products_, left, i, rows, {right.at(j, 0), pairs}, columns, length, 1, 1, gram.as() + i * n + j,
                      n);
    };
    pool_.run(static_cast<int64_t>(tiles.size()), [&](int64_t task) {
      auto [i, j] = tiles[static_cast<size_t>(task)];
      int64_t end = std::min(j + tile, n);
      if (i != j) return multiply(i, tile, j, end - j);
      for (int64_t panel = j; panel < end; panel += pairColumns) {
        int64_t width = std::min(pairColumns, end - panel);
        multiply(i, panel - i, panel, width);
        for (int64_t c = 0; c < width; c += narrow)
          multiply(panel + c, std::min(narrow, width - c), panel + c, width - c);
      }
    });
  }
  dropLarge(rightPairs_);
}

}  // namespace alps
