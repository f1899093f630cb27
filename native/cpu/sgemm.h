// oneDNN's matrix products on one thread, row-major, checked. Parallelism is the callers' business.
#pragma once
#include <cstdint>

#include "core/tensor.h"

namespace alps {

// c [m, n] = alpha * op(a) op(b) + beta * c; lda, ldb, ldc are row lengths of the stored matrices.
void sgemm(bool transposeA, bool transposeB, int64_t m, int64_t n, int64_t k, float alpha, const float* a, int64_t lda,
           const float* b, int64_t ldb, float beta, float* c, int64_t ldc);

// Whether bfloat16 products are on tiles (AMX).
bool multipliesTiles();

// The same with bfloat16 inputs and float32 accumulation; only where hasBf16Products().
void bgemm(bool transposeA, bool transposeB, int64_t m, int64_t n, int64_t k, float alpha, const bf16_t* a, int64_t lda,
           const bf16_t* b, int64_t ldb, float beta, float* c, int64_t ldc);

}  // namespace alps
