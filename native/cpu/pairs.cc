#include "cpu/pairs.h"

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
    for (int64_t j = 0; j < columns; j += pairColumns) {
      const uint32_t* panel = right.at(j, first);
      int64_t width = std::min(pairColumns, columns - j);
      for (int64_t i = 0, height; i < rows; i += height) {
        int64_t at = row + i;
        float* out = c + i * ldc + j;
        if (left.packed) {
          height = std::min({pairRows, rows - i, pairColumns - at % pairColumns});
          const uint32_t* a = left.packed + (at / pairColumns * left.pairs + first) * pairColumns + at % pairColumns;
          kernels.pairs(height, width, count, a, sizeof *a, pairColumns * sizeof *a, panel, alpha, keep, out, ldc);
          continue;
        }
        height = std::min(pairRows, rows - i);
        const bf16_t* a = left.rows + at * left.ld + 2 * first;
        if (count > 0)
          kernels.pairs(height, width, count, a, left.ld * static_cast<int64_t>(sizeof *a), 4, panel, alpha, keep, out,
                        ldc);
        if (!endsAlone) continue;
        uint32_t ends[pairRows];
        for (int64_t r = 0; r < height; r++) ends[r] = left.rows[(at + r) * left.ld + k - 1].bits;
        kernels.pairs(height, width, 1, ends, sizeof *ends, 0, panel + count * pairColumns, alpha,
                      count > 0 ? 1.0f : keep, out, ldc);
      }
    }
    if (endsAlone) break;
  }
}

void makeRoom(std::vector<uint32_t>& packed, int64_t size) {
  if (packed.size() >= static_cast<size_t>(size)) return;
  packed = {};  // not copied
  packed.resize(static_cast<size_t>(size));
}

void dropLarge(std::vector<uint32_t>& packed) {
  if (packed.size() * sizeof packed[0] > mostPacked) packed = {};
}

namespace {

// A tile of a product, [rows, columns] from row i and column j on.
struct Tile {
  int64_t i, j, rows, columns;
};

// Few and large enough to read packed pairs seldom, many enough for many threads.
int64_t tileFor(int64_t m, int64_t n) { return m * n < 8 * 192 * 8 * 192 ? 96 : 192; }

}  // namespace

// The columns of x [k, columns] in panels, into one of the backend's buffers.
void CpuBackend::packColumns(const bf16_t* x, int64_t columns, int64_t k, std::vector<uint32_t>& packed) {
  makeRoom(packed, packedSize(columns, k));
  pool_.run(panelsOf(columns), [&](int64_t panel) {
    int64_t j = panel * pairColumns;
    products_->packColumns(x + j, columns, k, std::min(pairColumns, columns - j),
                           packed.data() + panel * pairsOf(k) * pairColumns);
  });
}

// out [m, n] = alpha aᵀ b + beta out for a [k, m] and b [k, n]; `symmetric`: a is b, and of each tile of rows only the
// columns from its own on count.
void CpuBackend::pairProduct(const Tensor& a, const Tensor& b, const Tensor& out, bool symmetric, float alpha,
                             float beta) {
  int64_t k = a.dim(0), m = a.dim(1), n = b.dim(1), tile = tileFor(m, n);
  std::vector<Tile> tiles;
  for (int64_t i = 0; i < m; i += tile)
    for (int64_t j = symmetric ? i : 0; j < n; j += tile)
      tiles.push_back({i, j, std::min(tile, m - i), std::min(tile, n - j)});
  // Half of a tile on the diagonal is left out: these come last.
  std::stable_partition(tiles.begin(), tiles.end(), [&](const Tile& t) { return !symmetric || t.i != t.j; });
  int64_t step = 2 * pairsTogether;
  int64_t depth = std::max(step, mostPacked / 2 / (symmetric ? n : m + n) / step * step);  // of k at a time
  for (int64_t l = 0; l < k; l += depth) {
    int64_t length = std::min(depth, k - l);
    float keep = l == 0 ? beta : 1.0f;
    packColumns(b.as<bf16_t>() + l * n, n, length, rightPairs_);
    if (!symmetric) packColumns(a.as<bf16_t>() + l * m, m, length, leftPairs_);
    LeftPairs left{nullptr, 0, (symmetric ? rightPairs_ : leftPairs_).data(), pairsOf(length)};
    RightPairs right{rightPairs_.data(), pairsOf(length)};
    pool_.run(static_cast<int64_t>(tiles.size()), [&](int64_t task) {
      auto [i, j, rows, columns] = tiles[static_cast<size_t>(task)];
      bool half = symmetric && i == j;  // panel by panel, the rows above its end
      for (int64_t c = 0, width; c < columns; c += width) {
        width = half ? std::min(pairColumns, columns - c) : columns;
        multiplyPairs(*products_, left, i, half ? std::min(rows, c + width) : rows, {right.at(j + c, 0), right.pairs},
                      width, length, alpha, keep, out.as() + i * n + j + c, n);
      }
    });
  }
  dropLarge(leftPairs_), dropLarge(rightPairs_);
}

}  // namespace alps
