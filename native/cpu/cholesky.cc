// Blocked Cholesky factor and inverse, in place. LAPACK works on small diagonal blocks only; all else are products on
// tiles whose bounds depend on n only, with inverted diagonal blocks in place of triangular solves.
//
// Both ops are a loop over block columns k with one large update each, the same for both: the lower triangle of some
// rows gains ± panel · panelᵀ, where panel [rows, block] is a copy with short rows.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "core/stream.h"
#include "cpu/cpu_backend.h"
#include "cpu/sgemm.h"

extern "C" {  // LAPACK; the last arguments are the lengths of the strings
void spotrf_(const char* uplo, const int* n, float* a, const int* lda, int* info, size_t);
void strtri_(const char* uplo, const char* diag, const int* n, float* a, const int* lda, int* info, size_t, size_t);
void openblas_set_num_threads(int);
}

namespace alps {

void mirrorTriangle(ThreadPool& pool, float* a, int64_t n, bool fromLower);  // cpu/gram.cc

namespace {

constexpr int64_t leaf = 32;   // LAPACK's part of a diagonal block
constexpr int64_t strip = 96;  // rows a call on the diagonal of an update, and a task where a panel is made
constexpr int64_t tile = 192;  // of an update; a multiple of the 48 that the product's innermost loop takes

// Width of a panel: narrow ones leave less work outside the products, wide ones pass over the matrix less often.
int64_t blockFor(int64_t n) { return n <= 768 ? 64 : n <= 1536 ? 96 : n <= 8192 ? 128 : 192; }

std::unique_ptr<float[]> floats(int64_t count) {
  return std::make_unique_for_overwrite<float[]>(static_cast<size_t>(count));
}

void copyBlock(const float* from, int64_t ldFrom, int64_t rows, int64_t columns, float* out, int64_t ldOut) {
  for (int64_t i = 0; i < rows; i++)
    std::memcpy(out + i * ldOut, from + i * ldFrom, static_cast<size_t>(columns) * sizeof(float));
}

// x21 := −x22 l21 x11, and zeros at its mirror place: the inverse of a lower triangle from those of its halves.
void joinHalves(const float* l, int64_t ldl, float* x, int64_t ldx, int64_t first, int64_t second, float* scratch) {
  sgemm(false, false, second, first, first, 1, l + first * ldl, /* lda = */ ldl, x, /* ldb = */ ldx, 0, scratch,
        /* ldc = */ first);
  sgemm(false, false, second, first, second, -1, x + first * ldx + first, /* lda = */ ldx, scratch, /* ldb = */ first,
        0, x + first * ldx, /* ldc = */ ldx);
  for (int64_t i = 0; i < first; i++) std::fill_n(x + i * ldx + first, second, 0.0f);
}

// Rows of the first half of a block of more than leaf.
int64_t half(int64_t n) { return (n / 2 + leaf - 1) / leaf * leaf; }

// x [n, n] := inverse of the lower triangular l, zeros above. scratch holds n² / 4 numbers. Row-major lower is LAPACK's
// column-major upper, here and below.
void invertLower(const float* l, int64_t ldl, float* x, int64_t ldx, int64_t n, float* scratch) {
  if (n > leaf) {
    int64_t first = half(n), second = n - first;
    invertLower(l, ldl, x, ldx, first, scratch);
    invertLower(l + first * ldl + first, ldl, x + first * ldx + first, ldx, second, scratch);
    return joinHalves(l, ldl, x, ldx, first, second, scratch);
  }
  for (int64_t i = 0; i < n; i++) {
    std::memcpy(x + i * ldx, l + i * ldl, static_cast<size_t>(i + 1) * sizeof(float));
    std::fill(x + i * ldx + i + 1, x + i * ldx + n, 0.0f);
  }
  int size = static_cast<int>(n), stride = static_cast<int>(ldx), info = 0;
  strtri_("U", "N", &size, x, &stride, &info, 1, 1);
  if (info != 0) fail("NOT_POSITIVE_DEFINITE", "The Cholesky factor has a zero on its diagonal");
}

// a [n, n] := lower factor of its lower triangle, x := its inverse. Returns the failing pivot, counted from 1, or 0.
int64_t factorBlock(float* a, int64_t lda, float* x, int64_t ldx, int64_t n, float* scratch) {
  if (n > leaf) {
    int64_t first = half(n), second = n - first;
    float *a21 = a + first * lda, *a22 = a21 + first;
    if (int64_t pivot = factorBlock(a, lda, x, ldx, first, scratch)) return pivot;
    sgemm(false, true, second, first, first, 1, a21, /* lda = */ lda, x, /* ldb = */ ldx, 0, scratch,
          /* ldc = */ first);
    copyBlock(scratch, first, second, first, a21, lda);
    sgemm(false, true, second, second, first, -1, scratch, /* lda = */ first, scratch, /* ldb = */ first, 1, a22,
          /* ldc = */ lda);
    if (int64_t pivot = factorBlock(a22, lda, x + first * ldx + first, ldx, second, scratch)) return first + pivot;
    joinHalves(a, lda, x, ldx, first, second, scratch);
    return 0;
  }
  int size = static_cast<int>(n), stride = static_cast<int>(lda), info = 0;
  spotrf_("U", &size, a, &stride, &info, 1);
  if (info < 0) fail("INTERNAL", "spotrf refused argument ", -info);
  for (int64_t i = 0; i < n && info == 0; i++)
    if (!std::isfinite(a[i * lda + i])) info = static_cast<int>(i) + 1;
  if (info == 0) invertLower(a, lda, x, ldx, n, scratch);
  return info;
}

}  // namespace

// OpenBLAS's own threads would only fight with the pool's.
void useOneThread() {
  static std::once_flag once;
  std::call_once(once, [] { openblas_set_num_threads(1); });
}

namespace {

// Appends the ends of pieces of [from, to).
void cut(std::vector<int64_t>& edges, int64_t from, int64_t to, int64_t size) {
  for (int64_t at = from; at < to; at += size) edges.push_back(std::min(to, at + size));
}

// a[i, j] += alpha · panel[i − origin] panel[j − origin]ᵀ for origin ≤ j ≤ i and j < columnEnd, and some j > i on the
// way. edges cut the rows from origin to the last one, columnEnd is among them. `first` runs right behind the first
// tile, the one on the diagonal at origin.
void updateLower(ThreadPool& pool, float* a, int64_t n, const float* panel, int64_t width, float alpha,
                 const std::vector<int64_t>& edges, int64_t columnEnd, const std::function<void()>& first) {
  struct Tile {
    int64_t row, rows, column, columns;
  };
  int64_t origin = edges.front();
  std::vector<Tile> tiles, diagonal;
  for (size_t i = 0; i + 1 < edges.size(); i++)
    for (size_t j = 0; j <= i && edges[j] < columnEnd; j++)
      (i == j ? diagonal : tiles).push_back({edges[i], edges[i + 1] - edges[i], edges[j], edges[j + 1] - edges[j]});
  tiles.insert(tiles.begin(), diagonal.front());
  tiles.insert(tiles.end(), diagonal.begin() + 1, diagonal.end());
  pool.run(static_cast<int64_t>(tiles.size()), [&](int64_t task) {
    auto [row, rows, column, columns] = tiles[static_cast<size_t>(task)];
    int64_t step = row == column ? strip : rows;
    for (int64_t r = 0; r < rows; r += step) {
      int64_t height = std::min(step, rows - r), reach = row == column ? r + height : columns;
      sgemm(false, true, height, reach, width, alpha, panel + (row - origin + r) * width, /* lda = */ width,
            panel + (column - origin) * width, /* ldb = */ width, 1, a + (row + r) * n + column, /* ldc = */ n);
    }
    if (task == 0 && first) first();
  });
}

}  // namespace

void CpuBackend::cholesky(Tensor matrix) {
  float* a = matrix.as();
  int64_t n = matrix.dim(0), block = std::min(n, blockFor(n));
  if (n == 0) return;
  useOneThread();
  auto inverse = floats(block * block), scratch = floats(block * block), panel = floats(n * block);
  auto factorAt = [&](int64_t k) {
    int64_t width = std::min(block, n - k);
    if (int64_t pivot = factorBlock(a + k * n + k, n, inverse.get(), width, width, scratch.get()))
      fail("NOT_POSITIVE_DEFINITE", "The matrix [", n, ", ", n, "] is not positive definite: pivot ", k + pivot);
  };
  factorAt(0);
  for (int64_t k = 0; k + block < n; k += block) {
    int64_t below = k + block;
    // Panel: L = A Ldiag⁻ᵀ
    pool_.ranges(n - below, strip, [&](int64_t begin, int64_t end) {
      float *rows = a + (below + begin) * n + k, *out = panel.get() + begin * block;
      sgemm(false, true, end - begin, block, block, 1, rows, /* lda = */ n, inverse.get(), /* ldb = */ block, 0, out,
            /* ldc = */ block);
      copyBlock(out, block, end - begin, block, rows, n);
    });
    // A −= L Lᵀ on what is left. The next diagonal block comes first and is factored while the other tiles are updated.
    std::vector<int64_t> edges{below, std::min(n, below + block)};
    cut(edges, edges.back(), n, tile);
    updateLower(pool_, a, n, panel.get(), block, -1, edges, n, [&] { factorAt(below); });
  }
  pool_.ranges(n, strip, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) std::fill(a + i * n + i + 1, a + (i + 1) * n, 0.0f);
  });
}

// With X = L⁻¹, in place: before step k the rows from k on hold L, where block columns left of k hold M = L X (its sum
// over the rows done) instead, and the rows above k hold the sum of XᵀX over the rows done. Row k of X, which is
// −Ldiag⁻¹ M left of the diagonal and Ldiag⁻¹ on it, then completes: its outer product with itself goes to the rows
// above and its product with column k of L to the rows below.
void CpuBackend::choleskyInverse(Tensor factor, bool /* split */) {
  float* a = factor.as();
  int64_t n = factor.dim(0), block = std::min(n, blockFor(n));
  if (n == 0) return;
  useOneThread();
  auto inverses = floats(n * block), panel = floats(n * block);
  pool_.ranges(n, block, [&](int64_t begin, int64_t end) {
    auto scratch = floats(block * block);
    invertLower(a + begin * n + begin, n, inverses.get() + begin * block, end - begin, end - begin, scratch.get());
  });
  for (int64_t k = 0; k < n; k += block) {
    int64_t width = std::min(block, n - k), below = k + width;
    const float* inverse = inverses.get() + k * block;
    // The panel is row k of X transposed, then column k of L; what it came from is zeroed to start its new sum.
    int64_t above = (k + strip - 1) / strip, rest = (n - below + strip - 1) / strip;
    pool_.run(above + 1 + rest, [&](int64_t task) {
      if (task < above) {
        int64_t j = task * strip, columns = std::min(strip, k - j);
        float* m = a + k * n + j;
        sgemm(true, true, columns, width, width, -1, m, /* lda = */ n, inverse, /* ldb = */ width, 0,
              panel.get() + j * width, /* ldc = */ width);
        for (int64_t r = 0; r < width; r++) std::fill_n(m + r * n, columns, 0.0f);
      } else {
        int64_t i = task == above ? k : below + (task - above - 1) * strip;
        int64_t rows = task == above ? width : std::min(strip, n - i);
        float *from = a + i * n + k, *out = panel.get() + i * width;
        if (task > above) copyBlock(from, n, rows, width, out, width);
        for (int64_t r = 0; r < rows; r++) {
          if (task == above)
            for (int64_t c = 0; c < width; c++) out[r * width + c] = inverse[c * width + r];
          std::fill_n(from + r * n, width, 0.0f);
        }
      }
    });
    std::vector<int64_t> edges{0};
    cut(edges, 0, below, tile);
    cut(edges, below, n, tile);
    updateLower(pool_, a, n, panel.get(), width, 1, edges, below, nullptr);
  }
  mirrorTriangle(pool_, a, n, true);
}

}  // namespace alps
