// Loops of bfloat16 products; see cpu/kernels.h. A pair is two numbers that follow one another in the sum, the first in
// the low half: what an instruction for bfloat16 products takes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace alps {

// Packed pairs lie in panels, [pairs, width], zeros behind the last column. Rows and columns of one call at most: 24
// vectors of sums.
constexpr int64_t pairColumns = 48, widePairColumns = 64;  // usual width, largest width; multiples of 16
constexpr int64_t pairRows(int64_t columns) { return columns > pairColumns ? 6 : 8; }

// Where a product goes: alpha · product + beta · what is there in float32, or, where `narrow` is set, alpha · product
// in bfloat16. Rows are `ld` apart.
struct PairOutput {
  float* wide;
  bf16_t* narrow;
  int64_t ld;
  float alpha, beta;

  PairOutput at(int64_t row, int64_t column) const {
    int64_t offset = row * ld + column;
    return {wide ? wide + offset : nullptr, narrow ? narrow + offset : nullptr, ld, alpha, beta};
  }
};

struct ProductKernels {
  // out [rows, columns] = Σ_p a(i, p) · panel(p, j). The pair a(i, p) is at a + i rowBytes + p pairBytes. What is there
  // is not read for beta = 0.
  void (*pairs)(int64_t rows, int64_t columns, int64_t pairs, const void* a, int64_t rowBytes, int64_t pairBytes,
                const uint32_t* panel, int64_t width, const PairOutput& out);
  // The columns of x [k, columns], pairs of rows, in panels that begin `apart` from one another.
  void (*packColumns)(const bf16_t* x, int64_t ld, int64_t k, int64_t columns, uint32_t* panels, int64_t width,
                      int64_t apart);
  // The same of x − y, rounded as axpby does.
  void (*packDifferences)(const bf16_t* x, const bf16_t* y, int64_t ld, int64_t k, int64_t columns, uint32_t* panels,
                          int64_t width, int64_t apart);
  // A panel of the rows of x [columns, k], turned.
  void (*packRows)(const bf16_t* x, int64_t ld, int64_t k, int64_t columns, uint32_t* panel, int64_t width);
  // out = exp(x − peak), as exact as bfloat16 needs it, and its sum. First peak becomes the largest x where that is
  // above it. NaN stays NaN.
  float (*exponentials)(const float* x, float* peak, bf16_t* out, size_t n);
  // out = factor x
  void (*scaleTo16)(const float* x, float factor, bf16_t* out, size_t n);
};

}  // namespace alps
