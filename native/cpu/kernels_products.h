// Loops of bfloat16 products; see cpu/kernels.h. A pair is two numbers that follow one another in the sum, the first in
// the low half: what an instruction for bfloat16 products takes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace alps {

// Packed pairs lie in panels, [pairs, width], zeros behind the last column. Rows and columns of one call at most: 24
// vectors of sums.
constexpr int64_t pairColumns = 48, widePairColumns = 64;  // usual width, largest width
constexpr int64_t pairRows(int64_t columns) { return columns > pairColumns ? 6 : 8; }

struct ProductKernels {
  // c [rows, columns] = alpha Σ_p a(i, p) · panel(p, j) + beta c, in float32. The pair a(i, p) is at a + i rowBytes + p
  // pairBytes; rows of c are ldc apart. c is not read for beta = 0.
  void (*pairs)(int64_t rows, int64_t columns, int64_t pairs, const void* a, int64_t rowBytes, int64_t pairBytes,
                const uint32_t* panel, int64_t width, float alpha, float beta, float* c, int64_t ldc);
  // A panel of the columns of x [k, columns], or of x − minus, rounded as axpby does: pairs of rows. minus may be null.
  void (*packColumns)(const bf16_t* x, const bf16_t* minus, int64_t ld, int64_t k, int64_t columns, uint32_t* panel,
                      int64_t width);
  // A panel of the rows of x [columns, k], turned.
  void (*packRows)(const bf16_t* x, int64_t ld, int64_t k, int64_t columns, uint32_t* panel, int64_t width);
  // out = exp(x − peak), as exact as bfloat16 needs it, and its sum. First peak becomes the largest x where that is
  // above it. NaN stays NaN.
  float (*exponentials)(const float* x, float* peak, bf16_t* out, size_t n);
  // out = factor x
  void (*scaleTo16)(const float* x, float factor, bf16_t* out, size_t n);
};

}  // namespace alps
