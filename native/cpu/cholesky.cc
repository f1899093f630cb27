// Blocked Cholesky factor and inverse. LAPACK works on the diagonal blocks only; all else are products through oneDNN,
// with the inverted diagonal blocks in place of triangular solves, on tiles whose bounds depend on n only.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "core/stream.h"
#include "cpu/cpu_backend.h"
#include "cpu/sgemm.h"

extern "C" {
void spotrf_(const char* uplo, const int* n, float* a, const int* lda, int* info, size_t);
void strtri_(const char* uplo, const char* diag, const int* n, float* a, const int* lda, int* info, size_t, size_t);
void openblas_set_num_threads(int);
}

namespace alps {

namespace {

constexpr int64_t block = 128;  // width of a diagonal block and of a panel
constexpr int64_t tile = 256;   // of the trailing update and of the last product

int64_t blocksOf(int64_t n) { return (n + block - 1) / block; }
int64_t lengthOf(int64_t n, int64_t i) { return std::min(block, n - i * block); }

// Row-major lower is LAPACK's column-major upper. In place; returns the failing pivot (1-based) or 0.
int factorBlock(float* a, int64_t n, int64_t lda) {
  openblas_set_num_threads(1);
  int size = static_cast<int>(n), stride = static_cast<int>(lda), info = 0;
  spotrf_("U", &size, a, &stride, &info, 1);
  for (int64_t i = 0; i < n && info == 0; i++)
    if (!std::isfinite(a[i * lda + i])) info = static_cast<int>(i) + 1;
  return info;
}

// out [n, n] := inverse of the lower triangular l, zeros above.
void invertBlock(const float* l, int64_t n, int64_t ldl, float* out) {
  std::fill_n(out, n * n, 0.0f);
  for (int64_t i = 0; i < n; i++) std::memcpy(out + i * n, l + i * ldl, static_cast<size_t>(i + 1) * sizeof(float));
  int size = static_cast<int>(n), info = 0;
  strtri_("U", "N", &size, out, &size, &info, 1, 1);
  if (info != 0) fail("NOT_POSITIVE_DEFINITE", "A diagonal block of the Cholesky factor is singular at ", info);
}

struct Pair {
  int64_t i, j;
};

}  // namespace

void CpuBackend::cholesky(Tensor matrix) {
  float* a = matrix.as();
  int64_t n = matrix.dim(0), count = blocksOf(n);
  std::vector<float> inverse(block * block), panel(static_cast<size_t>(n * block));
  for (int64_t b = 0; b < count; b++) {
    throwIfCancelled();
    int64_t k = b * block, width = lengthOf(n, b), below = k + width, rest = n - below;
    if (int pivot = factorBlock(a + k * n + k, width, n))
      fail("NOT_POSITIVE_DEFINITE", "The matrix [", n, ", ", n, "] is not positive definite: pivot ", k + pivot);
    if (rest == 0) break;
    invertBlock(a + k * n + k, width, n, inverse.data());
    // Panel: L = A Ldiag⁻ᵀ, through a copy because a product cannot be in place.
    constexpr int64_t strip = 192;
    pool_.ranges(rest, strip, [&](int64_t begin, int64_t end) {
      float* rows = a + (below + begin) * n + k;
      float* copy = panel.data() + begin * width;
      for (int64_t i = 0; i < end - begin; i++)
        std::memcpy(copy + i * width, rows + i * n, static_cast<size_t>(width) * sizeof(float));
      sgemm(false, true, end - begin, width, width, 1, copy, /* lda = */ width, inverse.data(), /* ldb = */ width, 0,
            rows,
            /* ldc = */ n);
    });
    // Trailing lower triangle: A −= L Lᵀ, tile by tile.
    std::vector<Pair> tiles;
    for (int64_t i = 0; i < rest; i += tile)
      for (int64_t j = 0; j <= i; j += tile) tiles.push_back({i, j});
    pool_.run(static_cast<int64_t>(tiles.size()), [&](int64_t t) {
      auto [i, j] = tiles[static_cast<size_t>(t)];
      const float* left = a + (below + i) * n + k;
      const float* right = a + (below + j) * n + k;
      sgemm(false, true, std::min(tile, rest - i), std::min(tile, rest - j), width, -1, left, /* lda = */ n, right,
            /* ldb = */ n, 1, a + (below + i) * n + below + j, /* ldc = */ n);
    });
  }
  pool_.ranges(n, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) std::fill(a + i * n + i + 1, a + (i + 1) * n, 0.0f);
  });
}

void CpuBackend::choleskyInverse(Tensor factor) {
  float* a = factor.as();
  int64_t n = factor.dim(0), count = blocksOf(n);
  if (n == 0) return;
  std::vector<float> diagonals(static_cast<size_t>(count * block * block));
  pool_.run(count, [&](int64_t b) {
    openblas_set_num_threads(1);
    invertBlock(a + b * block * n + b * block, lengthOf(n, b), n, diagonals.data() + b * block * block);
  });
  // X = L⁻¹ into scratch, a block column a task: X[i, j] = −Ldiag⁻¹[i] · (L[i, j..i) · X[j..i, j]). Longest column
  // first.
  std::shared_ptr<Storage> storage = allocate(static_cast<size_t>(n * n) * sizeof(float));
  float* x = static_cast<float*>(storage->data());
  pool_.run(count, [&](int64_t j) {
    int64_t width = lengthOf(n, j);
    std::vector<float> sum(block * block);
    for (int64_t r = 0; r < width; r++)
      std::memcpy(x + (j * block + r) * n + j * block, diagonals.data() + j * block * block + r * width,
                  static_cast<size_t>(width) * sizeof(float));
    for (int64_t i = j + 1; i < count; i++) {
      throwIfCancelled();
      int64_t height = lengthOf(n, i), depth = (i - j) * block;
      sgemm(false, false, height, width, depth, 1, a + i * block * n + j * block, /* lda = */ n,
            x + j * block * n + j * block,
            /* ldb = */ n, 0, sum.data(), /* ldc = */ width);
      sgemm(false, false, height, width, height, -1, diagonals.data() + i * block * block, /* lda = */ height,
            sum.data(),
            /* ldb = */ width, 0, x + i * block * n + j * block, /* ldc = */ n);
    }
  });
  // A⁻¹ = Xᵀ X: rows of X above the later of the two tiles are zero there.
  std::vector<Pair> tiles;
  for (int64_t i = 0; i < n; i += tile)
    for (int64_t j = i; j < n; j += tile) tiles.push_back({i, j});
  pool_.run(static_cast<int64_t>(tiles.size()), [&](int64_t t) {
    auto [i, j] = tiles[static_cast<size_t>(t)];
    sgemm(true, false, std::min(tile, n - i), std::min(tile, n - j), n - j, 1, x + j * n + i, /* lda = */ n,
          x + j * n + j,
          /* ldb = */ n, 0, a + i * n + j, /* ldc = */ n);
  });
  symmetrize(factor);
}

}  // namespace alps
