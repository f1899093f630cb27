// Purpose: float32 products on bfloat16 matrix units (split.h); the splitting is bound by memory.
#include "cuda/split.h"
#include "cuda/vectors.h"

namespace alps {

namespace {

// ---- kernels --------------------------------------------------------------------------------------------------------

constexpr int blockThreads = 256;

// high and low [rows, columns], rows ldOut apart, of from, rows ldFrom apart.
template <int N>
__global__ void splitKernel(const float* from, int64_t rows, int64_t columns, int64_t ldFrom, bf16_t* high, bf16_t* low,
                            int64_t ldOut, int across) {
  Place place = placeIn(across);
  int64_t j = place.vector * N;
  if (place.idle || j >= columns) return;
  auto finish = [&](const Vector<float, N>& x, int64_t i) {
    Vector<bf16_t, N> h, l;
#pragma unroll
    for (int k = 0; k < N; k++) {
      h.at[k] = bf16Of(x.at[k]);
      l.at[k] = bf16Of(x.at[k] - floatOf(h.at[k]));
    }
    store<N>(h, high + i * ldOut + j);
    store<N>(l, low + i * ldOut + j);
  };
  for (int64_t i = place.row; i < rows; i += 2 * place.step) {  // two rows at a time, so that their loads overlap
    int64_t next = i + place.step;
    Vector<float, N> x = load<N>(from + i * ldFrom + j), y = x;
    if (next < rows) y = load<N>(from + next * ldFrom + j);
    finish(x, i);
    if (next < rows) finish(y, next);
  }
}

}  // namespace

// ---- launchers ------------------------------------------------------------------------------------------------------

SplitFactor splitFactor(Queue queue, int multiprocessors, const Factor& x, int64_t rows, int64_t columns, Side side,
                        bf16_t* memory) {
  // As it is stored.
  int64_t height = x.transposed ? columns : rows, width = x.transposed ? rows : columns;
  bool acrossColumns = (side == Side::left) != x.transposed;  // whether k runs along the stored rows
  // Along k the left factor is high, low and the right one low, high: their product is high · low + low · high.
  int64_t ld = acrossColumns ? 2 * width : width, other = acrossColumns ? width : height * width;
  bf16_t* high = side == Side::left ? memory : memory + other;
  bf16_t* low = side == Side::left ? memory + other : memory;
  const float* from = static_cast<const float*>(x.data);
  constexpr int N = 4;
  bool fit = rowsAligned<N>(width, from, static_cast<const bf16_t*>(memory)) && x.ld % N == 0;
  withVectors<N>(fit, [&](auto vector) {
    constexpr int W = decltype(vector)::value;
    Tiling tiling = tile(height, width / W, blockThreads, multiprocessors);
    launch(queue, splitKernel<W>, tiling.grid, blockThreads, 0, from, height, width, x.ld, high, low, ld,
           tiling.across);
  });
  return {{memory, ld, x.transposed}, {high, ld, x.transposed}};
}

void multiplySplit(Products& products, int64_t m, int64_t n, int64_t k, float alpha, const SplitFactor& a,
                   const SplitFactor& b, float beta, float* c, int64_t ldc) {
  products.bf16(m, n, 2 * k, alpha, a.both, b.both, beta, c, DType::f32, ldc);  // the small terms first
  products.bf16(m, n, k, alpha, a.high, b.high, 1, c, DType::f32, ldc);
}

}  // namespace alps
