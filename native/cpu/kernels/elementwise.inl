// Purpose: conversions, vector updates, masks and dot products. Included by kernels/all.inl in a namespace of its own.

static inline float bf16ToF32(bf16_t x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

// Round to nearest even; a NaN stays a (quiet) NaN.
static inline bf16_t f32ToBf16(float f) {
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  uint32_t nan = (bits >> 16) | 0x40;
  return {static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded)};
}

static void f32FromBf16(const bf16_t* from, float* out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = bf16ToF32(from[i]);
}

static void bf16FromF32(const float* from, bf16_t* out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = f32ToBf16(from[i]);
}

// float16 by integer arithmetic: rare in a hot path, the same bits on every instruction set.
static inline float f16ToF32(f16_t x) {
  uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff, bits;
  if (magnitude >= 0x7c00) {
    bits = sign | 0x7f800000 | ((magnitude & 0x3ff) << 13);
  } else if (magnitude >= 0x400) {
    bits = sign | ((magnitude << 13) + (112u << 23));
  } else {
    float small = static_cast<float>(magnitude) * 0x1p-24f;
    __builtin_memcpy(&bits, &small, 4);
    bits |= sign;
  }
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

static inline f16_t f32ToF16(float f) {
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65520 and more round to infinity
  if (magnitude >= 0x38800000) {                                               // normal
    uint32_t rebased = magnitude - (112u << 23);
    return {static_cast<uint16_t>(sign | ((rebased + 0xfff + ((rebased >> 13) & 1)) >> 13))};
  }
  float absolute;
  __builtin_memcpy(&absolute, &magnitude, 4);
  float shifted = absolute + 0.5f;  // rounds to a multiple of 2^-24, to nearest even, in the low bits
  uint32_t low;
  __builtin_memcpy(&low, &shifted, 4);
  return {static_cast<uint16_t>(sign | (low - 0x3f000000))};
}

static void f32FromF16(const f16_t* from, float* out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = f16ToF32(from[i]);
}

static void f16FromF32(const float* from, f16_t* out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = f32ToF16(from[i]);
}

static void axpby(const float* x, float* y, float alpha, float beta, size_t n) {
  if (beta == 0) {
    for (size_t i = 0; i < n; i++) y[i] = alpha * x[i];
  } else {
    for (size_t i = 0; i < n; i++) y[i] = alpha * x[i] + beta * y[i];
  }
}

static void addVector(const float* x, float* y, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] += x[i];
}

static void scale(const float* a, float row, const float* column, float* out, size_t n) {
  if (column == nullptr) {
    for (size_t i = 0; i < n; i++) out[i] = a[i] * row;
  } else {
    for (size_t i = 0; i < n; i++) out[i] = a[i] * row * column[i];
  }
}

static void applyMask(float* x, const uint8_t* mask, size_t n) {
  for (size_t i = 0; i < n; i++) x[i] = mask[i] ? x[i] : 0.0f;
}

static void nonZeroMask(const float* x, uint8_t* mask, size_t n) {
  for (size_t i = 0; i < n; i++) mask[i] = x[i] != 0.0f;
}

// Counted in the elements' own width, block by block: so the loops vectorise.
static size_t countNonFiniteF32(const float* x, size_t n) {
  constexpr size_t block = 65536;
  size_t total = 0;
  for (size_t begin = 0; begin < n; begin += block) {
    size_t end = n - begin < block ? n : begin + block;
    uint32_t count = 0;
    for (size_t i = begin; i < end; i++) {
      uint32_t bits;
      __builtin_memcpy(&bits, &x[i], 4);
      count += (bits & 0x7f800000) == 0x7f800000;
    }
    total += count;
  }
  return total;
}

static size_t countNonFinite16(const uint16_t* x, uint16_t exponentMask, size_t n) {
  constexpr size_t block = 65535;
  size_t total = 0;
  for (size_t begin = 0; begin < n; begin += block) {
    size_t end = n - begin < block ? n : begin + block;
    uint16_t count = 0;
    for (size_t i = begin; i < end; i++) count = static_cast<uint16_t>(count + ((x[i] & exponentMask) == exponentMask));
    total += count;
  }
  return total;
}

// 16 partial sums in a fixed order: vectorises, and the order does not depend on the instruction set.
static double dot(const float* a, const float* b, size_t n) {
  double sums[16] = {0};
  size_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int lane = 0; lane < 16; lane++) sums[lane] += static_cast<double>(a[i + lane]) * b[i + lane];
  for (int lane = 0; i < n; i++, lane++) sums[lane] += static_cast<double>(a[i]) * b[i];
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

// sums[j] += Σᵢ term(i n + j), in double: four rows at a time, so that the sums are read and written less often.
template <typename Term>
static inline __attribute__((always_inline)) void sumColumns(size_t rows, size_t n, double* __restrict sums,
                                                             const Term& term) {
  size_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    size_t a = i * n, b = a + n, c = b + n, d = c + n;
    for (size_t j = 0; j < n; j++) sums[j] += (term(a + j) + term(b + j)) + (term(c + j) + term(d + j));
  }
  for (; i < rows; i++)
    for (size_t j = 0; j < n; j++) sums[j] += term(i * n + j);
}

static inline double doubleOf(float x) { return x; }
static inline double doubleOf(bf16_t x) { return bf16ToF32(x); }

template <typename T>
static void columnSums(const T* x, size_t rows, size_t n, double* sums) {
  sumColumns(rows, n, sums, [=](size_t i) { return doubleOf(x[i]); });
}

template <typename T>
static void columnSquares(const T* x, size_t rows, size_t n, double* sums) {
  sumColumns(rows, n, sums, [=](size_t i) { return doubleOf(x[i]) * doubleOf(x[i]); });
}

static void differenceSquares16(const bf16_t* x, const bf16_t* y, size_t rows, size_t n, double* sums) {
  sumColumns(rows, n, sums, [=](size_t i) {
    double difference = bf16ToF32(f32ToBf16(bf16ToF32(x[i]) - bf16ToF32(y[i])));
    return difference * difference;
  });
}
