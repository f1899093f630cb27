// Purpose: the loops of kernels_transformer.h. Included by kernels/all.inl in a namespace of its own.
#include "cpu/kernels/vectors.inl"

static inline Floats absolute(Floats x) { return reinterpret_cast<Floats>(reinterpret_cast<Words>(x) & 0x7fffffff); }

// ---- softmax

__attribute__((flatten)) static float maximum(const float* x, size_t n) {
  constexpr float lowest = -__builtin_inff();
  // Four, as each waits for its last comparison.
  Floats top[4] = {Floats{} + lowest, Floats{} + lowest, Floats{} + lowest, Floats{} + lowest};
  size_t i = 0;
  for (; i + 4 * floatLanes <= n; i += 4 * floatLanes) {
    for (size_t j = 0; j < 4; j++) {
      Floats v = load(x + i + j * floatLanes);
      top[j] = v > top[j] ? v : top[j];
    }
  }
  vectors(n - i, [&](size_t rest, size_t count) {
    Floats v = load(x + i + rest, count, lowest);
    top[0] = v > top[0] ? v : top[0];
  });
  for (size_t j = 1; j < 4; j++) top[0] = top[j] > top[0] ? top[j] : top[0];
  return reduced<floatLanes>(top[0], [](auto a, auto b) { return a > b ? a : b; });
}

// Short float sums, added in double. add(i, count, sums) adds to each of them.
template <size_t count, typename Add>
static inline __attribute__((always_inline)) void longSums(size_t n, double* totals, const Add& add) {
  for (size_t k = 0; k < count; k++) totals[k] = 0;
  for (size_t begin = 0; begin < n; begin += 1024) {
    Floats sums[count] = {};
    vectors(n - begin < 1024 ? n - begin : 1024, [&](size_t i, size_t lanes) { add(begin + i, lanes, sums); });
    for (size_t k = 0; k < count; k++) totals[k] += sumOf(sums[k]);
  }
}

template <typename Term>
static inline __attribute__((always_inline)) double longSum(size_t n, const Term& term) {
  double total;
  longSums<1>(n, &total, [&](size_t i, size_t count, Floats* sum) { sum[0] += term(i, count); });
  return total;
}

__attribute__((flatten)) static double sumExponentials(const float* x, float shift, size_t n) {
  return longSum(n, [&](size_t i, size_t count) { return expNegative(load(x + i, count, -__builtin_inff()) - shift); });
}

__attribute__((flatten)) static void divergenceSums(const float* x, const float* y, float shift, float yShift, size_t n,
                                                    double sums[3]) {
  constexpr float past = -1e38f;  // in lanes past the end: its exponentials are 0, and its difference is finite
  longSums<3>(n, sums, [&](size_t i, size_t count, Floats* sum) {
    Floats v = load(x + i, count, past) - shift, w = load(y + i, count, past) - yShift;
    Floats weight = expNegative(v);
    sum[0] += weight;
    sum[1] += expNegative(w);
    sum[2] += weight * (v - w);
  });
}

// ---- norms, rotary positions

template <typename T, typename U>
__attribute__((flatten)) static void norm(const T* x, const float* weight, double eps, float offset, U* out, size_t n) {
  double sum = longSum(n, [&](size_t i, size_t count) {
    Floats v = load(x + i, count);
    return v * v;
  });
  float factor = static_cast<float>(1 / __builtin_sqrt(sum / static_cast<double>(n) + eps));
  vectors(n, [&](size_t i, size_t count) {
    store(load(x + i, count) * factor * (load(weight + i, count) + offset), out + i, count);
  });
}

template <typename T, typename U>
__attribute__((flatten)) static void layerNorm(const T* x, const float* weight, const float* bias, double eps, U* out,
                                               size_t n) {
  double total = longSum(n, [&](size_t i, size_t count) { return load(x + i, count); });
  float mean = static_cast<float>(total / static_cast<double>(n));
  // The lanes past the end of a row are 0 and would count as −mean.
  double sum = longSum(n, [&](size_t i, size_t count) {
    float padded[floatLanes];
    store(load(x + i, count) - mean, padded);
    Floats v = load(padded, count, 0.0f);
    return v * v;
  });
  float factor = static_cast<float>(1 / __builtin_sqrt(sum / static_cast<double>(n) + eps));
  vectors(n, [&](size_t i, size_t count) {
    store((load(x + i, count) - mean) * factor * load(weight + i, count) + load(bias + i, count), out + i, count);
  });
}

template <typename T>
__attribute__((flatten)) static void rope(T* x, const float* cosine, const float* sine, size_t half, size_t headDim,
                                          size_t heads) {
  for (size_t head = 0; head < heads; head++) {
    T *first = x + head * headDim, *second = first + half;
    vectors(half, [&](size_t i, size_t count) {
      Floats a = load(first + i, count), b = load(second + i, count);
      Floats c = load(cosine + i, count), s = load(sine + i, count);
      store(a * c - b * s, first + i, count);
      store(b * c + a * s, second + i, count);
    });
  }
}

// ---- activations

// 1 / (1 + exp(−x)), without overflow on either side.
static inline Floats sigmoid(Floats x) {
  Floats e = expNegative(-absolute(x)), s = 1.0f / (1.0f + e);
  return x < 0.0f ? e * s : s;
}

// The same to a relative error below 1e-5, for what is rounded to bfloat16; below −87 it is 0.
static inline Floats shortSigmoid(Floats x) {
  Floats t = x * -1.44269504f;
  Floats sum = 1.0f + powerOfTwo(t < 126.0f ? t : Floats{} + 126.0f);
#if defined(__AVX512F__)
  Floats s = _mm512_maskz_rcp14_ps(0xffff, sum);
  s = s * (2.0f - sum * s);
#else
  Floats s = 1.0f / sum;
#endif
  return t < 126.0f ? s : Floats{};
}

// The normal distribution function, erfc(−x / √2) / 2. erfc(z) = exp(−z²) t P(t), t = 1 / (1 + z / 2), where P was
// fitted on 0 ≤ z ≤ 10 (relative error 3e-7).
static inline Floats normalDistribution(Floats x) {
  Floats z = absolute(x) * 0.707106781f, t = 1.0f / (1.0f + 0.5f * z);
  Floats p = t * -0.0601087064f + 0.289446115f;
  p = p * t - 0.496834570f;
  p = p * t + 0.288515151f;
  p = p * t - 0.0333990194f;
  p = p * t + 0.205360427f;
  p = p * t + 0.242479384f;
  p = p * t + 0.282453835f;
  p = p * t + 0.282082349f;
  Floats tail = 0.5f * t * p * expNegative(-(z * z));
  return x < 0.0f ? tail : 1.0f - tail;
}

template <Activation activation, typename T>
static inline Floats activated(Floats g) {
  auto weight = [](Floats x) { return sizeof(T) == sizeof(bf16_t) ? shortSigmoid(x) : sigmoid(x); };
  if constexpr (activation == silu) return g * weight(g);
  if constexpr (activation == gelu) return g * normalDistribution(g);
  // x (1 + tanh u) / 2 = x sigmoid(2 u), u = √(2 / π) (x + 0.044715 x³)
  if constexpr (activation == geluTanh) return g * weight(g * (1.59576912f + 0.0713548163f * g * g));
  if constexpr (activation == relu) return g < 0.0f ? Floats{} : g;
}

template <Activation activation, typename T>
__attribute__((flatten)) static void gated(const T* gate, const T* up, T* out, size_t n) {
  vectors(n, [&](size_t i, size_t count) {
    store(activated<activation, T>(load(gate + i, count)) * load(up + i, count), out + i, count);
  });
}

template <Activation activation, typename T>
__attribute__((flatten)) static void activate(const T* x, T* out, size_t n) {
  vectors(n, [&](size_t i, size_t count) { store(activated<activation, T>(load(x + i, count)), out + i, count); });
}

// tanh |u| = (1 − e) / (1 + e) with e = exp(−2 |u|).
__attribute__((flatten)) static void softCap(float* x, float cap, size_t n) {
  vectors(n, [&](size_t i, size_t count) {
    Floats u = load(x + i, count), e = expNegative(absolute(u) * (-2.0f / cap));
    Floats value = cap * (1.0f - e) / (1.0f + e);
    store(u < 0.0f ? -value : value, x + i, count);
  });
}

// ---- a narrow product

// Rows of b at a time: as many sums as there are registers for.
static constexpr size_t narrowRows = floatLanes == 4 ? 2 : floatLanes == 8 ? 6 : 12;
static constexpr size_t narrowVectors = narrowColumns / floatLanes;

template <size_t rows>
static inline __attribute__((always_inline)) void narrowTile(const float* x, const float* b, size_t ldb, size_t k,
                                                             float* out) {
  Floats sums[rows][narrowVectors] = {};
  for (size_t l = 0; l < k; l++) {
    Floats factors[narrowVectors];
#pragma GCC unroll 4
    for (size_t v = 0; v < narrowVectors; v++) factors[v] = load(x + l * narrowColumns + v * floatLanes);
#pragma GCC unroll 12
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 4
      for (size_t v = 0; v < narrowVectors; v++) sums[r][v] += b[r * ldb + l] * factors[v];
  }
  for (size_t r = 0; r < rows; r++) {
    for (size_t v = 0; v < narrowVectors; v++) {
      float* at = out + r * narrowColumns + v * floatLanes;
      store(load(at) + sums[r][v], at);
    }
  }
}

static void narrowProduct(const float* x, const float* b, size_t ldb, size_t k, size_t rows, float* out) {
  size_t r = 0;
  for (; r + narrowRows <= rows; r += narrowRows)
    narrowTile<narrowRows>(x, b + r * ldb, ldb, k, out + r * narrowColumns);
  for (; r < rows; r++) narrowTile<1>(x, b + r * ldb, ldb, k, out + r * narrowColumns);
}

static const TransformerKernels transformerTable = {
    narrowProduct,
    maximum,
    exponentials<float>,
    exponentials<bf16_t>,
    sumExponentials,
    divergenceSums,
    norm<float, float>,
    norm<float, bf16_t>,
    norm<bf16_t, float>,
    norm<bf16_t, bf16_t>,
    layerNorm<float, float>,
    layerNorm<float, bf16_t>,
    layerNorm<bf16_t, float>,
    layerNorm<bf16_t, bf16_t>,
    rope<float>,
    rope<bf16_t>,
    {gated<silu, float>, gated<gelu, float>, gated<geluTanh, float>, gated<relu, float>},
    {gated<silu, bf16_t>, gated<gelu, bf16_t>, gated<geluTanh, bf16_t>, gated<relu, bf16_t>},
    {activate<silu, float>, activate<gelu, float>, activate<geluTanh, float>, activate<relu, float>},
    {activate<silu, bf16_t>, activate<gelu, bf16_t>, activate<geluTanh, bf16_t>, activate<relu, bf16_t>},
    softCap,
};
