// Purpose: the loops of kernels_transformer.h. Included by kernels/all.inl in a namespace of its own.

// exp(x) to 2 units in the last place: 2^k · p(r) with r = x − k ln 2. Below −87.3 the result is 0, above 88.7
// infinity; branches would keep the loops from becoming vector code.
static inline float fastExp(float x) {
  float clamped = x < -88.0f ? -88.0f : x > 89.0f ? 89.0f : x;
  float k = __builtin_floorf(clamped * 1.44269504f + 0.5f);
  float r = clamped - k * 0.693359375f;
  r = r + k * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^k in two factors, so that k = 128 and results near the smallest normal number come out right.
  int32_t whole = static_cast<int32_t>(k), part = whole >> 1;
  uint32_t bits1 = static_cast<uint32_t>(part + 127) << 23, bits2 = static_cast<uint32_t>(whole - part + 127) << 23;
  float power1, power2;
  __builtin_memcpy(&power1, &bits1, 4);
  __builtin_memcpy(&power2, &bits2, 4);
  float value = p * power1 * power2;
  return x < -87.3f ? 0.0f : value;
}

static void rmsNorm(const float* x, const float* weight, float eps, float offset, float* out, size_t n) {
  float mean = static_cast<float>(dot(x, x, n) / static_cast<double>(n));
  float factor = 1.0f / __builtin_sqrtf(mean + eps);
  for (size_t i = 0; i < n; i++) out[i] = x[i] * factor * (weight[i] + offset);
}

static void rotate(float* first, float* second, const float* cosine, const float* sine, size_t half) {
  for (size_t i = 0; i < half; i++) {
    float a = first[i], b = second[i];
    first[i] = a * cosine[i] - b * sine[i];
    second[i] = b * cosine[i] + a * sine[i];
  }
}

static void silu(const float* x, const float* up, float* out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = x[i] / (1.0f + fastExp(-x[i])) * up[i];
}

static void relu(const float* x, const float* up, float* out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = (x[i] > 0.0f ? x[i] : x[i] != x[i] ? x[i] : 0.0f) * up[i];
}

// 0.5 x (1 + tanh(z)) = x / (1 + exp(−2z)), z = √(2/π) (x + 0.044715 x³)
static void geluTanh(const float* x, const float* up, float* out, size_t n) {
  for (size_t i = 0; i < n; i++) {
    float z = 1.5957691216f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
    out[i] = x[i] / (1.0f + fastExp(-z)) * up[i];
  }
}

static inline float largest(const float* x, size_t n) {
  float lanes[16];
  for (int lane = 0; lane < 16; lane++) lanes[lane] = -__builtin_inff();
  size_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int lane = 0; lane < 16; lane++) lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
  float max = -__builtin_inff();
  for (int lane = 0; lane < 16; lane++) max = lanes[lane] > max ? lanes[lane] : max;
  for (; i < n; i++) max = x[i] > max ? x[i] : max;
  return max;
}

static float softmaxRow(float* x, float scale, size_t n) {
  float max = largest(x, n);
  float shift = max == -__builtin_inff() ? 0.0f : max;
  float lanes[16] = {0};
  size_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int lane = 0; lane < 16; lane++) {
      float value = fastExp(scale * (x[i + lane] - shift));
      x[i + lane] = value;
      lanes[lane] += value;
    }
  float sum = 0;
  for (int lane = 0; lane < 16; lane++) sum += lanes[lane];
  for (; i < n; i++) {
    x[i] = fastExp(scale * (x[i] - shift));
    sum += x[i];
  }
  return sum;
}

static void multiply(float* x, float factor, size_t n) {
  for (size_t i = 0; i < n; i++) x[i] *= factor;
}

static double logSumExp(const float* x, size_t n) {
  float max = largest(x, n);
  if (max == -__builtin_inff()) max = 0.0f;
  double total = 0;
  for (size_t start = 0; start < n; start += 1024) {
    size_t end = start + 1024 < n ? start + 1024 : n;
    float lanes[16] = {0};
    size_t i = start;
    for (; i + 16 <= end; i += 16)
      for (int lane = 0; lane < 16; lane++) lanes[lane] += fastExp(x[i + lane] - max);
    for (int lane = 0; i < end; i++, lane++) lanes[lane] += fastExp(x[i] - max);
    for (int lane = 0; lane < 16; lane++) total += lanes[lane];
  }
  return max + __builtin_log(total);
}

static const TransformerKernels transformerTable = {rmsNorm,  rotate,     silu,     relu,
                                                    geluTanh, softmaxRow, multiply, logSumExp};
