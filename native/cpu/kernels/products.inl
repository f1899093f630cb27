// Purpose: the loops of kernels_products.h. Included in the namespace of a set that has them.
#include "cpu/kernels/vectors.inl"

#if defined(__AVX512BF16__)

// pair(l, j, mask) is a vector of pairs of rows l and l + 1, of the columns from j on that the mask has.
template <typename Pair>
static inline __attribute__((always_inline)) void packPairs(int64_t k, int64_t columns, uint32_t* panels, int64_t width,
                                                            int64_t apart, const Pair& pair) {
  for (int64_t l = 0; l < k; l += 2, panels += width) {
    uint32_t* panel = panels;
    for (int64_t j = 0; j < columns; j += width, panel += apart)
      for (int64_t v = 0; v < width; v += 16) {
        int64_t left = columns - j - v;
        __mmask16 mask = static_cast<__mmask16>(left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0);
        _mm512_storeu_si512(panel + v, pair(l, j + v, mask));
      }
  }
}

static inline __m512i wideWords(__mmask16 mask, const bf16_t* from) {
  return _mm512_maskz_cvtepu16_epi32(mask, _mm256_maskz_loadu_epi16(mask, from));
}

static void packColumns(const bf16_t* x, int64_t ld, int64_t k, int64_t columns, uint32_t* panels, int64_t width,
                        int64_t apart) {
  packPairs(k, columns, panels, width, apart, [&](int64_t l, int64_t j, __mmask16 mask) {
    __m512i even = wideWords(mask, x + l * ld + j);
    if (l + 1 == k) return even;
    return _mm512_or_si512(even, _mm512_maskz_slli_epi32(mask, wideWords(mask, x + (l + 1) * ld + j), 16));
  });
}

static void packDifferences(const bf16_t* x, const bf16_t* y, int64_t ld, int64_t k, int64_t columns, uint32_t* panels,
                            int64_t width, int64_t apart) {
  // Both rows of a pair are rounded by one instruction, the first into the low half, and then interleaved.
  alignas(64) static constexpr uint16_t turns[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i turn = _mm512_load_si512(turns);
  packPairs(k, columns, panels, width, apart, [&](int64_t l, int64_t j, __mmask16 mask) {
    auto number = [&](const bf16_t* from) {
      return reinterpret_cast<__m512>(_mm512_maskz_slli_epi32(mask, wideWords(mask, from), 16));
    };
    auto row = [&](int64_t i) {
      return i < k ? _mm512_sub_ps(number(x + i * ld + j), number(y + i * ld + j)) : _mm512_setzero_ps();
    };
    __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(row(l + 1), row(l)));
    return _mm512_maskz_permutexvar_epi16(~__mmask32{0}, turn, both);
  });
}

#else

static void packColumns(const bf16_t* x, int64_t ld, int64_t k, int64_t columns, uint32_t* panels, int64_t width,
                        int64_t apart) {
  for (int64_t l = 0; l < k; l += 2, panels += width)
    for (int64_t j = 0; j < (columns + width - 1) / width * width; j++) {
      auto bits = [&](int64_t i) { return i < k && j < columns ? uint32_t{x[i * ld + j].bits} : 0; };
      panels[j / width * apart + j % width] = bits(l) | bits(l + 1) << 16;
    }
}

static void packDifferences(const bf16_t* x, const bf16_t* y, int64_t ld, int64_t k, int64_t columns, uint32_t* panels,
                            int64_t width, int64_t apart) {
  bf16_t differences[2 * widePairColumns];
  for (int64_t l = 0; l < k; l += 2, panels += width)
    for (int64_t j = 0; j < columns; j += width) {
      int64_t rows = k - l < 2 ? k - l : 2, count = columns - j < width ? columns - j : width;
      for (int64_t i = 0; i < rows * count; i++) {
        int64_t at = (l + i / count) * ld + j + i % count;
        differences[i] = f32ToBf16(bf16ToF32(x[at]) - bf16ToF32(y[at]));
      }
      packColumns(differences, count, rows, count, panels + j / width * apart, width, apart);
    }
}

#endif

static void packRows(const bf16_t* x, int64_t ld, int64_t k, int64_t columns, uint32_t* panel, int64_t width) {
  int64_t whole = k / 2, pairs = (k + 1) / 2;
#if defined(__AVX512BF16__)
  const __m512i lanes = _mm512_mullo_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), _mm512_set1_epi64(ld));
  for (int64_t p = 0; p < whole; p++)
    for (int64_t j = 0; j < columns; j += 8) {
      __mmask8 mask = static_cast<__mmask8>(columns - j < 8 ? (1 << (columns - j)) - 1 : 0xff);
      __m256i gathered =
          _mm512_mask_i64gather_epi32(_mm256_setzero_si256(), mask, lanes, x + j * ld + 2 * p, sizeof *x);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel + p * width + j), gathered);
    }
#else
  constexpr int64_t block = 16;  // pairs of a row together, a line of the cache
  for (int64_t first = 0; first < pairs; first += block) {
    int64_t end = first + block < whole ? first + block : whole;
    for (int64_t j = 0; j < columns; j++) {
      const bf16_t* row = x + j * ld;
      for (int64_t p = first; p < end; p++) __builtin_memcpy(panel + p * width + j, row + 2 * p, sizeof *panel);
    }
  }
#endif
  if (whole < pairs)
    for (int64_t j = 0; j < columns; j++) panel[whole * width + j] = x[j * ld + k - 1].bits;
  for (int64_t p = 0; p < pairs; p++)
    for (int64_t j = columns; j < width; j++) panel[p * width + j] = 0;
}

#if defined(__AVX512BF16__)

template <int rows, int vectors>
static void pairBlock(int64_t pairs, const char* a, int64_t rowBytes, int64_t pairBytes, const uint32_t* panel,
                      int64_t width, __mmask16 last, const PairOutput& out) {
  __m512 sums[rows][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) sums[i][v] = _mm512_setzero_ps();
  // What is added to, or stored to, comes meanwhile.
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < vectors; v++) {
      int64_t at = i * out.ld + 16 * v;
      out.narrow ? __builtin_prefetch(out.narrow + at, 1) : __builtin_prefetch(out.wide + at, 1);
    }
  for (int64_t p = 0; p < pairs; p++, a += pairBytes, panel += width) {
    __m512bh b[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) b[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panel + 16 * v));
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      int pair;
      __builtin_memcpy(&pair, a + i * rowBytes, sizeof pair);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++)
        sums[i][v] = _mm512_dpbf16_ps(sums[i][v], reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)), b[v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
      int64_t at = i * out.ld + 16 * v;
      __mmask16 mask = v + 1 < vectors ? __mmask16(0xffff) : last;
      __m512 result = _mm512_mul_ps(sums[i][v], _mm512_set1_ps(out.alpha));
      if (out.narrow) {
        _mm256_mask_storeu_epi16(out.narrow + at, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(result)));
        continue;
      }
      if (out.beta != 0)
        result = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, out.wide + at), _mm512_set1_ps(out.beta), result);
      _mm512_mask_storeu_ps(out.wide + at, mask, result);
    }
}

template <int rows>
static void pairRowBlock(int64_t columns, int64_t pairs, const char* a, int64_t rowBytes, int64_t pairBytes,
                         const uint32_t* panel, int64_t width, const PairOutput& out) {
  __mmask16 last = static_cast<__mmask16>(0xffff >> (-columns & 15));
  if constexpr (rows <= pairRows(widePairColumns))
    if (columns > pairColumns) return pairBlock<rows, 4>(pairs, a, rowBytes, pairBytes, panel, width, last, out);
  if (columns > 32)
    pairBlock<rows, 3>(pairs, a, rowBytes, pairBytes, panel, width, last, out);
  else if (columns > 16)
    pairBlock<rows, 2>(pairs, a, rowBytes, pairBytes, panel, width, last, out);
  else
    pairBlock<rows, 1>(pairs, a, rowBytes, pairBytes, panel, width, last, out);
}

static void pairProduct(int64_t rows, int64_t columns, int64_t pairs, const void* a, int64_t rowBytes,
                        int64_t pairBytes, const uint32_t* panel, int64_t width, const PairOutput& out) {
  static constexpr decltype(&pairRowBlock<1>) blocks[pairRows(1)] = {
      pairRowBlock<1>, pairRowBlock<2>, pairRowBlock<3>, pairRowBlock<4>,
      pairRowBlock<5>, pairRowBlock<6>, pairRowBlock<7>, pairRowBlock<8>,
  };
  blocks[rows - 1](columns, pairs, static_cast<const char*>(a), rowBytes, pairBytes, panel, width, out);
}

// Two vectors at a time, take(low, high, i, mask); −infinity in the lanes past the end.
template <typename Take>
static inline __attribute__((always_inline)) void vectorPairs(const float* x, size_t n, const Take& take) {
  size_t i = 0;
  for (; i + 32 <= n; i += 32) take(_mm512_loadu_ps(x + i), _mm512_loadu_ps(x + i + 16), i, ~__mmask32{0});
  if (i == n) return;
  __mmask32 mask = (__mmask32{1} << (n - i)) - 1;
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  take(_mm512_mask_loadu_ps(lowest, static_cast<__mmask16>(mask), x + i),
       _mm512_mask_loadu_ps(lowest, static_cast<__mmask16>(mask >> 16), x + i + 16), i, mask);
}

// The sum is of the rounded numbers, by the instruction that sums pairs.
__attribute__((flatten)) static float scoreExponentials(const float* x, float* peak, bf16_t* out, size_t n) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff()), log2e = _mm512_set1_ps(1.44269504f);
  __m512 tops[2] = {lowest, lowest}, sums = _mm512_setzero_ps();
  vectorPairs(x, n, [&](__m512 low, __m512 high, size_t, __mmask32) {
    tops[0] = low > tops[0] ? low : tops[0], tops[1] = high > tops[1] ? high : tops[1];  // NaN is passed over
  });
  tops[0] = tops[0] > tops[1] ? tops[0] : tops[1];
  float top = reduced<floatLanes>(tops[0], [](auto a, auto b) { return a > b ? a : b; });
  if (top > *peak) *peak = top;
  const __m512 shift = _mm512_mul_ps(_mm512_set1_ps(-*peak), log2e);
  const __m512bh ones = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
  vectorPairs(x, n, [&](__m512 low, __m512 high, size_t i, __mmask32 mask) {
    low = powerOfTwo(_mm512_fmadd_ps(low, log2e, shift)), high = powerOfTwo(_mm512_fmadd_ps(high, log2e, shift));
    __m512bh narrow = _mm512_cvtne2ps_pbh(high, low);
    sums = _mm512_dpbf16_ps(sums, narrow, ones);
    _mm512_mask_storeu_epi16(out + i, mask, reinterpret_cast<__m512i>(narrow));
  });
  return sumOf(sums);
}

#else

// The same without an instruction for it.
static void pairProduct(int64_t rows, int64_t columns, int64_t pairs, const void* a, int64_t rowBytes,
                        int64_t pairBytes, const uint32_t* panel, int64_t width, const PairOutput& out) {
  auto number = [](uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
  };
  for (int64_t i = 0; i < rows; i++) {
    float sums[widePairColumns] = {};
    for (int64_t p = 0; p < pairs; p++) {
      uint32_t pair;
      __builtin_memcpy(&pair, static_cast<const char*>(a) + i * rowBytes + p * pairBytes, sizeof pair);
      const uint32_t* b = panel + p * width;
      float low = number(pair << 16), high = number(pair & 0xffff0000);
      for (int64_t j = 0; j < columns; j++) sums[j] += low * number(b[j] << 16) + high * number(b[j] & 0xffff0000);
    }
    for (int64_t j = 0; j < columns; j++) {
      int64_t at = i * out.ld + j;
      if (out.narrow)
        out.narrow[at] = f32ToBf16(out.alpha * sums[j]);
      else
        out.wide[at] = out.beta == 0 ? out.alpha * sums[j] : out.alpha * sums[j] + out.beta * out.wide[at];
    }
  }
}

static float scoreExponentials(const float* x, float* peak, bf16_t* out, size_t n) {
  for (size_t i = 0; i < n; i++) *peak = x[i] > *peak ? x[i] : *peak;
  return exponentials(x, *peak, out, n);
}

#endif

__attribute__((flatten)) static void scaleTo16(const float* x, float factor, bf16_t* out, size_t n) {
  vectors(n, [&](size_t i, size_t count) { store(load(x + i, count) * factor, out + i, count); });
}

static const ProductKernels productTable = {pairProduct, packColumns,       packDifferences,
                                            packRows,    scoreExponentials, scaleTo16};
