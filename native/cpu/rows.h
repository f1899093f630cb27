// Float32 views of rows that may be stored as bfloat16.
#pragma once
#include <vector>

#include "cpu/kernels.h"

namespace alps {

// `n` values of the tensor from element `at`: in place for float32, else converted into `buffer`.
inline const float* readRow(const Kernels& kernels, const Tensor& tensor, int64_t at, int64_t n,
                            std::vector<float>& buffer) {
  if (tensor.dtype == DType::f32) return tensor.as() + at;
  buffer.resize(static_cast<size_t>(n));
  kernels.f32FromBf16(tensor.as<bf16_t>() + at, buffer.data(), static_cast<size_t>(n));
  return buffer.data();
}

// Where to write `n` values that storeRow() then brings to the tensor.
inline float* targetRow(const Tensor& tensor, int64_t at, int64_t n, std::vector<float>& buffer) {
  if (tensor.dtype == DType::f32) return tensor.as() + at;
  buffer.resize(static_cast<size_t>(n));
  return buffer.data();
}

inline void storeRow(const Kernels& kernels, const Tensor& tensor, int64_t at, int64_t n, const float* row) {
  if (tensor.dtype == DType::bf16) kernels.bf16FromF32(row, tensor.as<bf16_t>() + at, static_cast<size_t>(n));
}

}  // namespace alps
