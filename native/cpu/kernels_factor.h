// Loops of the Cholesky factor and inverse, and the turning of blocks; see cpu/kernels.h.
#pragma once
#include <cstddef>
#include <cstdint>

namespace alps {

// Columns of a panel [k, panelColumns], the right factor of a product.
constexpr int64_t panelColumns = 48;
// Rows of a leaf at most: a vector of the widest set.
constexpr int64_t leafRows = 16;

struct FactorKernels {
  // c [rows, columns] (+)= alpha Σ_p a(i, p) panel(p, j), p < k; a(i, p) is at a + i rowStride + p kStride. It is a sum
  // only where `add`. Up to panelColumns columns; a panel's entries behind them may be anything.
  void (*product)(int64_t rows, int64_t columns, int64_t k, const float* a, int64_t rowStride, int64_t kStride,
                  const float* panel, float alpha, bool add, float* c, int64_t ldc);
  // panel := a [rows, columns]; a := 0 where `clears`.
  void (*pack)(float* a, int64_t lda, int64_t rows, int64_t columns, float* panel, bool clears);
  // Upper triangle of a [n, n] := upper factor U with a = UᵀU; what is below may change. Returns the failing pivot,
  // counted from 1, or 0.
  int64_t (*factorLeaf)(float* a, int64_t lda, int64_t n);
  // x [n, n] := inverse of a lower triangle, zeros above; l(i, j) is at l + i rowStride + j columnStride. Returns where
  // the diagonal is 0, counted from 1, or 0.
  int64_t (*invertLeaf)(const float* l, int64_t rowStride, int64_t columnStride, float* x, int64_t ldx, int64_t n);
  // out [columns, rows] := a [rows, columns] turned; `past`: past the caches, where out is larger than they are.
  void (*turn)(const float* a, int64_t lda, int64_t rows, int64_t columns, float* out, int64_t ldOut, bool past);
};

}  // namespace alps
