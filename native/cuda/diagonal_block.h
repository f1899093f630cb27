// The Cholesky factor and the inverse of a small matrix in shared memory, by one block of 256 threads: what is left of
// a blocked factorisation once all else is products.
//
// The matrix is cut into leaves of 32. One warp factors a leaf on the diagonal and inverts it, a row a lane, in
// registers; the other leaves are products of leaves, by all threads.
#pragma once
#include <cmath>

#include "cuda/platform.h"

namespace alps {

constexpr int leafSize = 32;
constexpr int diagonalThreads = 256;  // 16 × 16 threads, each with 2 × 2 numbers of a leaf

// Shared memory of a matrix of leaves × leaves leaves. `lower` is row-major: L on and below the diagonal; above it, in
// the leaves off the diagonal, the transpose of L⁻¹. `inverses` holds L⁻¹'s leaves on the diagonal, whole.
template <int leaves>
struct DiagonalBlock {
  static constexpr int size = leaves * leafSize;
  static constexpr int ld = size + 1, leafLd = leafSize + 1;  // odd: threads that walk down a column meet no bank twice
  static constexpr int count = size * ld + leaves * leafSize * leafLd;

  float* lower;
  float* inverses;
  __device__ explicit DiagonalBlock(float* memory) : lower(memory), inverses(memory + size * ld) {}

  // An element of L⁻¹.
  __device__ float inverse(int row, int column) const {
    if (row / leafSize == column / leafSize)
      return inverses[(row / leafSize * leafSize + row % leafSize) * leafLd + column % leafSize];
    return row > column ? lower[column * ld + row] : 0.0f;
  }

  // A leaf to be multiplied: element (row, column) is data[row * rowStep + column * columnStep].
  struct Leaf {
    const float* data;
    int rowStep, columnStep;
  };
  __device__ Leaf lowerLeaf(int i, int j) const { return {lower + i * leafSize * ld + j * leafSize, ld, 1}; }
  __device__ Leaf inverseLeaf(int i, int j) const {
    if (i == j) return {inverses + i * leafSize * leafLd, leafLd, 1};
    return {lower + j * leafSize * ld + i * leafSize, 1, ld};
  }
  static __device__ Leaf transposed(Leaf x) { return {x.data, x.columnStep, x.rowStep}; }

  // Threads' shares of a leaf: rows y and y + 16, columns x and x + 16.
  struct Sums {
    float at[2][2] = {{0, 0}, {0, 0}};
  };
  static __device__ void multiply(Sums& sums, Leaf a, Leaf b) {
    int y = static_cast<int>(threadIdx.x) / 16, x = static_cast<int>(threadIdx.x) % 16;
    const float *a0 = a.data + y * a.rowStep, *a1 = a0 + 16 * a.rowStep;
    const float *b0 = b.data + x * b.columnStep, *b1 = b0 + 16 * b.columnStep;
#pragma unroll 8
    for (int k = 0; k < leafSize; k++) {
      float left[2] = {a0[k * a.columnStep], a1[k * a.columnStep]};
      float right[2] = {b0[k * b.rowStep], b1[k * b.rowStep]};
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) sums.at[i][j] += left[i] * right[j];
    }
  }
  template <typename Use>
  static __device__ void each(const Sums& sums, const Use& use) {
    int y = static_cast<int>(threadIdx.x) / 16, x = static_cast<int>(threadIdx.x) % 16;
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < 2; j++) use(y + 16 * i, x + 16 * j, sums.at[i][j]);
  }

  // One warp: the leaf (k, k) := its Cholesky factor. Returns the first pivot that is not positive and finite, counted
  // from 1 in the leaf, or 0; what comes after such a one is garbage.
  __device__ int factorLeaf(int k) {
    int lane = static_cast<int>(threadIdx.x) % 32, failed = 0;
    float* row = lower + (k * leafSize + lane) * ld + k * leafSize;
    float x[leafSize];
#pragma unroll
    for (int j = 0; j < leafSize; j++) x[j] = row[j];
#pragma unroll
    for (int j = 0; j < leafSize; j++) {
      float pivot = __shfl_sync(0xffffffffu, x[j], j);
      if (failed == 0 && !(pivot > 0 && pivot < INFINITY)) failed = j + 1;
      // 1 / √pivot to the last digit or two: what the columns wait for, so no division and no root.
      float inverseRoot = rsqrtf(pivot);
      inverseRoot *= 1.5f - 0.5f * pivot * inverseRoot * inverseRoot;
      x[j] *= inverseRoot;  // pivot / √pivot on the diagonal
#pragma unroll
      for (int c = j + 1; c < leafSize; c++) x[c] -= x[j] * __shfl_sync(0xffffffffu, x[j], c);
    }
#pragma unroll
    for (int j = 0; j < leafSize; j++)
      if (j <= lane) row[j] = x[j];
    __syncwarp();
    return failed;
  }

  // One warp: the inverse of L's leaf (k, k), zeros above, a column a lane. Returns whether its diagonal has a zero.
  __device__ bool invertLeaf(int k) {
    int lane = static_cast<int>(threadIdx.x) % 32;
    const float* leaf = lower + k * leafSize * ld + k * leafSize;
    float x[leafSize];
    float pivot = leaf[lane * ld + lane], reciprocal = 1.0f / pivot;
    bool zero = __any_sync(0xffffffffu, pivot == 0);
#pragma unroll
    for (int i = 0; i < leafSize; i++) {
      float sum = i == lane ? 1.0f : 0.0f;
#pragma unroll
      for (int j = 0; j < i; j++) sum -= leaf[i * ld + j] * x[j];
      sum *= __shfl_sync(0xffffffffu, reciprocal, i);
      x[i] = i < lane ? 0.0f : sum;
      inverses[(k * leafSize + i) * leafLd + lane] = x[i];
    }
    return zero;
  }

  // All threads, with L's leaves (i, j ≤ i) and the rows before i of its inverse there: row i of the inverse.
  __device__ void invertRow(int i) {
    for (int j = 0; j < i; j++) {
      Sums sums;
      for (int l = j; l < i; l++) multiply(sums, lowerLeaf(i, l), inverseLeaf(l, j));
      each(sums, [&](int r, int c, float sum) { lower[(j * leafSize + c) * ld + i * leafSize + r] = sum; });
    }
    __syncthreads();
    Sums sums[leaves];
#pragma unroll
    for (int j = 0; j < leaves; j++)
      if (j < i) multiply(sums[j], inverseLeaf(i, i), inverseLeaf(i, j));
    __syncthreads();
#pragma unroll
    for (int j = 0; j < leaves; j++)
      if (j < i)
        each(sums[j], [&](int r, int c, float sum) { lower[(j * leafSize + c) * ld + i * leafSize + r] = -sum; });
    __syncthreads();
  }

  // All threads: `lower`, whose lower triangle is a symmetric matrix, := its factor, and the inverse. Returns, in the
  // first thread, the first failing pivot, counted from 1, or 0.
  __device__ int factor() {
    bool first = threadIdx.x < 32;
    int failed = 0;
    for (int k = 0; k < leaves; k++) {
      if (first) {
        int pivot = factorLeaf(k);
        if (failed == 0 && pivot > 0) failed = k * leafSize + pivot;
        invertLeaf(k);
      }
      __syncthreads();
      // The leaves below: A := A L⁻ᵀ.
      Sums panel[leaves];
#pragma unroll
      for (int i = 1; i < leaves; i++)
        if (i > k) multiply(panel[i], lowerLeaf(i, k), transposed(inverseLeaf(k, k)));
      __syncthreads();
#pragma unroll
      for (int i = 1; i < leaves; i++)
        if (i > k)
          each(panel[i], [&](int r, int c, float sum) { lower[(i * leafSize + r) * ld + k * leafSize + c] = sum; });
      __syncthreads();
      // What is left: A −= L Lᵀ. (A leaf on the diagonal is written whole: what is above the diagonal is not read.)
      for (int i = k + 1; i < leaves; i++)
        for (int j = k + 1; j <= i; j++) {
          Sums sums;
          multiply(sums, lowerLeaf(i, k), transposed(lowerLeaf(j, k)));
          each(sums, [&](int r, int c, float sum) { lower[(i * leafSize + r) * ld + j * leafSize + c] -= sum; });
        }
      __syncthreads();
    }
    for (int i = 1; i < leaves; i++) invertRow(i);
    return failed;
  }

  // All threads: the inverse of the factor in `lower`. Returns, in threads of the first warp, whether the diagonal has
  // a zero.
  __device__ bool invert() {
    bool zero = false;
    if (threadIdx.x < 32)
      for (int k = 0; k < leaves; k++) zero |= invertLeaf(k);
    __syncthreads();
    for (int i = 1; i < leaves; i++) invertRow(i);
    return zero;
  }
};

}  // namespace alps
