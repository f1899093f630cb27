// Purpose: the loops of kernels_factor.h. Included by kernels/all.inl in a namespace of its own.
#include "cpu/kernels/vectors.inl"

// What the registers hold: sums, a row of a panel and one number of the left factor.
static constexpr int64_t productVectors = 3, productRows = floatLanes == 16 ? 8 : 4;

template <int rows, int vectors>
static inline __attribute__((always_inline)) void productBlock(int64_t columns, int64_t k, const float* a,
                                                               int64_t rowStride, int64_t kStride, const float* panel,
                                                               float alpha, bool add, float* c, int64_t ldc) {
  constexpr int64_t lanes = floatLanes;
  Floats sums[rows][vectors];
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < vectors; v++) {
      sums[i][v] = Floats{};
      if (add) __builtin_prefetch(c + i * ldc + v * lanes, 1);
    }
  for (int64_t p = 0; p < k; p++, a += kStride, panel += panelColumns) {
    Floats b[vectors];
    for (int v = 0; v < vectors; v++) b[v] = load(panel + v * lanes);
    for (int i = 0; i < rows; i++) {
      float left = a[i * rowStride];
      for (int v = 0; v < vectors; v++) sums[i][v] += left * b[v];
    }
  }
  if (columns == vectors * lanes) {
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
      for (int v = 0; v < vectors; v++) {
        float* out = c + i * ldc + v * lanes;
        store(add ? load(out) + alpha * sums[i][v] : alpha * sums[i][v], out);
      }
    return;
  }
  alignas(64) float part[rows][vectors * lanes];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) store(alpha * sums[i][v], part[i] + v * lanes);
  for (int i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) c[i * ldc + j] = add ? c[i * ldc + j] + part[i][j] : part[i][j];
}

template <int rows, int vectors>
static void productRowsOf(int64_t columns, int64_t k, const float* a, int64_t rowStride, int64_t kStride,
                          const float* panel, float alpha, bool add, float* c, int64_t ldc) {
  if (rowStride == 1)  // as in a panel
    productBlock<rows, vectors>(columns, k, a, 1, kStride, panel, alpha, add, c, ldc);
  else
    productBlock<rows, vectors>(columns, k, a, rowStride, kStride, panel, alpha, add, c, ldc);
}

template <int vectors>
static void productColumns(int64_t rows, int64_t columns, int64_t k, const float* a, int64_t rowStride, int64_t kStride,
                           const float* panel, float alpha, bool add, float* c, int64_t ldc) {
  int64_t i = 0;
  for (; i + productRows <= rows; i += productRows)
    productRowsOf<productRows, vectors>(columns, k, a + i * rowStride, rowStride, kStride, panel, alpha, add,
                                        c + i * ldc, ldc);
  for (; i < rows; i++)
    productRowsOf<1, vectors>(columns, k, a + i * rowStride, rowStride, kStride, panel, alpha, add, c + i * ldc, ldc);
}

static void product(int64_t rows, int64_t columns, int64_t k, const float* a, int64_t rowStride, int64_t kStride,
                    const float* panel, float alpha, bool add, float* c, int64_t ldc) {
  constexpr int64_t lanes = floatLanes, width = productVectors * lanes;
  for (; columns > 0; columns -= width, panel += width, c += width) {
    if (columns > 2 * lanes)
      productColumns<3>(rows, columns < width ? columns : width, k, a, rowStride, kStride, panel, alpha, add, c, ldc);
    else if (columns > lanes)
      productColumns<2>(rows, columns, k, a, rowStride, kStride, panel, alpha, add, c, ldc);
    else
      productColumns<1>(rows, columns, k, a, rowStride, kStride, panel, alpha, add, c, ldc);
  }
}

static void pack(float* a, int64_t lda, int64_t rows, int64_t columns, float* panel, bool clears) {
  for (int64_t i = 0; i < rows; i++, a += lda, panel += panelColumns) {
    int64_t j = 0;
    if (columns == panelColumns) {
      for (; j < panelColumns; j += floatLanes) store(load(a + j), panel + j);
      if (clears)
        for (j = 0; j < panelColumns; j += floatLanes) store(Floats{}, a + j);
    }
    for (; j < columns; j++) {
      panel[j] = a[j];
      if (clears) a[j] = 0;
    }
  }
}

typedef float Leaf[leafRows][leafRows];

static int64_t factorLeaf(float* a, int64_t lda, int64_t n) {
  constexpr int64_t lanes = floatLanes;
  alignas(64) Leaf u;
  for (int64_t i = 0; i < n; i++) {
    for (int64_t j = n; j < leafRows; j++) u[i][j] = 0;
    __builtin_memcpy(u[i] + i, a + i * lda + i, static_cast<size_t>(n - i) * sizeof(float));
    for (int64_t j = i / lanes * lanes; j < i; j++) u[i][j] = 0;
  }
  for (int64_t c = 0; c < n; c++) {
    if (!(u[c][c] > 0 && u[c][c] < __builtin_inff())) return c + 1;
    float scale = 1 / __builtin_sqrtf(u[c][c]);
    int64_t first = c / lanes * lanes;
    for (int64_t j = first; j < leafRows; j += lanes) store(load(u[c] + j) * scale, u[c] + j);
    for (int64_t i = c + 1; i < n; i++) {
      float factor = u[c][i];
      for (int64_t j = i / lanes * lanes; j < leafRows; j += lanes)
        store(load(u[i] + j) - factor * load(u[c] + j), u[i] + j);
    }
  }
  for (int64_t i = 0; i < n; i++)
    __builtin_memcpy(a + i * lda + i, u[i] + i, static_cast<size_t>(n - i) * sizeof(float));
  return 0;
}

static int64_t invertLeaf(const float* l, int64_t rowStride, int64_t columnStride, float* x, int64_t ldx, int64_t n) {
  constexpr int64_t lanes = floatLanes;
  alignas(64) Leaf rows;
  for (int64_t i = 0; i < n; i++) {
    for (int64_t j = 0; j < leafRows; j++) rows[i][j] = 0;
    rows[i][i] = 1;
  }
  for (int64_t c = 0; c < n; c++) {
    float pivot = l[c * (rowStride + columnStride)];
    if (pivot == 0) return c + 1;
    for (int64_t j = 0; j <= c; j += lanes) store(load(rows[c] + j) * (1 / pivot), rows[c] + j);
    for (int64_t i = c + 1; i < n; i++) {
      float factor = l[i * rowStride + c * columnStride];
      for (int64_t j = 0; j <= c; j += lanes) store(load(rows[i] + j) - factor * load(rows[c] + j), rows[i] + j);
    }
  }
  for (int64_t i = 0; i < n; i++) __builtin_memcpy(x + i * ldx, rows[i], static_cast<size_t>(n) * sizeof(float));
  return 0;
}

// ---- turning

#if defined(__AVX512F__)
static constexpr int64_t turned = 16;
static constexpr __mmask16 all = 0xffff;  // without masks GCC 12 warns of the intrinsics' own code

template <bool past>
static inline __attribute__((always_inline)) void turnSquare(const float* a, int64_t lda, float* out, int64_t ldOut) {
  __m512 x[16], y[16];
  // In each quarter of 4 lanes, squares of 4 by 4 first, then the quarters among themselves.
  for (int i = 0; i < 16; i++) x[i] = _mm512_loadu_ps(a + i * lda);
  for (int i = 0; i < 16; i += 4) {
    __m512 low = _mm512_maskz_unpacklo_ps(all, x[i], x[i + 1]), high = _mm512_maskz_unpackhi_ps(all, x[i], x[i + 1]);
    __m512 low2 = _mm512_maskz_unpacklo_ps(all, x[i + 2], x[i + 3]),
           high2 = _mm512_maskz_unpackhi_ps(all, x[i + 2], x[i + 3]);
    y[i] = _mm512_maskz_shuffle_ps(all, low, low2, 0x44);
    y[i + 1] = _mm512_maskz_shuffle_ps(all, low, low2, 0xee);
    y[i + 2] = _mm512_maskz_shuffle_ps(all, high, high2, 0x44);
    y[i + 3] = _mm512_maskz_shuffle_ps(all, high, high2, 0xee);
  }
  auto put = [](float* to, __m512 v) { past ? _mm512_stream_ps(to, v) : _mm512_storeu_ps(to, v); };
  for (int i = 0; i < 4; i++) {
    __m512 even = _mm512_maskz_shuffle_f32x4(all, y[i], y[i + 4], 0x88),
           odd = _mm512_maskz_shuffle_f32x4(all, y[i], y[i + 4], 0xdd);
    __m512 even2 = _mm512_maskz_shuffle_f32x4(all, y[i + 8], y[i + 12], 0x88),
           odd2 = _mm512_maskz_shuffle_f32x4(all, y[i + 8], y[i + 12], 0xdd);
    put(out + i * ldOut, _mm512_maskz_shuffle_f32x4(all, even, even2, 0x88));
    put(out + (i + 4) * ldOut, _mm512_maskz_shuffle_f32x4(all, odd, odd2, 0x88));
    put(out + (i + 8) * ldOut, _mm512_maskz_shuffle_f32x4(all, even, even2, 0xdd));
    put(out + (i + 12) * ldOut, _mm512_maskz_shuffle_f32x4(all, odd, odd2, 0xdd));
  }
}
#elif defined(__AVX2__)
static constexpr int64_t turned = 8;

template <bool past>
static inline __attribute__((always_inline)) void turnSquare(const float* a, int64_t lda, float* out, int64_t ldOut) {
  __m256 x[8], y[8];
  for (int i = 0; i < 8; i++) x[i] = _mm256_loadu_ps(a + i * lda);
  for (int i = 0; i < 8; i += 4) {
    __m256 low = _mm256_unpacklo_ps(x[i], x[i + 1]), high = _mm256_unpackhi_ps(x[i], x[i + 1]);
    __m256 low2 = _mm256_unpacklo_ps(x[i + 2], x[i + 3]), high2 = _mm256_unpackhi_ps(x[i + 2], x[i + 3]);
    y[i] = _mm256_shuffle_ps(low, low2, 0x44);
    y[i + 1] = _mm256_shuffle_ps(low, low2, 0xee);
    y[i + 2] = _mm256_shuffle_ps(high, high2, 0x44);
    y[i + 3] = _mm256_shuffle_ps(high, high2, 0xee);
  }
  auto put = [](float* to, __m256 v) { past ? _mm256_stream_ps(to, v) : _mm256_storeu_ps(to, v); };
  for (int i = 0; i < 4; i++) {
    put(out + i * ldOut, _mm256_permute2f128_ps(y[i], y[i + 4], 0x20));
    put(out + (i + 4) * ldOut, _mm256_permute2f128_ps(y[i], y[i + 4], 0x31));
  }
}
#else
static constexpr int64_t turned = 4;

template <bool past>
static inline void turnSquare(const float* a, int64_t lda, float* out, int64_t ldOut) {
  for (int64_t j = 0; j < turned; j++)
    for (int64_t i = 0; i < turned; i++) out[j * ldOut + i] = a[i * lda + j];
}
#endif

template <bool past>
static void turnSquares(const float* a, int64_t lda, int64_t rows, int64_t columns, float* out, int64_t ldOut) {
  for (int64_t j = 0; j < columns; j += turned)
    for (int64_t i = 0; i < rows; i += turned) turnSquare<past>(a + i * lda + j, lda, out + j * ldOut + i, ldOut);
}

static void turn(const float* a, int64_t lda, int64_t rows, int64_t columns, float* out, int64_t ldOut,
                 [[maybe_unused]] bool past) {
  int64_t wholeRows = rows / turned * turned, wholeColumns = columns / turned * turned;
#if defined(__AVX2__)
  if (past && reinterpret_cast<uintptr_t>(out) % (4 * turned) == 0 && ldOut % turned == 0) {
    turnSquares<true>(a, lda, wholeRows, wholeColumns, out, ldOut);
    _mm_sfence();
  } else {
    turnSquares<false>(a, lda, wholeRows, wholeColumns, out, ldOut);
  }
#else
  turnSquares<false>(a, lda, wholeRows, wholeColumns, out, ldOut);
#endif
  for (int64_t j = 0; j < columns; j++)
    for (int64_t i = j < wholeColumns ? wholeRows : 0; i < rows; i++) out[j * ldOut + i] = a[i * lda + j];
}

static const FactorKernels factorTable = {product, pack, factorLeaf, invertLeaf, turn};
