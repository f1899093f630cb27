// Purpose: the loops of kernels_products.h. Included in the namespace of a set that has them.
#include "cpu/kernels/vectors.inl"

__attribute__((flatten)) static void packColumns(const bf16_t* x, const bf16_t* minus, int64_t ld, int64_t k,
                                                 int64_t columns, uint32_t* panel) {
  bf16_t differences[2][pairColumns];
  auto row = [&](int64_t l) -> const bf16_t* {
    const bf16_t* from = x + l * ld;
    if (!minus) return from;
    vectors(static_cast<size_t>(columns), [&](size_t j, size_t count) {
      store(load(from + j, count) - load(minus + l * ld + j, count), differences[l % 2] + j, count);
    });
    return differences[l % 2];
  };
  for (int64_t l = 0; l < k; l += 2, panel += pairColumns) {
    const bf16_t* even = row(l);
    if (l + 1 < k) {
      const bf16_t* odd = row(l + 1);
      for (int64_t j = 0; j < columns; j++) panel[j] = even[j].bits | static_cast<uint32_t>(odd[j].bits) << 16;
    } else {
      for (int64_t j = 0; j < columns; j++) panel[j] = even[j].bits;
    }
    for (int64_t j = columns; j < pairColumns; j++) panel[j] = 0;
  }
}

static void packRows(const bf16_t* x, int64_t ld, int64_t k, int64_t columns, uint32_t* panel) {
  constexpr int64_t block = 16;  // pairs of a row together, a line of the cache
  int64_t whole = k / 2, pairs = (k + 1) / 2;
  for (int64_t first = 0; first < pairs; first += block) {
    int64_t end = first + block < whole ? first + block : whole;
    for (int64_t j = 0; j < columns; j++) {
      const bf16_t* row = x + j * ld;
      for (int64_t p = first; p < end; p++) __builtin_memcpy(panel + p * pairColumns + j, row + 2 * p, sizeof *panel);
    }
  }
  if (whole < pairs)
    for (int64_t j = 0; j < columns; j++) panel[whole * pairColumns + j] = x[j * ld + k - 1].bits;
  for (int64_t p = 0; p < pairs; p++)
    for (int64_t j = columns; j < pairColumns; j++) panel[p * pairColumns + j] = 0;
}

#if defined(__AVX512BF16__)

template <int rows, int vectors>
static void pairBlock(int64_t pairs, const char* a, int64_t rowBytes, int64_t pairBytes, const uint32_t* panel,
                      __mmask16 last, float alpha, float beta, float* c, int64_t ldc) {
  __m512 sums[rows][vectors];
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < vectors; v++) sums[i][v] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; p++, a += pairBytes, panel += pairColumns) {
    __m512bh b[vectors];
    for (int v = 0; v < vectors; v++) b[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panel + 16 * v));
    for (int i = 0; i < rows; i++) {
      int pair;
      __builtin_memcpy(&pair, a + i * rowBytes, sizeof pair);
      for (int v = 0; v < vectors; v++)
        sums[i][v] = _mm512_dpbf16_ps(sums[i][v], reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)), b[v]);
    }
  }
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < vectors; v++) {
      float* out = c + i * ldc + 16 * v;
      __mmask16 mask = v + 1 < vectors ? __mmask16(0xffff) : last;
      __m512 result = _mm512_mul_ps(sums[i][v], _mm512_set1_ps(alpha));
      if (beta != 0) result = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, out), _mm512_set1_ps(beta), result);
      _mm512_mask_storeu_ps(out, mask, result);
    }
}

template <int rows>
static void pairRowBlock(int64_t columns, int64_t pairs, const char* a, int64_t rowBytes, int64_t pairBytes,
                         const uint32_t* panel, float alpha, float beta, float* c, int64_t ldc) {
  __mmask16 last = static_cast<__mmask16>(0xffff >> (-columns & 15));
  if (columns > 32)
    pairBlock<rows, 3>(pairs, a, rowBytes, pairBytes, panel, last, alpha, beta, c, ldc);
  else if (columns > 16)
    pairBlock<rows, 2>(pairs, a, rowBytes, pairBytes, panel, last, alpha, beta, c, ldc);
  else
    pairBlock<rows, 1>(pairs, a, rowBytes, pairBytes, panel, last, alpha, beta, c, ldc);
}

static void pairProduct(int64_t rows, int64_t columns, int64_t pairs, const void* a, int64_t rowBytes,
                        int64_t pairBytes, const uint32_t* panel, float alpha, float beta, float* c, int64_t ldc) {
  static constexpr decltype(&pairRowBlock<1>) blocks[pairRows] = {
      pairRowBlock<1>, pairRowBlock<2>, pairRowBlock<3>, pairRowBlock<4>,
      pairRowBlock<5>, pairRowBlock<6>, pairRowBlock<7>, pairRowBlock<8>,
  };
  blocks[rows - 1](columns, pairs, static_cast<const char*>(a), rowBytes, pairBytes, panel, alpha, beta, c, ldc);
}

#else

// The same without an instruction for it.
static void pairProduct(int64_t rows, int64_t columns, int64_t pairs, const void* a, int64_t rowBytes,
                        int64_t pairBytes, const uint32_t* panel, float alpha, float beta, float* c, int64_t ldc) {
  auto number = [](uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
  };
  for (int64_t i = 0; i < rows; i++) {
    float sums[pairColumns] = {};
    for (int64_t p = 0; p < pairs; p++) {
      uint32_t pair;
      __builtin_memcpy(&pair, static_cast<const char*>(a) + i * rowBytes + p * pairBytes, sizeof pair);
      const uint32_t* b = panel + p * pairColumns;
      float low = number(pair << 16), high = number(pair & 0xffff0000);
      for (int64_t j = 0; j < pairColumns; j++) sums[j] += low * number(b[j] << 16) + high * number(b[j] & 0xffff0000);
    }
    for (int64_t j = 0; j < columns; j++)
      c[i * ldc + j] = beta == 0 ? alpha * sums[j] : alpha * sums[j] + beta * c[i * ldc + j];
  }
}

#endif

static const ProductKernels productTable = {pairProduct, packColumns, packRows, exponentials<bf16_t>};
