// Loops of the projection, the ADMM pass and the conjugate gradient; see cpu/kernels.h.
//
// Scores are ranked by the bits of |x| read as an integer, called magnitude bits here: that is the order of the
// numbers, −0 equals 0, subnormals are told apart, and a NaN ranks above infinity.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>  // for kernels/pruning.inl, which stands inside a namespace
#endif

#include "core/tensor.h"

namespace alps {

// Rows and columns of a tile of a packed gram[S, S].
constexpr size_t supportTile = 16;
constexpr size_t inTiles(size_t size) { return (size + supportTile - 1) / supportTile; }
constexpr size_t packedNumbers(size_t size) {
  return inTiles(size) * (inTiles(size) + 1) / 2 * supportTile * supportTile;
}

// Rows that SparseGPT sweeps side by side, and columns at a time.
constexpr int64_t sweepRows = 32, sweepColumns = 8;

struct PruningKernels {
  // ---- top-k
  // bins[(bits − low) >> shift]++ for every magnitude in [low, low + width].
  void (*histogram)(const float* x, size_t n, uint32_t low, uint32_t width, int shift, uint32_t* bins);
  // Appends the magnitudes in [low, high] to inside and returns their number; *above += number of larger ones. inside
  // needs room for n + 16 values.
  size_t (*collect)(const float* x, size_t n, uint32_t low, uint32_t high, float* inside, uint32_t* above);
  // Number of magnitudes whose bits are above.
  size_t (*countAbove)(const float* x, size_t n, int32_t above);
  // Largest bits of a magnitude up to some; −1 when there is none.
  int32_t (*largestUpTo)(const float* x, size_t n, int32_t most);
  // Number of magnitudes equal to bits.
  size_t (*countEqual)(const float* x, size_t n, uint32_t bits);
  // mask = magnitude bits > above. −1 keeps all, INT32_MAX none.
  void (*maskAbove)(const float* x, uint8_t* mask, int32_t above, size_t n);
  // In each `group` consecutive values, 1 for the `kept` largest, ties to the lower index. group divides n.
  void (*groupMask)(const float* x, uint8_t* mask, size_t n, int64_t kept, int64_t group);
  // Number of entries that differ; previous := mask.
  size_t (*countChanges)(const uint8_t* mask, uint8_t* previous, size_t n);

  // ---- ADMM
  // S = ω(B₀ + step) + (mask ? (1 − ω)S : S), ω the relaxation.
  void (*admmState)(const float* step, const float* base, float* state, const uint8_t* mask, float relaxation,
                    size_t n);
  void (*admmY)(const float* base, const float* state, const uint8_t* mask, float* y,
                size_t n);  // Y = (mask ? S : −S) − B₀
  void (*admmY16)(const float* base, const float* state, const uint8_t* mask, bf16_t* y, size_t n);
  void (*scaleOffMask)(float* state, const uint8_t* mask, float factor, size_t n);

  // ---- conjugate gradient
  // x += alpha * direction; residual −= alpha * q on the mask.
  void (*cgUpdate)(const float* q, const float* direction, const uint8_t* mask, float alpha, float* x, float* residual,
                   size_t n);
  // The lower triangle of gram[S, S] for S = support[0 .. size), ascending, as supportTimes reads it: `stride` =
  // columns of gram, packed has room for packedNumbers(size).
  void (*packSupport)(const float* gram, size_t stride, const uint32_t* support, size_t size, float* packed);
  // q = gram[S, S]·p; p and q have room for whole tiles, p zeros behind its end, q too afterwards.
  void (*supportTimes)(const float* packed, size_t size, const float* p, float* q);

  // ---- SparseGPT
  // out = x / y
  void (*ratios)(const float* x, const float* y, float* out, size_t n);
  // The first `columns`, up to sweepColumns, of a block of `rest`, for all rows of a tile: weights [rest, sweepRows],
  // pruned all ones or 0 for each, `upper` [rest, rest] of the block in rows of `stride`. errors [columns, sweepRows]
  // := weight / pivot where pruned, else 0; what they leave is taken from the weights behind, the pruned ones are 0.
  void (*sweep)(float* weights, const uint32_t* pruned, const float* upper, size_t stride, size_t columns, size_t rest,
                float* errors);
};

}  // namespace alps
