// Matrix products, row-major. Two implementations: products_cublas.cc, and host/products_host.cc (plain loops in
// double).
#pragma once
#include <memory>

#include "cuda/runtime.h"

namespace alps {

// One factor: element (row, column) of op(x) is data[row * ld + column], or data[column * ld + row] when transposed.
struct Factor {
  const void* data;
  int64_t ld;
  bool transposed = false;
};

class Products {
 public:
  virtual ~Products() = default;
  // c [m, n] = alpha * op(a) [m, k] op(b) [k, n] + beta * c, in full float32 (no TF32); alpha and beta are numbers of
  // the host. k may be 0. c must not overlap a or b.
  virtual void f32(int64_t m, int64_t n, int64_t k, float alpha, Factor a, Factor b, float beta, float* c,
                   int64_t ldc) = 0;
  // a and b in bfloat16, sums in float32; c in float32 or bfloat16 (`out`; bfloat16 needs beta = 0).
  virtual void bf16(int64_t m, int64_t n, int64_t k, float alpha, Factor a, Factor b, float beta, void* c, DType out,
                    int64_t ldc) = 0;
  // `count` products f32() side by side; each pointer moves on by its stride (elements).
  virtual void f32Batch(int64_t m, int64_t n, int64_t k, float alpha, Factor a, int64_t strideA, Factor b,
                        int64_t strideB, float beta, float* c, int64_t ldc, int64_t strideC, int64_t count) = 0;
};

std::unique_ptr<Products> openProducts(Runtime& runtime);

}  // namespace alps
