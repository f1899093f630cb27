// Purpose: the loops of kernels_int8.h. Included in the namespace of a set that has them.

#if defined(__AVX512VNNI__)

static inline __m512i words(const bf16_t* x, size_t n, size_t i) {
  __mmask32 mask = static_cast<__mmask32>(n - i >= 32 ? 0xffffffff : (1u << (n - i)) - 1);
  return _mm512_and_si512(_mm512_maskz_loadu_epi16(mask, x + i), _mm512_set1_epi16(0x7fff));
}

static uint16_t peak(const bf16_t* x, size_t n) {
  __m512i peaks = _mm512_setzero_si512();
  for (size_t i = 0; i < n; i += 32) peaks = _mm512_maskz_max_epu16(~__mmask32{0}, peaks, words(x, n, i));
  uint16_t lanes[32], result = 0;
  _mm512_storeu_si512(lanes, peaks);
  for (uint16_t lane : lanes) result = lane > result ? lane : result;
  return result;
}

static void raisePeaks(const bf16_t* x, size_t n, uint16_t* peaks) {
  for (size_t j = 0; j < n; j += 32) {
    __mmask32 mask = static_cast<__mmask32>(n - j >= 32 ? 0xffffffff : (1u << (n - j)) - 1);
    __m512i most = _mm512_maskz_loadu_epi16(mask, peaks + j);
    _mm512_mask_storeu_epi16(peaks + j, mask, _mm512_maskz_max_epu16(~__mmask32{0}, most, words(x, n, j)));
  }
}

static inline __m512 wide(__mmask16 mask, const bf16_t* from) {
  __m512i bits = _mm512_maskz_cvtepu16_epi32(mask, _mm256_maskz_loadu_epi16(mask, from));
  return reinterpret_cast<__m512>(_mm512_maskz_slli_epi32(mask, bits, 16));
}

// x · factor, rounded, of the lanes that the mask has; zero in the others. What is not finite has no factor but 0, and
// may come out as anything.
static inline __m512i rounded(const bf16_t* x, __m512 factor, __mmask16 mask) {
  return _mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(wide(mask, x), factor));
}

static inline __mmask16 lanesFrom(int64_t i, int64_t n) {
  return static_cast<__mmask16>(n - i >= 16 ? 0xffff : n > i ? (1 << (n - i)) - 1 : 0);
}

static int32_t integers(const bf16_t* x, float factor, size_t n, int8_t* out) {
  const __m512 by = _mm512_set1_ps(factor);
  const int64_t count = static_cast<int64_t>(n), padded = (count + 3) / 4 * 4;
  __m512i sums = _mm512_setzero_si512();
  for (int64_t i = 0; i < padded; i += 16) {
    __m512i values = rounded(x + i, by, factor == 0 ? 0 : lanesFrom(i, count));
    sums = _mm512_add_epi32(sums, values);
    _mm_mask_storeu_epi8(out + i, lanesFrom(i, padded), _mm512_maskz_cvtsepi32_epi8(0xffff, values));
  }
  int32_t lanes[16], sum = 0;
  _mm512_storeu_si512(lanes, sums);
  for (int32_t lane : lanes) sum += lane;
  return sum;
}

// Four rows of integers as the bytes of one, with their sum added to sums; only columns with a factor.
static inline __m512i quadOf(const __m512 (&rows)[4], __m512 factor, __m512i& sums) {
  const __mmask16 mask = _mm512_cmp_ps_mask(factor, _mm512_setzero_ps(), _CMP_NEQ_OQ);
  __m512i quad = _mm512_setzero_si512();
  for (int r = 3; r >= 0; r--) {
    __m512i row = _mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(rows[r], factor));
    sums = _mm512_add_epi32(sums, row);
    quad = _mm512_or_si512(_mm512_maskz_slli_epi32(0xffff, quad, 8), _mm512_and_si512(row, _mm512_set1_epi32(0xff)));
  }
  return quad;
}

// What a factor with 128 added has for a quad of integers.
static inline __m512i raised(__m512i quad) { return _mm512_xor_si512(quad, _mm512_set1_epi8(-128)); }

static void packColumns(const bf16_t* x, int64_t ld, int64_t k, int64_t columns, const float* factors, uint32_t* panels,
                        int64_t apart) {
  for (int64_t l = 0; l < k; l += 4, panels += quadColumns) {
    uint32_t* panel = panels;
    for (int64_t j = 0; j < columns; j += quadColumns, panel += apart)
      for (int64_t v = 0; v < quadColumns; v += 16) {
        __mmask16 mask = lanesFrom(j + v, columns);
        __m512 rows[4];
#pragma GCC unroll 4
        for (int64_t r = 0; r < 4; r++) rows[r] = wide(l + r < k ? mask : __mmask16{0}, x + (l + r) * ld + j + v);
        __m512i sums = _mm512_setzero_si512();
        __m512i quad = quadOf(rows, _mm512_maskz_loadu_ps(mask, factors + j + v), sums);
        _mm512_storeu_si512(panel + v, raised(quad));
      }
  }
}

static void differencePeaks(const bf16_t* x, const bf16_t* y, int64_t ld, int64_t k, int64_t columns, uint32_t* ofX,
                            uint32_t* ofDifference) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __mmask16 all = 0xffff;
  for (int64_t v = 0; v < columns; v += 16) {
    __mmask16 mask = lanesFrom(v, columns);
    __m512i most = _mm512_setzero_si512(), apart = most;
    for (int64_t l = 0; l < k; l++) {
      __m512 own = wide(mask, x + l * ld + v), other = wide(mask, y + l * ld + v);
      __m512i bits = _mm512_and_si512(reinterpret_cast<__m512i>(own), magnitude);
      __m512i between = _mm512_and_si512(reinterpret_cast<__m512i>(_mm512_sub_ps(other, own)), magnitude);
      most = _mm512_maskz_max_epu32(all, most, bits);
      apart = _mm512_maskz_max_epu32(all, apart, between);
    }
    _mm512_mask_storeu_epi32(ofX + v, mask, most);
    _mm512_mask_storeu_epi32(ofDifference + v, mask, apart);
  }
}

static void packDifferences(const bf16_t* x, const bf16_t* y, int64_t ld, int64_t k, int64_t columns,
                            const DifferencePanels& panels) {
  for (int64_t v = 0; v < quadColumns; v += 16) {
    __mmask16 mask = lanesFrom(v, columns);
    __m512 xFactor = _mm512_maskz_loadu_ps(mask, panels.xFactors + v),
           factor = _mm512_maskz_loadu_ps(mask, panels.factors + v);
    __m512i xSums = _mm512_setzero_si512(), sums = xSums;
    for (int64_t l = 0, at = v; l < k; l += 4, at += quadColumns) {
      __m512 own[4], between[4];
#pragma GCC unroll 4
      for (int64_t r = 0; r < 4; r++) {
        __mmask16 there = l + r < k ? mask : __mmask16{0};
        own[r] = wide(there, x + (l + r) * ld + v);
        between[r] = _mm512_sub_ps(wide(there, y + (l + r) * ld + v), own[r]);
      }
      _mm512_storeu_si512(panels.x + at, quadOf(own, xFactor, xSums));
      __m512i quad = quadOf(between, factor, sums);
      if (panels.left) _mm512_storeu_si512(panels.left + at, quad);
      _mm512_storeu_si512(panels.right + at, raised(quad));
    }
    _mm512_mask_storeu_epi32(panels.xSums + v, mask, xSums);
    _mm512_mask_storeu_epi32(panels.sums + v, mask, sums);
  }
}

// finish(i, v, mask, sums) takes 16 sums of row i from column 16 v on.
template <int rows, int vectors, typename Finish>
static inline __attribute__((always_inline)) void quadBlock(int64_t quads, const int8_t* a, int64_t rowBytes,
                                                            int64_t quadBytes, const int32_t* sumsOf, int64_t sumsApart,
                                                            const uint32_t* panel, __mmask16 last,
                                                            const Finish& finish) {
  __m512i sums[rows][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) sums[i][v] = _mm512_setzero_si512();
  for (int64_t q = 0; q < quads; q++, a += quadBytes, panel += quadColumns) {
    __m512i b[vectors];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) b[v] = _mm512_loadu_si512(panel + 16 * v);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      int quad;
      __builtin_memcpy(&quad, a + i * rowBytes, sizeof quad);
      // GCC 12 moves sums from register to register around the intrinsic, which halves the rate.
#pragma GCC unroll 3
      for (int v = 0; v < vectors; v++)
        asm("vpdpbusd %2, %1, %0" : "+v"(sums[i][v]) : "v"(b[v]), "v"(_mm512_set1_epi32(quad)));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) {
      __m512i added = _mm512_maskz_slli_epi32(0xffff, _mm512_set1_epi32(sumsOf[i * sumsApart]), 7);
      finish(i, v, v + 1 < vectors ? __mmask16(0xffff) : last,
             _mm512_maskz_cvtepi32_ps(0xffff, _mm512_sub_epi32(sums[i][v], added)));
    }
}

template <int rows, int vectors>
static void quadBlock(int64_t quads, const int8_t* a, int64_t rowBytes, int64_t quadBytes, const int32_t* sums,
                      int64_t sumsApart, const uint32_t* panel, __mmask16 last, const QuadOutput& out) {
  // What is added to, or stored to, comes meanwhile.
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < vectors; v++) __builtin_prefetch(out.out + i * out.ld + 16 * v, 1);
  quadBlock<rows, vectors>(
      quads, a, rowBytes, quadBytes, sums, sumsApart, panel,
      last, [&](int i, int v, __mmask16 mask, __m512 sum) __attribute__((always_inline)) {
        int64_t at = i * out.ld + 16 * v;
        __m512 scale =
            _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, out.columnScale + 16 * v), _mm512_set1_ps(out.rowScale[i]));
        __m512 rest = out.adds
                          ? _mm512_maskz_loadu_ps(mask, out.out + at)
                          : _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, out.diagonal + 16 * v), wide(mask, out.y + at));
        _mm512_mask_storeu_ps(out.out + at, mask, _mm512_fmadd_ps(scale, sum, rest));
      });
}

template <int rows, int vectors>
static void quadBlock(int64_t quads, const int8_t* a, int64_t rowBytes, int64_t quadBytes, const int32_t* sums,
                      int64_t sumsApart, const uint32_t* panel, __mmask16 last, const QuadUpdate& out) {
  for (int i = 0; i < rows; i++) {
    for (int v = 0; v < vectors; v++) {
      __builtin_prefetch(out.state + i * out.ld + 16 * v, 1);
      __builtin_prefetch(out.base + i * out.ld + 16 * v);
    }
    __builtin_prefetch(out.mask + i * out.ld);
  }
  const __m512 relaxation = _mm512_set1_ps(out.relaxation), one = _mm512_set1_ps(1),
               rest = _mm512_sub_ps(one, relaxation);
  quadBlock<rows, vectors>(
      quads, a, rowBytes, quadBytes, sums, sumsApart, panel,
      last, [&](int i, int v, __mmask16 mask, __m512 sum) __attribute__((always_inline)) {
        int64_t at = i * out.ld + 16 * v;
        __m512 scale =
            _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, out.columnScale + 16 * v), _mm512_set1_ps(out.rowScale[i]));
        __m512 exact =
            _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, out.diagonal + 16 * v), wide(mask, out.y + i * out.yLd + 16 * v));
        __m512 b = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out.base + at), _mm512_fmadd_ps(scale, sum, exact));
        __m128i kept = _mm_maskz_loadu_epi8(mask, out.mask + at);
        __m512 before = _mm512_maskz_loadu_ps(mask, out.state + at);
        __m512 share = _mm512_mask_blend_ps(_mm_test_epi8_mask(kept, kept), one, rest);
        _mm512_mask_storeu_ps(out.state + at, mask, _mm512_fmadd_ps(relaxation, b, _mm512_mul_ps(share, before)));
        if (out.b) _mm512_mask_storeu_ps(out.b + at, mask, b);
      });
}

template <int rows, typename Output>
static void quadRowBlock(int64_t columns, int64_t quads, const int8_t* a, int64_t rowBytes, int64_t quadBytes,
                         const int32_t* sums, int64_t sumsApart, const uint32_t* panel, const Output& out) {
  __mmask16 last = static_cast<__mmask16>(0xffff >> (-columns & 15));
  if (columns > 32)
    quadBlock<rows, 3>(quads, a, rowBytes, quadBytes, sums, sumsApart, panel, last, out);
  else if (columns > 16)
    quadBlock<rows, 2>(quads, a, rowBytes, quadBytes, sums, sumsApart, panel, last, out);
  else
    quadBlock<rows, 1>(quads, a, rowBytes, quadBytes, sums, sumsApart, panel, last, out);
}

template <typename Output>
static void quadBlocks(int64_t rows, int64_t columns, int64_t quads, const int8_t* a, int64_t rowBytes,
                       int64_t quadBytes, const int32_t* sums, int64_t sumsApart, const uint32_t* panel,
                       const Output& out) {
  static constexpr decltype(&quadRowBlock<1, Output>) blocks[quadRows] = {
      quadRowBlock<1, Output>, quadRowBlock<2, Output>, quadRowBlock<3, Output>, quadRowBlock<4, Output>,
      quadRowBlock<5, Output>, quadRowBlock<6, Output>, quadRowBlock<7, Output>, quadRowBlock<8, Output>,
  };
  blocks[rows - 1](columns, quads, a, rowBytes, quadBytes, sums, sumsApart, panel, out);
}

static void quadProduct(int64_t rows, int64_t columns, int64_t quads, const int8_t* a, int64_t rowBytes,
                        int64_t quadBytes, const int32_t* sums, int64_t sumsApart, const uint32_t* panel,
                        const QuadOutput& out) {
  quadBlocks(rows, columns, quads, a, rowBytes, quadBytes, sums, sumsApart, panel, out);
}

static void quadUpdate(int64_t rows, int64_t columns, int64_t quads, const int8_t* a, int64_t rowBytes,
                       const int32_t* sums, const uint32_t* panel, const QuadUpdate& out) {
  quadBlocks(rows, columns, quads, a, rowBytes, 4, sums, 1, panel, out);
}

#else

// The same without instructions for it.
static inline uint16_t magnitude(bf16_t x) { return x.bits & 0x7fff; }

static uint16_t peak(const bf16_t* x, size_t n) {
  uint16_t most = 0;
  for (size_t i = 0; i < n; i++) most = magnitude(x[i]) > most ? magnitude(x[i]) : most;
  return most;
}

static void raisePeaks(const bf16_t* x, size_t n, uint16_t* peaks) {
  for (size_t j = 0; j < n; j++) peaks[j] = magnitude(x[j]) > peaks[j] ? magnitude(x[j]) : peaks[j];
}

static inline int32_t rounded(bf16_t x, float factor) {
  return factor == 0 ? 0 : static_cast<int32_t>(__builtin_lrintf(bf16ToF32(x) * factor));
}

static int32_t integers(const bf16_t* x, float factor, size_t n, int8_t* out) {
  int32_t sum = 0;
  for (size_t i = 0; i < (n + 3) / 4 * 4; i++) {
    int32_t value = i < n ? rounded(x[i], factor) : 0;
    out[i] = static_cast<int8_t>(value);
    sum += value;
  }
  return sum;
}

static void packColumns(const bf16_t* x, int64_t ld, int64_t k, int64_t columns, const float* factors, uint32_t* panels,
                        int64_t apart) {
  for (int64_t l = 0; l < k; l += 4, panels += quadColumns)
    for (int64_t j = 0; j < (columns + quadColumns - 1) / quadColumns * quadColumns; j++) {
      uint32_t quad = 0;
      for (int64_t r = 0; r < 4; r++) {
        int32_t value = l + r < k && j < columns ? rounded(x[(l + r) * ld + j], factors[j]) : 0;
        quad |= ((static_cast<uint32_t>(value) + 128) & 0xff) << (8 * r);
      }
      panels[j / quadColumns * apart + j % quadColumns] = quad;
    }
}

static uint32_t magnitudeBits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits & 0x7fffffff;
}

static void differencePeaks(const bf16_t* x, const bf16_t* y, int64_t ld, int64_t k, int64_t columns, uint32_t* ofX,
                            uint32_t* ofDifference) {
  for (int64_t j = 0; j < columns; j++) {
    ofX[j] = ofDifference[j] = 0;
    for (int64_t l = 0; l < k; l++) {
      float own = bf16ToF32(x[l * ld + j]);
      uint32_t bits = magnitudeBits(own), between = magnitudeBits(bf16ToF32(y[l * ld + j]) - own);
      if (bits > ofX[j]) ofX[j] = bits;
      if (between > ofDifference[j]) ofDifference[j] = between;
    }
  }
}

static uint32_t byteOf(float x, float factor, int64_t r, int32_t& sum) {
  int32_t value = factor == 0 ? 0 : static_cast<int32_t>(__builtin_lrintf(x * factor));
  sum += value;
  return (static_cast<uint32_t>(value) & 0xff) << (8 * r);
}

static void packDifferences(const bf16_t* x, const bf16_t* y, int64_t ld, int64_t k, int64_t columns,
                            const DifferencePanels& panels) {
  for (int64_t j = 0; j < quadColumns; j++) {
    bool there = j < columns;
    float xFactor = there ? panels.xFactors[j] : 0, factor = there ? panels.factors[j] : 0;
    int32_t xSum = 0, sum = 0;
    for (int64_t l = 0, at = j; l < k; l += 4, at += quadColumns) {
      uint32_t own = 0, between = 0;
      for (int64_t r = 0; there && r < 4 && l + r < k; r++) {
        float value = bf16ToF32(x[(l + r) * ld + j]);
        own |= byteOf(value, xFactor, r, xSum);
        between |= byteOf(bf16ToF32(y[(l + r) * ld + j]) - value, factor, r, sum);
      }
      panels.x[at] = own, panels.right[at] = between ^ 0x80808080;
      if (panels.left) panels.left[at] = between;
    }
    if (there) panels.xSums[j] = xSum, panels.sums[j] = sum;
  }
}

static int32_t quadSum(int64_t quads, const int8_t* a, int64_t quadBytes, int32_t sum, const uint32_t* panel) {
  sum *= -128;
  for (int64_t q = 0; q < quads; q++)
    for (int64_t r = 0; r < 4; r++)
      sum += a[q * quadBytes + r] * static_cast<int32_t>(panel[q * quadColumns] >> (8 * r) & 0xff);
  return sum;
}

static void quadProduct(int64_t rows, int64_t columns, int64_t quads, const int8_t* a, int64_t rowBytes,
                        int64_t quadBytes, const int32_t* sums, int64_t sumsApart, const uint32_t* panel,
                        const QuadOutput& out) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) {
      float sum = static_cast<float>(quadSum(quads, a + i * rowBytes, quadBytes, sums[i * sumsApart], panel + j));
      int64_t at = i * out.ld + j;
      float rest = out.adds ? out.out[at] : out.diagonal[j] * bf16ToF32(out.y[at]);
      out.out[at] = fused(out.columnScale[j] * out.rowScale[i], sum, rest);
    }
}

static void quadUpdate(int64_t rows, int64_t columns, int64_t quads, const int8_t* a, int64_t rowBytes,
                       const int32_t* sums, const uint32_t* panel, const QuadUpdate& out) {
  const float rest = 1 - out.relaxation;
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) {
      float sum = static_cast<float>(quadSum(quads, a + i * rowBytes, 4, sums[i], panel + j));
      float exact = out.diagonal[j] * bf16ToF32(out.y[i * out.yLd + j]);
      int64_t at = i * out.ld + j;
      float b = out.base[at] + fused(out.columnScale[j] * out.rowScale[i], sum, exact), before = out.state[at];
      out.state[at] = fused(out.relaxation, b, (out.mask[at] ? rest : 1.0f) * before);
      if (out.b) out.b[at] = b;
    }
}

#endif

static const Int8Kernels int8Table = {peak,        raisePeaks, integers, packColumns, differencePeaks, packDifferences,
                                      quadProduct, quadUpdate};
