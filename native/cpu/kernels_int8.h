// Loops of products of 8-bit integers; see cpu/kernels.h. A quad is four numbers that follow one another in the sum,
// the first in the lowest byte: what an instruction for such products takes, one factor signed, the other with 128
// added.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace alps {

constexpr int64_t quadColumns = 48;  // width of a panel
constexpr int64_t quadRows = 8;      // rows of one call at most

// Where a product goes, from a row and a column on: rowScale · columnScale · product + diagonal · y. Rows of out and of
// y are `ld` apart.
struct QuadOutput {
  float* out;
  const bf16_t* y;
  int64_t ld;
  const float *rowScale, *columnScale, *diagonal;
  bool adds;  // rowScale · columnScale · product to what is there, and nothing else

  QuadOutput at(int64_t row, int64_t column) const {
    int64_t offset = row * ld + column;
    return {out + offset, y + offset, ld, rowScale + row, columnScale + column, diagonal + column, adds};
  }
};

// Where the product of an ADMM iteration goes, from a row and a column on: with B = base + the product as above, it
// makes the new state ωB + (mask ? (1 − ω) state : state), and stores B where b is set. Rows of y are yLd apart, all
// others ld.
struct QuadUpdate {
  float *state, *b;
  const float* base;
  const uint8_t* mask;
  int64_t ld;
  float relaxation;
  const bf16_t* y = nullptr;
  int64_t yLd = 0;
  const float *rowScale = nullptr, *columnScale = nullptr, *diagonal = nullptr;

  QuadUpdate at(int64_t row, int64_t column) const {
    int64_t offset = row * ld + column;
    return {state + offset,   b ? b + offset : nullptr, base + offset, mask + offset,  ld,
            relaxation,       y + row * yLd + column,   yLd,           rowScale + row, columnScale + column,
            diagonal + column};
  }
};

// Where columns x and d = y − x go as integers: x and, if wanted, d for a left factor, with the sums of the columns,
// and d with 128 added.
struct DifferencePanels {
  const float *xFactors, *factors;  // 0 for a column of zeros
  uint32_t *x, *left, *right;       // left may be null
  int32_t *xSums, *sums;
};

struct Int8Kernels {
  // The largest magnitude in x as the bits of a bfloat16.
  uint16_t (*peak)(const bf16_t* x, size_t n);
  // peaks[j] = the larger of what it was and, likewise, the magnitude of x[j].
  void (*raisePeaks)(const bf16_t* x, size_t n, uint16_t* peaks);
  // out = x · factor, rounded, up to 127, zeros from there to a multiple of 4; returns the sum. All zero for factor =
  // 0, which is that of a row with something that is not finite.
  int32_t (*integers)(const bf16_t* x, float factor, size_t n, int8_t* out);
  // Quads of rows of x · factors [k, columns], rounded, with 128 added, in panels that begin `apart` from one another.
  // A number beyond a byte is cut to one.
  void (*packColumns)(const bf16_t* x, int64_t ld, int64_t k, int64_t columns, const float* factors, uint32_t* panels,
                      int64_t apart);
  // The largest magnitudes of each of at most 48 columns of x and of y − x, as bits of floats.
  void (*differencePeaks)(const bf16_t* x, const bf16_t* y, int64_t ld, int64_t k, int64_t columns, uint32_t* ofX,
                          uint32_t* ofDifference);
  // The same columns as panels of integers by their factors, the last quad filled up with zeros.
  void (*packDifferences)(const bf16_t* x, const bf16_t* y, int64_t ld, int64_t k, int64_t columns,
                          const DifferencePanels& panels);
  // out [rows, columns] of Σ_q a(i, q) · panel(q, j), a's rows `rowBytes` apart and what follows in one quadBytes, with
  // sums[i sumsApart] the sum of a's row, which undoes the 128.
  void (*quads)(int64_t rows, int64_t columns, int64_t quads, const int8_t* a, int64_t rowBytes, int64_t quadBytes,
                const int32_t* sums, int64_t sumsApart, const uint32_t* panel, const QuadOutput& out);
  // The same for an iteration of ADMM; sums are one after the other.
  void (*update)(int64_t rows, int64_t columns, int64_t quads, const int8_t* a, int64_t rowBytes, const int32_t* sums,
                 const uint32_t* panel, const QuadUpdate& out);
};

}  // namespace alps
