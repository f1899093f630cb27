// Purpose: vectors of the set's own width, for the loops of the other files here. The mathematical library's exp is a
// call for each number. Included in the namespace of a set.
#pragma once

#if defined(__AVX512F__)
static constexpr size_t floatLanes = 16;
#elif defined(__AVX2__)
static constexpr size_t floatLanes = 8;
#else
static constexpr size_t floatLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(floatLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(floatLanes * 4)));
typedef uint16_t HalfWords __attribute__((vector_size(floatLanes * 2)));

static inline Floats load(const float* x) {
  Floats v;
  __builtin_memcpy(&v, x, sizeof v);
  return v;
}

static inline Floats load(const bf16_t* x) {
  HalfWords bits;
  __builtin_memcpy(&bits, x, sizeof bits);
  return reinterpret_cast<Floats>(__builtin_convertvector(bits, Words) << 16);
}

static inline void store(Floats v, float* out) { __builtin_memcpy(out, &v, sizeof v); }

// Rounds as f32ToBf16, but that the instruction makes 0 of numbers below 2^-126.
static inline void store(Floats v, bf16_t* out) {
#if defined(__AVX512BF16__)
  __m256bh narrow = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
#else
  Words bits = reinterpret_cast<Words>(v);
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
  HalfWords narrow = __builtin_convertvector(v != v ? nan : rounded, HalfWords);
#endif
  __builtin_memcpy(out, &narrow, sizeof narrow);
}

// The first `count` lanes; the others are `pad`.
template <typename T>
static inline Floats load(const T* x, size_t count, T pad = {}) {
  if (count == floatLanes) return load(x);
  T padded[floatLanes];
  for (T& lane : padded) lane = pad;
  __builtin_memcpy(padded, x, count * sizeof(T));
  return load(padded);
}

template <typename T>
static inline void store(Floats v, T* out, size_t count) {
  if (count == floatLanes) return store(v, out);
  T padded[floatLanes];
  store(v, padded);
  __builtin_memcpy(out, padded, count * sizeof(T));
}

// step(i, count) for every vector of [0, n), the last one partly filled. The loops that use it are marked "flatten", so
// that a step is inlined at both places.
template <typename Step>
static inline __attribute__((always_inline)) void vectors(size_t n, const Step& step) {
  size_t i = 0;
  for (; i + floatLanes <= n; i += floatLanes) step(i, floatLanes);
  if (i < n) step(i, n - i);
}

// All lanes together: the first half with the second, until four are left.
template <size_t lanes, typename Vector, typename Combine>
static inline __attribute__((always_inline)) float reduced(Vector v, const Combine& combine) {
  if constexpr (lanes == 4) {
    return combine(combine(v[0], v[2]), combine(v[1], v[3]));
  } else {
    typedef float Half __attribute__((vector_size(lanes * 2)));
    Half halves[2];
    __builtin_memcpy(halves, &v, sizeof v);
    return reduced<lanes / 2>(combine(halves[0], halves[1]), combine);
  }
}

static inline float sumOf(Floats v) {
  return reduced<floatLanes>(v, [](auto a, auto b) { return a + b; });
}

// exp(x) for x ≤ 0, relative error below 1e-7: 2^n times a polynomial in r = x − n log 2, |r| ≤ log(2) / 2. n is read
// from the low bits of a sum with 1.5 · 2^23. From n = −127 on, the bits of 2^n are those of 0.
static inline Floats expNegative(Floats x) {
  const Floats lowest = Floats{} - 88.0f, magic = Floats{} + 12582912.0f;
  x = x < lowest ? lowest : x;
  Floats shifted = x * 1.44269504f + magic;
  Floats n = shifted - magic;
  Floats r = x - n * 0.693359375f;  // log 2 in two parts: n times the first is exact
  r = r + n * 2.12194440e-4f;
  Floats p = r * 0.00139336521f + 0.00836318173f;  // fitted to (exp(r) − 1 − r) / r²
  p = p * r + 0.0416664667f;
  p = p * r + 0.166665763f;
  p = p * r + 0.5f;
  p = p * (r * r) + r;
  p = p + 1.0f;
  Words power = (reinterpret_cast<Words>(shifted) << 23) + 0x3f800000;
  return p * reinterpret_cast<Floats>(power);
}

// 2^x for x < 127, relative error below 3e-6, 0 below −127: 2^n times a polynomial in the rest, |rest| ≤ 1/2. As
// expNegative(), but that n is added to the bits of the exponent. To NaN out of bfloat16 numbers, whose low bits are 0,
// that adds nothing.
static inline Floats powerOfTwo(Floats x) {
  const Floats lowest = Floats{} - 127.0f, magic = Floats{} + 12582912.0f;
#if defined(__AVX512F__)
  x = _mm512_maskz_max_ps(0xffff, lowest, x);  // GCC 12 warns of the header's _mm512_max_ps
#else
  x = x < lowest ? lowest : x;
#endif
  Floats shifted = x + magic, r = x - (shifted - magic);
  Floats p = r * 0.00958285451f + 0.0559064311f;
  p = p * r + 0.240240986f;
  p = p * r + 0.693124193f;
  p = p * r + 1.0f;
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(p) + (reinterpret_cast<Words>(shifted) << 23));
}

// out = exp(x − shift) for x ≤ shift, and its sum; see TransformerKernels.
template <typename T>
__attribute__((flatten)) static float exponentials(const float* x, float shift, T* out, size_t n) {
  Floats sum = {};
  vectors(n, [&](size_t i, size_t count) {
    Floats e = expNegative(load(x + i, count, -__builtin_inff()) - shift);
    store(e, out + i, count);
    sum += e;
  });
  return sumOf(sum);
}
