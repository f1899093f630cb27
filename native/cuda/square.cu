// Purpose: transposition, and the triangles and diagonals of square matrices; bound by memory.
#include <algorithm>

#include "cuda/cuda_backend.h"

namespace alps {

namespace {

// ---- kernels --------------------------------------------------------------------------------------------------------

constexpr int side = 64;      // of a tile
constexpr int threads = 256;  // of its block: 64 columns by 4 rows
constexpr int rowsAtOnce = threads / side;

// A tile's rows in shared memory end in padding, so that a column of it lies over all banks.
template <typename T>
constexpr int stride = side + (sizeof(T) < 4 ? 4 / static_cast<int>(sizeof(T)) : 1);

// out [columns, rows] = aᵀ, a [rows, columns]. Where the grid is not high enough, blocks take further tiles below.
template <typename T>
__global__ void __launch_bounds__(threads, 6) transposeKernel(const T* a, int64_t rows, int64_t columns, T* out) {
  SHARED(T, tile, side * stride<T>);
  int x = static_cast<int>(threadIdx.x) % side, y = static_cast<int>(threadIdx.x) / side;
  int64_t left = int64_t{blockIdx.x} * side;
  for (int64_t top = int64_t{blockIdx.y} * side; top < rows; top += int64_t{gridDim.y} * side) {
    int height = static_cast<int>(min(rows - top, int64_t{side}));
    int width = static_cast<int>(min(columns - left, int64_t{side}));
    const T* from = a + (top + y) * columns + left + x;
#pragma unroll 8  // of all 16 some architectures keep the addresses
    for (int k = 0; k < side; k += rowsAtOnce, from += rowsAtOnce * columns)
      if (y + k < height && x < width) tile[(y + k) * stride<T> + x] = *from;
    __syncthreads();
    T* to = out + (left + y) * rows + top + x;
#pragma unroll 8
    for (int k = 0; k < side; k += rowsAtOnce, to += rowsAtOnce * rows)
      if (y + k < width && x < height) *to = tile[x * stride<T> + y + k];
    __syncthreads();
  }
}

// Each block on or above the diagonal writes its tile's mirror image. Entries above the diagonal are only read, those
// below it only written.
__global__ void symmetrizeKernel(float* a, int64_t n) {
  if (blockIdx.y > blockIdx.x) return;
  SHARED(float, tile, side* stride<float>);
  int x = static_cast<int>(threadIdx.x) % side, y = static_cast<int>(threadIdx.x) / side;
  int64_t left = int64_t{blockIdx.x} * side, top = int64_t{blockIdx.y} * side;
#pragma unroll
  for (int k = 0; k < side; k += rowsAtOnce) {
    int64_t i = top + y + k, j = left + x;
    if (i < j && j < n) tile[(y + k) * stride<float> + x] = a[i * n + j];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < side; k += rowsAtOnce) {
    int64_t i = left + y + k, j = top + x;
    if (j < i && i < n) a[i * n + j] = tile[x * stride<float> + y + k];
  }
}

__global__ void addDiagonalKernel(float* a, int64_t n, float value) {
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) a[i * n + i] += value;
}

__global__ void addToDiagonalKernel(float* a, int64_t n, const float* values, float alpha) {
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) a[i * n + i] += alpha * values[i];
}

__global__ void diagonalKernel(const float* a, int64_t n, float* out) {
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) out[i] = a[i * n + i];
}

}  // namespace

// ---- launchers ------------------------------------------------------------------------------------------------------

void CudaBackend::transpose(Tensor a, Tensor out) {
  int64_t rows = a.dim(0), columns = a.dim(1);
  Grid grid{(columns + side - 1) / side, std::min<int64_t>((rows + side - 1) / side, 65535)};
  auto run = [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    launch(queue(), transposeKernel<T>, grid, threads, 0, a.as<T>(), rows, columns, out.as<T>());
  };
  switch (sizeOf(a.dtype)) {
    case 1:
      return run(static_cast<uint8_t*>(nullptr));
    case 2:
      return run(static_cast<uint16_t*>(nullptr));
    case 4:
      return run(static_cast<uint32_t*>(nullptr));
    default:
      return run(static_cast<uint64_t*>(nullptr));
  }
}

void CudaBackend::symmetrize(Tensor a) {
  int64_t n = a.dim(0), tiles = (n + side - 1) / side;
  launch(queue(), symmetrizeKernel, {tiles, tiles}, threads, 0, a.as(), n);
}

void CudaBackend::addDiagonal(Tensor a, double value) {
  int64_t n = a.dim(0);
  launch(queue(), addDiagonalKernel, blocksFor(n), blockSize_, 0, a.as(), n, static_cast<float>(value));
}

void CudaBackend::addToDiagonal(Tensor a, Tensor values, double alpha) {
  int64_t n = a.dim(0);
  launch(queue(), addToDiagonalKernel, blocksFor(n), blockSize_, 0, a.as(), n, values.as(), static_cast<float>(alpha));
}

void CudaBackend::diagonal(Tensor a, Tensor out) {
  int64_t n = a.dim(0);
  launch(queue(), diagonalKernel, blocksFor(n), blockSize_, 0, a.as(), n, out.as());
}

}  // namespace alps
