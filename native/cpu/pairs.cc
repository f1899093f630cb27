#include "cpu/pairs.h"

#include "cpu/cpu_backend.h"

namespace alps {

void multiplyPairs(const ProductKernels& kernels, const LeftPairs& left, int64_t row, int64_t rows, RightPairs right,
                   int64_t columns, int64_t k, const PairOutput& out) {
  // A packed factor has a zero behind an odd k. Behind one that is read in place is what follows: its last number is
  // taken alone.
  int64_t whole = left.packed || left.padded ? pairsOf(k) : k / 2, pairs = pairsOf(k);
  for (int64_t first = 0; first < pairs; first += pairsTogether) {
    int64_t count = std::min(pairsTogether, whole - first);
    bool endsAlone = first + count == whole && whole < pairs;
    for (int64_t j = 0; j < columns; j += right.width) {
      const uint32_t* panel = right.at(j, first);
      int64_t width = std::min(right.width, columns - j);
      for (int64_t i = 0, height; i < rows; i += height) {
        int64_t at = row + i;
        PairOutput block = out.at(i, j);
        if (first > 0) block.beta = 1;
        if (left.packed) {
          height = std::min({pairRows(width), rows - i, pairColumns - at % pairColumns});
          const uint32_t* a = left.packed + (at / pairColumns * left.pairs + first) * pairColumns + at % pairColumns;
          kernels.pairs(height, width, count, a, sizeof *a, pairColumns * sizeof *a, panel, right.width, block);
          continue;
        }
        height = std::min(pairRows(width), rows - i);
        const bf16_t* a = left.rows + at * left.ld + 2 * first;
        if (count > 0)
          kernels.pairs(height, width, count, a, left.ld * static_cast<int64_t>(sizeof *a), 4, panel, right.width,
                        block);
        if (!endsAlone) continue;
        uint32_t ends[pairRows(1)];
        for (int64_t r = 0; r < height; r++) ends[r] = left.rows[(at + r) * left.ld + k - 1].bits;
        if (count > 0) block.beta = 1;
        kernels.pairs(height, width, 1, ends, sizeof *ends, 0, panel + count * right.width, right.width, block);
      }
    }
    if (endsAlone) break;
  }
}

void dropLarge(Lines<uint32_t>& packed) {
  if (packed.size() * sizeof packed[0] > mostPacked) Lines<uint32_t>().swap(packed);
}

namespace {

// Numbers of a sum that are packed at a time for a product with so many columns.
int64_t depthFor(int64_t columns) {
  int64_t step = 2 * pairsTogether;
  return std::max(step, mostPacked / 2 / columns / step * step);
}

// Of a factor that are packed at a time.
constexpr int64_t mostNumbers = mostPacked / 2 / static_cast<int64_t>(sizeof(bf16_t));

// Rows so far apart share few sets of the first cache: eight that are read together drive one another out.
bool readsInPlace(int64_t ld) { return ld % 2 == 0 && ld % 1024 != 0; }

}  // namespace

// The columns of x [k, columns], or of x − minus, in panels, into one of the backend's buffers.
void CpuBackend::packColumns(const bf16_t* x, const bf16_t* minus, int64_t ld, int64_t columns, int64_t k,
                             Lines<uint32_t>& packed) {
  makeRoom(packed, packedSize(columns, k));
  pool_.ranges(k, 32, [&](int64_t l, int64_t end) {
    uint32_t* panels = packed.data() + l / 2 * pairColumns;
    int64_t rows = end - l, apart = pairsOf(k) * pairColumns;
    if (minus)
      products_->packDifferences(x + l * ld, minus + l * ld, ld, rows, columns, panels, pairColumns, apart);
    else
      products_->packColumns(x + l * ld, ld, rows, columns, panels, pairColumns, apart);
  });
}

// The rows of x [columns, k], turned, likewise.
void CpuBackend::packRows(const bf16_t* x, int64_t ld, int64_t columns, int64_t k, Lines<uint32_t>& packed) {
  int64_t pairs = pairsOf(k);
  bool liesInPairs = ld % 2 == 0 && k % 2 == 0 && reinterpret_cast<uintptr_t>(x) % sizeof(uint32_t) == 0;
  makeRoom(packed, packedSize(columns, k));
  pool_.run(panelsOf(columns), [&](int64_t task) {
    int64_t j = task * pairColumns, width = std::min(pairColumns, columns - j);
    uint32_t* panel = packed.data() + j * pairs;
    if (!liesInPairs) return products_->packRows(x + j * ld, ld, k, width, panel, pairColumns);
    // Pairs lie where a matrix of numbers of twice the size would have them.
    kernels_.factor.turn(reinterpret_cast<const float*>(x + j * ld), ld / 2, width, pairs,
                         reinterpret_cast<float*>(panel), pairColumns, false);
    if (width == pairColumns) return;
    for (int64_t p = 0; p < pairs; p++) std::fill(panel + p * pairColumns + width, panel + (p + 1) * pairColumns, 0u);
  });
}

// Rows of op(a), over k numbers from `from` on: where they are, or in one of the backend's buffers.
LeftPairs CpuBackend::leftFactor(const Tensor& a, bool transposed, int64_t row, int64_t rows, int64_t from, int64_t k) {
  int64_t ld = a.dim(1);
  if (transposed) {
    packColumns(a.as<bf16_t>() + from * ld + row, nullptr, ld, rows, k, leftPairs_);
    return {nullptr, 0, leftPairs_.data(), pairsOf(k)};
  }
  const bf16_t* x = a.as<bf16_t>() + row * ld + from;
  if (readsInPlace(ld)) return {x, ld, nullptr, 0};
  int64_t apart = (pairsOf(k) / 16 * 16 + 24) * 2;  // an odd number of half lines of the cache
  makeRoom(leftPairs_, rows * apart / 2);
  bf16_t* copy = reinterpret_cast<bf16_t*>(leftPairs_.data());
  pool_.ranges(rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      std::copy_n(x + i * ld, k, copy + i * apart);
      if (k % 2 != 0) copy[i * apart + k] = {0};
    }
  });
  return {copy, apart, nullptr, 0, true};
}

// Whether a product op(a) [rows, k] × [k, n] goes by own kernels.
bool CpuBackend::goesByPairs(const Tensor& a, int64_t rows, int64_t k) const {
  return products_ && a.dtype == DType::bf16 && rows >= enoughRows && k > 0;
}

// The same of a [rows, n] × [n, n], and neither factor is cut.
bool CpuBackend::packsWhole(const Tensor& a) const {
  int64_t rows = a.dim(0), n = a.dim(1);
  return goesByPairs(a, rows, n) && std::max(rows, n) * n <= mostNumbers;
}

// out [m, n] = alpha op(a) op(b) + beta out. Rows, columns and the sum are cut where what is packed of them would get
// large.
void CpuBackend::pairProduct(const Tensor& a, const Tensor& b, const Tensor& out, bool transposeA, bool transposeB,
                             float alpha, float beta) {
  int64_t m = out.dim(0), n = out.dim(1), k = a.dim(transposeA ? 0 : 1), ldb = b.dim(1);
  bool narrow = out.dtype == DType::bf16;
  int64_t depth = narrow ? k : std::min(k, depthFor(transposeA ? m + n : n));
  int64_t part = std::max(mostNumbers / std::max(depth, pairColumns) / pairColumns, int64_t{8}) * pairColumns;
  int64_t rowPart = !transposeA && readsInPlace(a.dim(1)) ? m : part;
  for (int64_t l = 0; l < k; l += depth) {
    int64_t length = std::min(depth, k - l);
    for (int64_t column = 0; column < n; column += part) {
      int64_t columns = std::min(part, n - column);
      if (transposeB)
        packRows(b.as<bf16_t>() + column * ldb + l, ldb, columns, length, rightPairs_);
      else
        packColumns(b.as<bf16_t>() + l * ldb + column, nullptr, ldb, columns, length, rightPairs_);
      for (int64_t row = 0; row < m; row += rowPart) {
        int64_t rows = std::min(rowPart, m - row), at = row * n + column;
        LeftPairs left = leftFactor(a, transposeA, row, rows, l, length);
        PairOutput to{nullptr, nullptr, n, alpha, l == 0 ? beta : 1};
        if (narrow)
          to.narrow = out.as<bf16_t>() + at;
        else
          to.wide = out.as() + at;
        pairTiles(left, rows, columns, length, to);
      }
    }
  }
  dropLarge(leftPairs_), dropLarge(rightPairs_);
}

// out [rows, columns] of the left factor and the packed right one.
void CpuBackend::pairTiles(const LeftPairs& left, int64_t rows, int64_t columns, int64_t k, const PairOutput& out) {
  int64_t pairs = pairsOf(k);
  forTiles(pool_, rows, columns, pairColumns, [&](int64_t i, int64_t j, int64_t tileRows, int64_t tileColumns) {
    RightPairs right{rightPairs_.data() + j * pairs, pairs};
    PairOutput tile = out.at(i, j);
    if (!tile.narrow || pairs <= pairsTogether)
      return multiplyPairs(*products_, left, i, tileRows, right, tileColumns, k, tile);
    thread_local Lines<float> sums;
    sums.resize(static_cast<size_t>(tileRows * tileColumns));
    multiplyPairs(*products_, left, i, tileRows, right, tileColumns, k,
                  {sums.data(), nullptr, tileColumns, out.alpha, 0});
    for (int64_t r = 0; r < tileRows; r++)
      kernels_.bf16FromF32(sums.data() + r * tileColumns, tile.narrow + r * tile.ld, static_cast<size_t>(tileColumns));
  });
}

// gram [n, n] += xᵀ x, or (x − minus)ᵀ (x − minus), the upper triangle, and cross [n, n] += xᵀ (minus − x); either may
// be left out.
void CpuBackend::pairSums(const Tensor& x, const bf16_t* minus, const Tensor& cross, const Tensor& gram) {
  int64_t k = x.dim(0), n = x.dim(1), depth = depthFor(cross.defined() ? 2 * n : n);
  for (int64_t l = 0; l < k; l += depth) {
    int64_t length = std::min(depth, k - l), pairs = pairsOf(length);
    const bf16_t* own = x.as<bf16_t>() + l * n;
    packColumns(own, minus ? minus + l * n : nullptr, n, n, length, rightPairs_);
    if (cross.defined()) {
      packColumns(own, nullptr, n, n, length, leftPairs_);
      pairTiles({nullptr, 0, leftPairs_.data(), pairs}, n, n, length, {cross.as(), nullptr, n, -1, 1});
    }
    if (!gram.defined()) continue;
    LeftPairs left{nullptr, 0, rightPairs_.data(), pairs};
    RightPairs right{rightPairs_.data(), pairs};
    forTriangle(pool_, n, pairColumns, [&](int64_t i, int64_t rows, int64_t j, int64_t columns) {
      multiplyPairs(*products_, left, i, rows, {right.at(j, 0), pairs}, columns, length,
                    {gram.as() + i * n + j, nullptr, n, 1, 1});
    });
  }
  dropLarge(leftPairs_), dropLarge(rightPairs_);
}

}  // namespace alps
