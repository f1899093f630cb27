// Loops of the decoder's forward pass; see cpu/kernels.h. All in float32; their callers convert other formats.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace alps {

struct TransformerKernels {
  // out = x / rms(x) * (weight + offset) over n values; out may be x.
  void (*rmsNorm)(const float* x, const float* weight, float eps, float offset, float* out, size_t n);
  // Pairs (first[i], second[i]) rotated by the angles' cosine and sine.
  void (*rotate)(float* first, float* second, const float* cosine, const float* sine, size_t half);
  // out = x / (1 + exp(−x)) * up, and the other activations; out may be x.
  void (*silu)(const float* x, const float* up, float* out, size_t n);
  void (*relu)(const float* x, const float* up, float* out, size_t n);
  void (*geluTanh)(const float* x, const float* up, float* out, size_t n);
  // x = exp(scale * (x − max)) with max the largest of x; returns the sum. n ≥ 1. A row of −inf only gives zeros.
  float (*softmaxRow)(float* x, float scale, size_t n);
  void (*multiply)(float* x, float factor, size_t n);
  // log Σ exp(x)
  double (*logSumExp)(const float* x, size_t n);
};

}  // namespace alps
