// Matrix products by cuBLAS.
//
// cuBLAS reads matrices by columns: to it, a row-major matrix is its own transpose. So it is asked for cᵀ = op(b)ᵀ
// op(a)ᵀ: the factors change places and keep their transposition flags, rows and columns change places.
#include <cublas_v2.h>

#include <algorithm>
#include <climits>

#include "cuda/products.h"

namespace alps {

namespace {

void checkCublas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const char* code = status == CUBLAS_STATUS_ALLOC_FAILED ? "OUT_OF_MEMORY" : "DEVICE_FAILED";
  fail(code, call, " failed: ", cublasGetStatusString(status), " (", cublasGetStatusName(status), ")");
}
#define CHECK_CUBLAS(call) checkCublas((call), #call)

// All calls run one after the other and so share one workspace: cuBLAS then allocates nothing, which a recorded graph
// needs, and chooses the same algorithm every time, which equal bits need.
constexpr size_t workspaceBytes = size_t{32} << 20;

class Handle {
 public:
  Handle() { CHECK_CUBLAS(cublasCreate(&handle_)); }
  ~Handle() { cublasDestroy(handle_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  operator cublasHandle_t() const { return handle_; }

 private:
  cublasHandle_t handle_ = nullptr;
};

int narrow(int64_t size) {
  if (size < 0 || size > INT_MAX)
    fail("INVALID_ARGUMENT", "A matrix product with a dimension of ", size, " is too large");
  return static_cast<int>(size);
}

cublasOperation_t operation(const Factor& x) { return x.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; }

// A matrix of one row may have any stride; cuBLAS asks for at least the length of what it takes for a column.
int leading(const Factor& x, int64_t rows, int64_t columns) {
  return narrow(std::max<int64_t>({x.ld, x.transposed ? rows : columns, 1}));
}

class CublasProducts final : public Products {
 public:
  explicit CublasProducts(Runtime& runtime) : runtime_(runtime), workspace_(runtime, workspaceBytes) {
    // The default mode never rounds float32 factors to TF32, which has 11 digits; whoever can do with fewer than 24
    // asks for split factors (split.h), which have 16. bfloat16 products that are cut along k add their parts in
    // float32.
    CHECK_CUBLAS(cublasSetMathMode(
        handle_, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
    CHECK_CUBLAS(cublasSetAtomicsMode(handle_, CUBLAS_ATOMICS_NOT_ALLOWED));  // atomic sums have no fixed order
  }

  void f32(int64_t m, int64_t n, int64_t k, float alpha, Factor a, Factor b, float beta, float* c,
           int64_t ldc) override {
    if (m == 0 || n == 0) return;
    if (k == 0) return scale(m, n, beta, c, ldc);
    multiply(m, n, k, alpha, a, b, beta, c, ldc, /* in = */ CUDA_R_32F, /* out = */ CUDA_R_32F);
  }

  void bf16(int64_t m, int64_t n, int64_t k, float alpha, Factor a, Factor b, float beta, void* c, DType out,
            int64_t ldc) override {
    if (m == 0 || n == 0) return;
    if (k == 0) {
      if (out == DType::f32) return scale(m, n, beta, static_cast<float*>(c), ldc);
      return clear(m, n, c, ldc, sizeof(bf16_t));
    }
    multiply(m, n, k, alpha, a, b, beta, c, ldc, /* in = */ CUDA_R_16BF,
             /* out = */ out == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F);
  }

  void f32Batch(int64_t m, int64_t n, int64_t k, float alpha, Factor a, int64_t strideA, Factor b, int64_t strideB,
                float beta, float* c, int64_t ldc, int64_t strideC, int64_t count) override {
    if (m == 0 || n == 0 || count == 0) return;
    if (k == 0) {
      for (int64_t i = 0; i < count; i++) scale(m, n, beta, c + i * strideC, ldc);
      return;
    }
    CHECK_CUBLAS(cublasGemmStridedBatchedEx(
        handle(), operation(b), operation(a), narrow(n), narrow(m), narrow(k), &alpha, b.data, CUDA_R_32F,
        /* lda = */ leading(b, k, n), strideB, a.data, CUDA_R_32F, /* ldb = */ leading(a, m, k), strideA, &beta, c,
        CUDA_R_32F, /* ldc = */ narrow(std::max(ldc, n)), strideC, narrow(count), CUBLAS_COMPUTE_32F,
        CUBLAS_GEMM_DEFAULT));
  }

 private:
  cudaStream_t stream() const { return static_cast<cudaStream_t>(runtime_.queue()); }

  // For the stream of the moment: while a graph is recorded it is another one than the usual. Whenever a handle is
  // given a stream, cuBLAS goes back to a workspace of its own, so ours has to follow.
  cublasHandle_t handle() {
    cudaStream_t now = stream();
    if (now != handleStream_) {
      handleStream_ = nullptr;
      CHECK_CUBLAS(cublasSetStream(handle_, now));
      CHECK_CUBLAS(cublasSetWorkspace(handle_, workspace_.data(), workspaceBytes));
      handleStream_ = now;
    }
    return handle_;
  }

  void multiply(int64_t m, int64_t n, int64_t k, float alpha, const Factor& a, const Factor& b, float beta, void* c,
                int64_t ldc, cudaDataType_t in, cudaDataType_t out) {
    CHECK_CUBLAS(cublasGemmEx(handle(), operation(b), operation(a), narrow(n), narrow(m), narrow(k), &alpha, b.data, in,
                              /* lda = */ leading(b, k, n), a.data, in, /* ldb = */ leading(a, m, k), &beta, c, out,
                              /* ldc = */ narrow(std::max(ldc, n)), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  }

  // c [m, n] := beta · c: what is left of a product of no terms. beta = 0 does not read c.
  void scale(int64_t m, int64_t n, float beta, float* c, int64_t ldc) {
    if (beta == 1) return;
    if (beta == 0) return clear(m, n, c, ldc, sizeof(float));
    float none = 0;
    int ld = narrow(std::max(ldc, n));
    CHECK_CUBLAS(cublasSgeam(handle(), CUBLAS_OP_N, CUBLAS_OP_N, narrow(n), narrow(m), &beta, c, /* lda = */ ld, &none,
                             c,
                             /* ldb = */ ld, c, /* ldc = */ ld));
  }

  void clear(int64_t m, int64_t n, void* c, int64_t ldc, size_t element) {
    size_t row = static_cast<size_t>(n) * element;
    size_t pitch = std::max(static_cast<size_t>(ldc) * element, row);
    CHECK_CUDA(cudaMemset2DAsync(c, pitch, 0, row, static_cast<size_t>(m), stream()));
  }

  Runtime& runtime_;
  Scratch<char> workspace_;  // outlives the handle
  Handle handle_;
  cudaStream_t handleStream_ = nullptr;  // that the handle was given; null: none yet
};

}  // namespace

std::unique_ptr<Products> openProducts(Runtime& runtime) { return std::make_unique<CublasProducts>(runtime); }

}  // namespace alps
