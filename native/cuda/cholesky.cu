// Purpose: Cholesky factor and inverse, in place, as products of large tiles. Blocks of 128 on the diagonal are
// factored and inverted by own kernels; inverses take the place of triangular solves.
#include <algorithm>
#include <functional>

#include "cuda/cuda_backend.h"
#include "cuda/diagonal_block.h"

namespace alps {

namespace {

using Diagonal = DiagonalBlock<4>;
constexpr int64_t blockSize = Diagonal::size;
constexpr size_t diagonalBytes = Diagonal::count * sizeof(float);

// Rows or columns of a large product: fewer leave multiprocessors idle, more compute numbers that nobody reads.
constexpr int64_t panelSize = 1024;

// ---- kernels -------------------------------------------------------------------------------------------------------

// Shared memory := the lower triangle of a [width, width], filled up to whole leaves by the identity.
__device__ void loadLower(Diagonal& block, const float* a, int64_t n, int width) {
  for (int i = static_cast<int>(threadIdx.x); i < Diagonal::size * Diagonal::size; i += diagonalThreads) {
    int row = i / Diagonal::size, column = i % Diagonal::size;
    if (column > row) continue;
    float other = row == column ? 1.0f : 0.0f;
    block.lower[row * Diagonal::ld + column] = row < width ? a[row * n + column] : other;
  }
  __syncthreads();
}

// The block on the diagonal at (k, k) := its factor; inverse [blockSize, blockSize] := that one's inverse.
__global__ void __launch_bounds__(diagonalThreads, 1)
    factorKernel(float* a, int64_t n, int64_t k, float* inverse, Failure* failure) {
  DYNAMIC_SHARED(float, memory);
  Diagonal block(memory);
  int width = static_cast<int>(min(blockSize, n - k));
  a += k * n + k;
  loadLower(block, a, n, width);
  int failed = block.factor();
  if (threadIdx.x == 0 && failed > 0)
    report(failure, notPositiveDefinite, static_cast<uint32_t>(k + failed), static_cast<uint32_t>(n));
  for (int i = static_cast<int>(threadIdx.x); i < Diagonal::size * Diagonal::size; i += diagonalThreads) {
    int row = i / Diagonal::size, column = i % Diagonal::size;
    inverse[i] = block.inverse(row, column);
    if (row < width && column <= row) a[row * n + column] = block.lower[row * Diagonal::ld + column];
  }
}

// One block for each block on the diagonal of a lower factor, which becomes its inverse, zeros above.
__global__ void __launch_bounds__(diagonalThreads, 1) invertDiagonalKernel(float* a, int64_t n, Failure* failure) {
  DYNAMIC_SHARED(float, memory);
  Diagonal block(memory);
  int64_t k = int64_t{blockIdx.x} * blockSize;
  int width = static_cast<int>(min(blockSize, n - k));
  a += k * n + k;
  loadLower(block, a, n, width);
  bool zero = block.invert();
  if (threadIdx.x == 0 && zero) report(failure, zeroPivot, 0);
  for (int i = static_cast<int>(threadIdx.x); i < Diagonal::size * Diagonal::size; i += diagonalThreads) {
    int row = i / Diagonal::size, column = i % Diagonal::size;
    if (row < width && column < width) a[row * n + column] = block.inverse(row, column);
  }
}

// a [rows, blockSize], rows of n numbers, := panel [rows, blockSize]; by fours where a's rows are aligned to them.
__global__ void storePanelKernel(const float* panel, int64_t rows, float* a, int64_t n, bool wide) {
  int64_t step = int64_t{gridDim.x} * blockDim.x, first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (wide) {
    constexpr int64_t fours = blockSize / 4;
    for (int64_t i = first; i < rows * fours; i += step)
      reinterpret_cast<float4*>(a + i / fours * n)[i % fours] = reinterpret_cast<const float4*>(panel)[i];
  } else {
    for (int64_t i = first; i < rows * blockSize; i += step) a[i / blockSize * n + i % blockSize] = panel[i];
  }
}

// One block a row: zeros above the diagonal.
__global__ void zeroUpperKernel(float* a, int64_t n) {
  float* row = a + int64_t{blockIdx.x} * n;
  for (int64_t j = int64_t{blockIdx.x} + 1 + threadIdx.x; j < n; j += blockDim.x) row[j] = 0;
}

constexpr int turned = 32, turnThreads = 256;

// from [rows, columns] are the rows from `at` on of a symmetric matrix, with columns = at + rows: what is on and below
// the diagonal goes to its place in a and to its mirror place. One tile of 32 × 32 a block.
__global__ void storeSymmetricKernel(const float* from, int64_t rows, int64_t columns, int64_t at, float* a,
                                     int64_t n) {
  SHARED(float, tile, turned*(turned + 1));
  int64_t left = int64_t{blockIdx.x} * turned, top = int64_t{blockIdx.y} * turned;
  int x = static_cast<int>(threadIdx.x) % turned, y = static_cast<int>(threadIdx.x) / turned;
  constexpr int step = turnThreads / turned;
  for (int r = y; r < turned; r += step) {
    int64_t row = top + r, column = left + x;
    if (row >= rows || column >= columns || column > at + row) continue;
    float value = from[row * columns + column];
    a[(at + row) * n + column] = value;
    tile[r * (turned + 1) + x] = value;
  }
  __syncthreads();
  for (int c = y; c < turned; c += step) {
    int64_t row = top + x, column = left + c;
    if (row < rows && column < columns && column < at + row) a[column * n + at + row] = tile[x * (turned + 1) + c];
  }
}

// ---- the factor ----------------------------------------------------------------------------------------------------

class Factorisation {
 public:
  Factorisation(Products& products, Queue queue, float* a, int64_t n, float* inverse, float* panel, Failure* failure)
      : products_(products), queue_(queue), a_(a), n_(n), inverse_(inverse), panel_(panel), failure_(failure) {}

  // Columns k ... k + width of the factor, all rows below included; the columns before have been subtracted.
  void columns(int64_t k, int64_t width) {
    if (width <= blockSize) return block(k, width);
    int64_t first = (width / 2 + blockSize - 1) / blockSize * blockSize, middle = k + first;
    columns(k, first);
    // The rest −= L Lᵀ, in panels that each begin at the diagonal.
    for (int64_t c = middle; c < k + width; c += panelSize) {
      int64_t rows = n_ - c, across = std::min(panelSize, k + width - c);
      Factor left{at(c, k), n_}, right{at(c, k), n_, true};
      products_.f32(rows, across, first, -1, left, right, 1, at(c, c), /* ldc = */ n_);
    }
    columns(middle, width - first);
  }

 private:
  float* at(int64_t row, int64_t column) const { return a_ + row * n_ + column; }

  void block(int64_t k, int64_t width) {
    launch(queue_, factorKernel, Grid{}, diagonalThreads, diagonalBytes, a_, n_, k, inverse_, failure_);
    int64_t rows = n_ - k - width;
    if (rows == 0) return;
    // Below: A := A L⁻ᵀ.
    float* below = at(k + width, k);
    products_.f32(rows, blockSize, blockSize, 1, {below, n_}, {inverse_, blockSize, true}, 0, panel_, blockSize);
    bool wide = n_ % 4 == 0 && reinterpret_cast<uintptr_t>(below) % 16 == 0;
    launch(queue_, storePanelKernel, Grid{(rows + 7) / 8}, diagonalThreads, 0, panel_, rows, below, n_, wide);
  }

  Products& products_;
  Queue queue_;
  float* a_;
  int64_t n_;
  float *inverse_, *panel_;  // [blockSize, blockSize] of the last block, [rows below, blockSize]
  Failure* failure_;
};

// ---- the inverse ---------------------------------------------------------------------------------------------------

class Inversion {
 public:
  // c [m, n] = alpha * a b.
  using Multiply =
      std::function<void(int64_t m, int64_t n, int64_t k, float alpha, Factor a, Factor b, float* c, int64_t ldc)>;

  Inversion(Products& products, Multiply multiply, Queue queue, float* a, int64_t n, float* scratch)
      : products_(products), multiply_(std::move(multiply)), queue_(queue), a_(a), n_(n), scratch_(scratch) {}

  // Rows of a product that makes (L Lᵀ)⁻¹.
  static int64_t rowsFor(int64_t n) {
    return n < 2 * panelSize ? std::max((n / 4 + 127) / 128 * 128, blockSize) : 2 * panelSize;
  }
  // Numbers of scratch memory: of the largest L21 X11, and of those rows.
  static int64_t scratchFor(int64_t n) { return std::max(n * n / 4, std::min(n, rowsFor(n)) * n); }

  // Blocks of `size` on the diagonal hold their inverse X: so do those of twice the size afterwards, as
  // X21 = −X22 (L21 X11) takes the place of L21.
  void joinPairs(int64_t size) {
    int64_t count = n_ / (2 * size), done = 0;
    if (size < panelSize && count > 0) {
      int64_t step = 2 * size * (n_ + 1), square = size * size;
      products_.f32Batch(size, size, size, 1, {at(size, 0), n_}, step, {a_, n_}, step, 0, scratch_, size, square,
                         count);
      products_.f32Batch(size, size, size, -1, {at(size, size), n_}, step, {scratch_, size}, square, 0, at(size, 0), n_,
                         step, count);
      done = count * 2 * size;
    }
    for (; done + size < n_; done += 2 * size) join(done, size, std::min(size, n_ - done - size));
  }

  // From X = L⁻¹ to XᵀX: row by row of blocks, which later ones do not need.
  void square() {
    for (int64_t i = 0, most = rowsFor(n_); i < n_; i += most) {
      int64_t rows = std::min(most, n_ - i), columns = i + rows;
      multiply_(rows, columns, n_ - i, 1, {at(i, i), n_, true}, {at(i, 0), n_}, scratch_, /* ldc = */ columns);
      Grid tiles{(columns + turned - 1) / turned, (rows + turned - 1) / turned};
      launch(queue_, storeSymmetricKernel, tiles, turnThreads, 0, scratch_, rows, columns, i, a_, n_);
    }
  }

 private:
  float* at(int64_t row, int64_t column) const { return a_ + row * n_ + column; }

  // A side of a product whose other one has so many rows: enough numbers for a large GPU, and no more, so that few
  // zeros are multiplied.
  static int64_t panelFor(int64_t other) {
    constexpr int64_t numbers = int64_t{1} << 22;
    return std::clamp((numbers / std::max<int64_t>(other, 1) + 127) / 128 * 128, panelSize, 2 * panelSize);
  }

  // One pair, cut so that the zeros above the diagonals of X11 and X22 are not multiplied.
  void join(int64_t k, int64_t first, int64_t second) {
    int64_t middle = k + first;
    int64_t across = panelFor(second), down = panelFor(first);
    for (int64_t c = 0; c < first; c += across)
      multiply_(second, std::min(across, first - c), first - c, 1, {at(middle, k + c), n_}, {at(k + c, k + c), n_},
                scratch_ + c, /* ldc = */ first);
    for (int64_t r = 0; r < second; r += down) {
      int64_t rows = std::min(down, second - r);
      multiply_(rows, first, r + rows, -1, {at(middle + r, middle), n_}, {scratch_, first}, at(middle + r, k),
                /* ldc = */ n_);
    }
  }

  Products& products_;
  Multiply multiply_;
  Queue queue_;
  float* a_;
  int64_t n_;
  float* scratch_;
};

}  // namespace

// ---- launchers -----------------------------------------------------------------------------------------------------

void CudaBackend::cholesky(Tensor matrices) {
  int64_t n = matrices.columns();
  if (n == 0) return;
  auto inverse = scratch<float>(blockSize * blockSize), panel = scratch<float>(std::max<int64_t>(1, n * blockSize));
  for (int64_t i = 0; i < matrices.matrices(); i++) {
    float* a = matrices.as() + i * n * n;
    Factorisation(*products_, queue(), a, n, inverse, panel, failure()).columns(0, n);
    launch(queue(), zeroUpperKernel, Grid{n}, blockSize_, 0, a, n);
  }
}

void CudaBackend::choleskyInverse(Tensor factors, bool split) {
  int64_t n = factors.columns();
  if (n == 0) return;
  auto memory = scratch<float>(Inversion::scratchFor(n));
  auto multiply = [&](int64_t m, int64_t columns, int64_t k, float alpha, Factor left, Factor right, float* c,
                      int64_t ldc) { productOf(m, columns, k, alpha, left, right, 0, c, ldc, split); };
  for (int64_t i = 0; i < factors.matrices(); i++) {
    float* a = factors.as() + i * n * n;
    launch(queue(), zeroUpperKernel, Grid{n}, blockSize_, 0, a, n);
    launch(queue(), invertDiagonalKernel, Grid{(n + blockSize - 1) / blockSize}, diagonalThreads, diagonalBytes, a, n,
           failure());
    Inversion inversion(*products_, multiply, queue(), a, n, memory);
    for (int64_t size = blockSize; size < n; size *= 2) inversion.joinPairs(size);
    inversion.square();
  }
}

}  // namespace alps
