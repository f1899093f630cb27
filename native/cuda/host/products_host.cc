#include "cuda/products.h"

namespace alps {

namespace {

template <typename T>
double element(const Factor& x, int64_t row, int64_t column) {
  return floatOf(static_cast<const T*>(x.data)[x.transposed ? column * x.ld + row : row * x.ld + column]);
}

template <typename T, typename Out>
void product(int64_t m, int64_t n, int64_t k, float alpha, Factor a, Factor b, float beta, Out* c, int64_t ldc) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      double sum = 0;
      for (int64_t l = 0; l < k; l++) sum += element<T>(a, i, l) * element<T>(b, l, j);
      Out& out = c[i * ldc + j];
      out = rounded<Out>(static_cast<float>(alpha * sum + (beta == 0 ? 0.0 : beta * floatOf(out))));
    }
}

class HostProducts final : public Products {
 public:
  void f32(int64_t m, int64_t n, int64_t k, float alpha, Factor a, Factor b, float beta, float* c,
           int64_t ldc) override {
    product<float>(m, n, k, alpha, a, b, beta, c, ldc);
  }
  void bf16(int64_t m, int64_t n, int64_t k, float alpha, Factor a, Factor b, float beta, void* c, DType out,
            int64_t ldc) override {
    if (out == DType::bf16)
      product<bf16_t>(m, n, k, alpha, a, b, beta, static_cast<bf16_t*>(c), ldc);
    else
      product<bf16_t>(m, n, k, alpha, a, b, beta, static_cast<float*>(c), ldc);
  }
  void f32Batch(int64_t m, int64_t n, int64_t k, float alpha, Factor a, int64_t strideA, Factor b, int64_t strideB,
                float beta, float* c, int64_t ldc, int64_t strideC, int64_t count) override {
    for (int64_t i = 0; i < count; i++) {
      Factor left = a, right = b;
      left.data = static_cast<const float*>(a.data) + i * strideA;
      right.data = static_cast<const float*>(b.data) + i * strideB;
      f32(m, n, k, alpha, left, right, beta, c + i * strideC, ldc);
    }
  }
};

}  // namespace

std::unique_ptr<Products> openProducts(Runtime&) { return std::make_unique<HostProducts>(); }

}  // namespace alps
