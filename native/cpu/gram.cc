// Gram matrices and the small ops on square matrices.
#include <algorithm>
#include <vector>

#include "core/stream.h"
#include "cpu/cpu_backend.h"
#include "cpu/lines.h"
#include "cpu/sgemm.h"

namespace alps {

namespace {

constexpr int64_t tokenChunk =
    2048;                      // tokens a call: its two slabs stay in cache, and cancellation is looked at between
constexpr int64_t strip = 64;  // rows a call in a block on the diagonal: only what it covers below is wasted

// Blocks small enough to give many threads work, large enough for the products' speed.
int64_t blockFor(int64_t n) { return std::clamp<int64_t>((n / 5 + strip - 1) / strip * strip, 2 * strip, 6 * strip); }

}  // namespace

void CpuBackend::gramAccumulate(Tensor x, Tensor gram) {
  int64_t tokens = x.dim(0), n = x.dim(1), block = blockFor(n), count = (n + block - 1) / block;
  bool hardware = bf16InHardware(), widens = x.dtype == DType::bf16 && !hardware;
  if (tokens == 0 || n == 0) return;
  if (x.dtype == DType::bf16 && products_) return pairSums(x, nullptr, {}, gram);
  // gram[i, j] += x[t .. t + depth, i]ᵀ x[t .. t + depth, j]
  auto product = [&](int64_t t, int64_t depth, int64_t i, int64_t rows, int64_t j, int64_t columns) {
    float* out = gram.as() + i * n + j;
    if (x.dtype == DType::f32)
      sgemm(true, false, rows, columns, depth, 1, x.as() + t * n + i, /* lda = */ n, x.as() + t * n + j, /* ldb = */ n,
            1, out, /* ldc = */ n);
    else
      bgemm(true, false, rows, columns, depth, 1, x.as<bf16_t>() + t * n + i, /* lda = */ n, x.as<bf16_t>() + t * n + j,
            /* ldb = */ n, 1, out, /* ldc = */ n);
  };
  // The same for bf16 without hardware: each slab [depth, columns] is converted once and serves all strips.
  auto widened = [&](int64_t t, int64_t depth, int64_t column, int64_t columns, std::vector<float>& slab) {
    slab.resize(static_cast<size_t>(depth * columns));
    for (int64_t r = 0; r < depth; r++)
      kernels_.f32FromBf16(x.as<bf16_t>() + (t + r) * n + column, slab.data() + r * columns,
                           static_cast<size_t>(columns));
  };
  // Blocks off the diagonal first, they take longest.
  std::vector<std::pair<int64_t, int64_t>> blocks;
  for (int64_t i = 0; i < count; i++)
    for (int64_t j = i + 1; j < count; j++) blocks.emplace_back(i * block, j * block);
  for (int64_t i = 0; i < count; i++) blocks.emplace_back(i * block, i * block);
  pool_.run(static_cast<int64_t>(blocks.size()), [&](int64_t task) {
    auto [i, j] = blocks[static_cast<size_t>(task)];
    int64_t rows = std::min(block, n - i), columns = std::min(block, n - j), step = i == j ? strip : rows;
    thread_local std::vector<float> left, right;
    for (int64_t t = 0; t < tokens; t += tokenChunk) {
      throwIfCancelled();
      int64_t depth = std::min(tokenChunk, tokens - t);
      if (widens) {
        widened(t, depth, j, columns, right);
        if (i != j) widened(t, depth, i, rows, left);
      }
      for (int64_t r = 0; r < rows; r += step) {
        int64_t height = std::min(step, rows - r), skip = i == j ? r : 0;  // columns below the diagonal
        if (widens)
          sgemm(true, false, height, columns - skip, depth, 1, (i == j ? right : left).data() + r, /* lda = */ rows,
                right.data() + skip, /* ldb = */ columns, 1, gram.as() + (i + r) * n + j + skip, /* ldc = */ n);
        else
          product(t, depth, i + r, height, j + skip, columns - skip);
      }
    }
  });
}

void CpuBackend::differenceSums(Tensor x, Tensor y, Tensor cross, Tensor gram) {
  if (x.dtype != DType::bf16 || !products_ || x.size() == 0) return Backend::differenceSums(x, y, cross, gram);
  pairSums(x, y.as<bf16_t>(), cross, gram);
}

// Copies one triangle of a [n, n] onto the other, in squares that are turned in cache.
void mirrorTriangle(ThreadPool& pool, const Kernels& kernels, float* a, int64_t n, bool fromLower) {
  constexpr int64_t block = 64;
  int64_t count = (n + block - 1) / block;
  pool.run(count, [&](int64_t task) {
    int64_t i = (count - 1 - task) * block, rows = std::min(block, n - i);  // block row i, longest first
    for (int64_t j = 0; j < i; j += block) {
      float *lower = a + i * n + j, *upper = a + j * n + i;
      if (fromLower)
        kernels.factor.turn(lower, n, rows, block, upper, n, false);
      else
        kernels.factor.turn(upper, n, block, rows, lower, n, false);
    }
    float* corner = a + i * (n + 1);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < r; c++) {
        float &lower = corner[r * n + c], &upper = corner[c * n + r];
        (fromLower ? upper : lower) = fromLower ? lower : upper;
      }
  });
}

void CpuBackend::symmetrize(Tensor a) { mirrorTriangle(pool_, kernels_, a.as(), a.dim(0), false); }

// Of each panel of columns only the rows from its block on the diagonal on are multiplied: what is below that counts
// twice instead.
void CpuBackend::quadraticForms(Tensor a, Tensor s, Tensor out) {
  constexpr int64_t columnTile = 4 * panelColumns, block = 8, mostRows = 12 * block;
  constexpr int64_t longest = 1024;  // numbers of a float sum
  const FactorKernels& kernels = kernels_.factor;
  int64_t m = a.dim(0), n = a.dim(1);
  int64_t tiles = std::max<int64_t>(8, pool_.enoughTasks());
  int64_t rowTile = std::clamp<int64_t>((m / tiles + block - 1) / block * block, block, mostRows);
  double* sums = out.as<double>();
  std::fill_n(sums, m, 0.0);
  Lines<float> panels(static_cast<size_t>(columnTile * n));
  for (int64_t column = 0; column < n; column += columnTile) {
    int64_t columns = std::min(columnTile, n - column), height = n - column;
    // Row i of s, from `column` on, in the panel of columns j.
    auto panel = [&](int64_t j, int64_t i) {
      return panels.data() + (j - column) * height + (i - column) * panelColumns;
    };
    pool_.ranges(height, 128, [&](int64_t begin, int64_t end) {
      for (int64_t j = column; j < column + columns; j += panelColumns) {
        int64_t row = std::max(column + begin, j), rows = column + end - row;
        if (rows > 0) kernels.pack(s.as() + row * n + j, n, rows, std::min(panelColumns, n - j), panel(j, row), false);
      }
    });
    pool_.ranges(m, rowTile, [&](int64_t begin, int64_t end) {
      thread_local Lines<float> products;
      products.resize(static_cast<size_t>(mostRows * columnTile));
      const float* left = a.as() + begin * n;
      for (int64_t j = column; j < column + columns; j += panelColumns) {
        int64_t width = std::min(panelColumns, n - j);
        float* to = products.data() + j - column;
        kernels.product(end - begin, width, width, left + j, n, 1, panel(j, j), 1, false, to, columnTile);
        for (int64_t k = j + width; k < n; k += longest)
          kernels.product(end - begin, width, std::min(longest, n - k), left + k, n, 1, panel(j, k), 2, true, to,
                          columnTile);
      }
      for (int64_t i = begin; i < end; i++)
        sums[i] += kernels_.dot(products.data() + (i - begin) * columnTile, a.as() + i * n + column,
                                static_cast<size_t>(columns));
    });
  }
}

void CpuBackend::addDiagonal(Tensor a, double value) {
  int64_t n = a.dim(0);
  for (int64_t i = 0; i < n; i++) a.as()[i * n + i] += static_cast<float>(value);
}

void CpuBackend::addToDiagonal(Tensor a, Tensor values, double alpha) {
  int64_t n = a.dim(0);
  for (int64_t i = 0; i < n; i++) a.as()[i * n + i] += static_cast<float>(alpha) * values.as()[i];
}

void CpuBackend::diagonal(Tensor a, Tensor out) {
  int64_t n = a.dim(0);
  for (int64_t i = 0; i < n; i++) out.as()[i] = a.as()[i * n + i];
}

}  // namespace alps
