// Purpose: matrix products and Gram matrices. The products are the library's; what is here cuts them.
#include <algorithm>

#include "cuda/cuda_backend.h"

namespace alps {

namespace {

// ---- kernels -------------------------------------------------------------------------------------------------------

// Numbers of a product in float32 whose result is wanted in bfloat16; as many at a time are kept.
constexpr int64_t wideElements = int64_t{1} << 26;

// Four numbers a step, the last count % 4 by single threads. `from` is 16-byte aligned, `to` 8-byte aligned if `wide`.
__global__ void roundKernel(const float* from, bf16_t* to, int64_t count, bool wide) {
  int64_t step = int64_t{gridDim.x} * blockDim.x, first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  int64_t fours = wide ? count / 4 : 0;
  for (int64_t i = first; i < fours; i += step) {
    float4 x = reinterpret_cast<const float4*>(from)[i];
    uint32_t low = bf16Of(x.x).bits | uint32_t{bf16Of(x.y).bits} << 16;
    uint32_t high = bf16Of(x.z).bits | uint32_t{bf16Of(x.w).bits} << 16;
    reinterpret_cast<uint2*>(to)[i] = make_uint2(low, high);
  }
  for (int64_t i = 4 * fours + first; i < count; i += step) to[i] = bf16Of(from[i]);
}

// ---- cutting -------------------------------------------------------------------------------------------------------

// Columns of a panel of a Gram matrix. Panels of about 2048 columns and as many rows fill a large GPU with tiles of
// 128 × 256 once or several times over; narrower ones would save more of the product and leave processors idle.
int64_t panelFor(int64_t n) {
  constexpr int64_t target = 2048, tile = 128;
  int64_t panels = (n + target - 1) / target;
  return ((n + panels - 1) / panels + tile - 1) / tile * tile;
}

}  // namespace

// ---- launchers -----------------------------------------------------------------------------------------------------

// Below this the splitting and the launches take as long as is won; the sums over short k are not worth it either.
bool CudaBackend::splits(int64_t m, int64_t n, int64_t k) const {
  constexpr int64_t least = 256, products = int64_t{1} << 31;
  return splitsAlways_ || (std::min({m, n, k}) >= least && m * n * k >= products);
}

SplitFactor CudaBackend::splitOf(const Factor& x, int64_t rows, int64_t columns, Side side, bf16_t* memory) {
  return splitFactor(queue(), runtime_->properties().multiprocessors, x, rows, columns, side, memory);
}

void CudaBackend::productOf(int64_t m, int64_t n, int64_t k, float alpha, Factor a, Factor b, float beta, float* c,
                            int64_t ldc, bool split) {
  if (!split || k == 0 || !splits(m, n, k)) return products_->f32(m, n, k, alpha, a, b, beta, c, ldc);
  auto left = scratch<bf16_t>(splitSize(m * k)), right = scratch<bf16_t>(splitSize(k * n));
  multiplySplit(*products_, m, n, k, alpha, splitOf(a, m, k, Side::left, left), splitOf(b, k, n, Side::right, right),
                beta, c, ldc);
}

void CudaBackend::gemm(Tensor a, Tensor b, Tensor out, bool transposeA, bool transposeB, double alpha, double beta,
                       bool split) {
  int64_t m = out.dim(0), n = out.dim(1), k = a.dim(transposeA ? 0 : 1);
  if (m == 0 || n == 0) return;
  Factor left{a.as<void>(), a.dim(1), transposeA}, right{b.as<void>(), b.dim(1), transposeB};
  float scale = static_cast<float>(alpha), keep = static_cast<float>(beta);
  if (a.dtype == DType::bf16)
    return products_->bf16(m, n, k, scale, left, right, keep, out.as<void>(), out.dtype, /* ldc = */ n);
  if (out.dtype == DType::f32) return productOf(m, n, k, scale, left, right, keep, out.as(), /* ldc = */ n, split);
  int64_t rows = std::clamp<int64_t>(wideElements / n, 1, m);
  auto wide = scratch<float>(rows * n);
  for (int64_t i = 0; i < m; i += rows) {
    throwIfCancelled();
    int64_t height = std::min(rows, m - i);
    Factor part = left;
    part.data = a.as() + (transposeA ? i : i * left.ld);
    products_->f32(height, n, k, scale, part, right, 0, wide, /* ldc = */ n);
    bf16_t* to = out.as<bf16_t>() + i * n;
    launch(queue(), roundKernel, blocksFor((height * n + 3) / 4), blockSize_, 0, wide.data(), to, height * n,
           reinterpret_cast<uintptr_t>(to) % 8 == 0);
  }
}

void CudaBackend::gramAccumulate(Tensor x, Tensor gram) {
  int64_t tokens = x.dim(0), n = x.dim(1);
  if (tokens == 0 || n == 0) return;
  // Panel by panel of columns, each from the top to the end of its block on the diagonal.
  for (int64_t j = 0, panel = panelFor(n); j < n; j += panel) {
    throwIfCancelled();
    int64_t columns = std::min(panel, n - j), rows = j + columns;
    auto product = [&](auto* at) {
      Factor left{at, n, true}, right{at + j, n};
      if (x.dtype == DType::bf16)
        products_->bf16(rows, columns, tokens, 1, left, right, 1, gram.as() + j, DType::f32, /* ldc = */ n);
      else
        products_->f32(rows, columns, tokens, 1, left, right, 1, gram.as() + j, /* ldc = */ n);
    };
    dispatch(x.dtype, [&](auto* type) { product(x.as<std::remove_pointer_t<decltype(type)>>()); });
  }
}

}  // namespace alps
