// Loops of the decoder's forward pass; see cpu/kernels.h.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace alps {

enum Activation { silu, gelu, geluTanh, relu };

// Columns of a narrow product.
constexpr size_t narrowColumns = 16;

struct TransformerKernels {
  // ---- a narrow product: out [rows, narrowColumns] += b [rows, k] x, with x [k, narrowColumns]. One sum over k each.
  void (*narrowProduct)(const float* x, const float* b, size_t ldb, size_t k, size_t rows, float* out);

  // ---- softmax
  // Largest value; NaN is passed over, −infinity when there is no other.
  float (*maximum)(const float* x, size_t n);
  // out = exp(x − shift) for x ≤ shift, and its sum. NaN stays NaN, below −87.7 it is 0. out may be x.
  float (*exponentials)(const float* x, float shift, float* out, size_t n);
  float (*exponentials16)(const float* x, float shift, bf16_t* out, size_t n);
  double (*sumExponentials)(const float* x, float shift, size_t n);  // the sum alone, for long rows
  // With v = x − shift ≤ 0 and w = y − yShift ≤ 0: Σ exp(v), Σ exp(w), Σ exp(v) (v − w).
  void (*divergenceSums)(const float* x, const float* y, float shift, float yShift, size_t n, double sums[3]);

  // ---- one norm: out = x / sqrt(mean x² + eps) * (weight + offset). out may be x.
  void (*norm)(const float* x, const float* weight, double eps, float offset, float* out, size_t n);
  void (*normTo16)(const float* x, const float* weight, double eps, float offset, bf16_t* out, size_t n);
  void (*normFrom16)(const bf16_t* x, const float* weight, double eps, float offset, float* out, size_t n);
  void (*norm16)(const bf16_t* x, const float* weight, double eps, float offset, bf16_t* out, size_t n);

  // ---- one norm with a mean: out = (x − mean x) / sqrt(var x + eps) * weight + bias. out may be x.
  void (*layerNorm)(const float* x, const float* weight, const float* bias, double eps, float* out, size_t n);
  void (*layerNormTo16)(const float* x, const float* weight, const float* bias, double eps, bf16_t* out, size_t n);
  void (*layerNormFrom16)(const bf16_t* x, const float* weight, const float* bias, double eps, float* out, size_t n);
  void (*layerNorm16)(const bf16_t* x, const float* weight, const float* bias, double eps, bf16_t* out, size_t n);

  // ---- one token: each head's (x[i], x[i + half]) turned by the angle of cosine[i], sine[i]
  void (*rope)(float* x, const float* cosine, const float* sine, size_t half, size_t headDim, size_t heads);
  void (*rope16)(bf16_t* x, const float* cosine, const float* sine, size_t half, size_t headDim, size_t heads);

  // ---- out = activation(gate) * up, indexed by Activation. out may be gate or up.
  void (*gated[4])(const float* gate, const float* up, float* out, size_t n);
  void (*gated16[4])(const bf16_t* gate, const bf16_t* up, bf16_t* out, size_t n);
  void (*activate[4])(const float* x, float* out, size_t n);  // out may be x
  void (*activate16[4])(const bf16_t* x, bf16_t* out, size_t n);
  void (*softCap)(float* x, float cap, size_t n);  // x = cap tanh(x / cap)
};

}  // namespace alps
