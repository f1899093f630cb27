// Matrix products through oneDNN, on tiles whose bounds depend on the shapes only.
#include <algorithm>
#include <vector>

#include "core/stream.h"
#include "cpu/cpu_backend.h"
#include "cpu/sgemm.h"

namespace alps {

namespace {

// A dimension cut into nearly equal tiles, multiples of 16, of about `target`.
struct Tiles {
  int64_t size, tile, count;
  Tiles(int64_t size, int64_t target) : size(size) {
    int64_t pieces = std::max<int64_t>(1, (size + target / 2) / target);
    tile = std::max<int64_t>(16, ((size + pieces - 1) / pieces + 15) / 16 * 16);
    count = (size + tile - 1) / tile;
  }
  int64_t begin(int64_t i) const { return i * tile; }
  int64_t length(int64_t i) const { return std::min(tile, size - begin(i)); }
};

// Inputs of a product: f32, bf16 in hardware, or bf16 converted piece by piece.
struct Operand {
  const Tensor& tensor;
  bool transposed;
  int64_t ld() const { return tensor.dim(1); }
  // Element (row, column) of op(tensor).
  template <typename T>
  const T* at(int64_t row, int64_t column) const {
    return tensor.as<T>() + (transposed ? column * ld() + row : row * ld() + column);
  }
};

// op(operand)[row .. row + rows, column .. column + columns] as f32 in its stored orientation; returns the row length.
int64_t widen(const Kernels& kernels, const Operand& operand, int64_t row, int64_t column, int64_t rows,
              int64_t columns, std::vector<float>& out) {
  int64_t storedRows = operand.transposed ? columns : rows, storedColumns = operand.transposed ? rows : columns;
  out.resize(static_cast<size_t>(storedRows * storedColumns));
  const bf16_t* from = operand.at<bf16_t>(row, column);
  for (int64_t i = 0; i < storedRows; i++)
    kernels.f32FromBf16(from + i * operand.ld(), out.data() + i * storedColumns, static_cast<size_t>(storedColumns));
  return storedColumns;
}

// Inner dimension of one call: what it reads stays in cache, and cancellation is looked at between.
constexpr int64_t longestSum = 2048;

constexpr int64_t enoughTiles = 16;

// c [m, n] at row i, column j of the product, over all of k.
void productTile(const Kernels& kernels, bool bf16Hardware, const Operand& a, const Operand& b, int64_t i, int64_t j,
                 int64_t m, int64_t n, int64_t k, float alpha, float beta, float* c, int64_t ldc) {
  // oneDNN multiplies bfloat16 some 20 times slower with another factor than 1: the sums are scaled instead.
  bool scalesAfter = a.tensor.dtype == DType::bf16 && bf16Hardware && alpha != 1 && beta == 0;
  float factor = scalesAfter ? 1.0f : alpha;
  for (int64_t l = 0; l < k; l += longestSum) {
    throwIfCancelled();
    int64_t depth = std::min(longestSum, k - l);
    float keep = l == 0 ? beta : 1.0f;
    if (a.tensor.dtype == DType::f32) {
      sgemm(a.transposed, b.transposed, m, n, depth, factor, a.at<float>(i, l), a.ld(), b.at<float>(l, j), b.ld(), keep,
            c, ldc);
    } else if (bf16Hardware) {
      bgemm(a.transposed, b.transposed, m, n, depth, factor, a.at<bf16_t>(i, l), a.ld(), b.at<bf16_t>(l, j), b.ld(),
            keep, c, ldc);
    } else {
      thread_local std::vector<float> wideA, wideB;
      int64_t lda = widen(kernels, a, i, l, m, depth, wideA), ldb = widen(kernels, b, l, j, depth, n, wideB);
      sgemm(a.transposed, b.transposed, m, n, depth, factor, wideA.data(), lda, wideB.data(), ldb, keep, c, ldc);
    }
  }
  if (!scalesAfter) return;
  for (int64_t r = 0; r < m; r++) kernels.scale(c + r * ldc, alpha, nullptr, c + r * ldc, static_cast<size_t>(n));
}

void scaleTile(float* c, int64_t m, int64_t n, int64_t ldc, float beta) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) c[i * ldc + j] = beta == 0 ? 0.0f : beta * c[i * ldc + j];
}

}  // namespace

// Rows of a product that oneDNN would take more time to pack the other factor for than to multiply.
constexpr int64_t fewRows = 2 * narrowColumns;

// out [m, n] = alpha * a [m, k] b [n, k]ᵀ + beta * out, for few rows: b is read once, as it lies. Sums over pieces of k
// are added up, which keeps long ones exact.
void CpuBackend::narrowGemm(const Tensor& a, const Tensor& b, const Tensor& out, float alpha, float beta) {
  constexpr int64_t panel = narrowColumns;    // rows of a together
  constexpr int64_t strip = 48, piece = 256;  // rows of b a task, and the length of a sum
  int64_t m = out.dim(0), n = out.dim(1), k = a.dim(1), panels = (m + panel - 1) / panel;
  std::vector<float> turned(static_cast<size_t>(panels * panel * k));  // [panels, k, panel], zeros behind m
  for (int64_t i = 0; i < m; i++)
    for (int64_t l = 0; l < k; l++)
      turned[static_cast<size_t>((i / panel * k + l) * panel + i % panel)] = a.as()[i * k + l];
  pool_.ranges(n, strip, [&](int64_t begin, int64_t end) {
    throwIfCancelled();
    constexpr int64_t block = 12;  // rows of b whose piece stays in the nearest cache for all panels
    float products[fewRows / panel * block * panel];
    for (int64_t j = begin; j < end; j += block) {
      int64_t rows = std::min(block, end - j);
      std::fill_n(products, panels * block * panel, 0.0f);
      for (int64_t l = 0; l < k; l += piece)
        for (int64_t p = 0; p < panels; p++)
          kernels_.transformer.narrowProduct(turned.data() + (p * k + l) * panel, b.as() + j * k + l,
                                             static_cast<size_t>(k), static_cast<size_t>(std::min(piece, k - l)),
                                             static_cast<size_t>(rows), products + p * block * panel);
      for (int64_t i = 0; i < m; i++) {
        float* row = out.as() + i * n + j;
        const float* of = products + i / panel * block * panel + i % panel;
        for (int64_t r = 0; r < rows; r++) {
          float value = alpha * of[r * panel];
          row[r] = beta == 0 ? value : value + beta * row[r];
        }
      }
    }
  });
}

bool CpuBackend::bf16InHardware() const { return hasBf16Products(kernels_); }

void CpuBackend::gemm(Tensor a, Tensor b, Tensor out, bool transposeA, bool transposeB, double alpha, double beta,
                      bool /* split */) {
  int64_t m = out.dim(0), n = out.dim(1), k = a.dim(transposeA ? 0 : 1);
  if (m == 0 || n == 0) return;
  float scale = static_cast<float>(alpha), keep = static_cast<float>(beta);
  bool single = a.dtype == DType::f32 && out.dtype == DType::f32;
  if (m <= fewRows && !transposeA && transposeB && single && k > 0 && scale != 0)
    return narrowGemm(a, b, out, scale, keep);
  if (goesByPairs(a, m, k) && scale != 0) return pairProduct(a, b, out, transposeA, transposeB, scale, keep);
  // Large tiles pack less, many tiles serve many threads: halved until there are enough.
  int64_t tileRows = 256, tileColumns = 768;
  auto tiles = [&] { return Tiles(m, tileRows).count * Tiles(n, tileColumns).count; };
  while (tiles() < enoughTiles && tileColumns > 192) (tileColumns > tileRows * 2 ? tileColumns : tileRows) /= 2;
  Tiles rows(m, tileRows), columns(n, tileColumns);
  Operand left{a, transposeA}, right{b, transposeB};
  pool_.run(rows.count * columns.count, [&](int64_t task) {
    int64_t i = task % rows.count, j = task / rows.count;
    int64_t height = rows.length(i), width = columns.length(j), row = rows.begin(i), column = columns.begin(j);
    thread_local std::vector<float> scratch;
    bool narrow = out.dtype == DType::bf16;
    if (narrow) scratch.resize(static_cast<size_t>(height * width));
    float* c = narrow ? scratch.data() : out.as() + row * n + column;
    int64_t ldc = narrow ? width : n;
    // oneDNN's bfloat16 product with alpha = 0 multiplies what was there by beta = 0: a NaN would stay.
    if (k == 0 || scale == 0)
      scaleTile(c, height, width, ldc, keep);
    else
      productTile(kernels_, bf16InHardware(), left, right, row, column, height, width, k, scale, keep, c, ldc);
    if (narrow)
      for (int64_t r = 0; r < height; r++)
        kernels_.bf16FromF32(c + r * width, out.as<bf16_t>() + (row + r) * n + column, static_cast<size_t>(width));
  });
}

}  // namespace alps
