#include "cpu/sgemm.h"

#include <dnnl.h>

#include "core/error.h"

// Exported by libdnnl, though not declared in its header.
extern "C" dnnl_status_t dnnl_gemm_bf16bf16f32(char transa, char transb, dnnl_dim_t M, dnnl_dim_t N, dnnl_dim_t K,
                                               float alpha, const uint16_t* A, dnnl_dim_t lda, const uint16_t* B,
                                               dnnl_dim_t ldb, float beta, float* C, dnnl_dim_t ldc);

namespace alps {

namespace {
void check(dnnl_status_t status, const char* call) {
  if (status == dnnl_out_of_memory) fail("OUT_OF_MEMORY", call, ": no memory for its work buffer");
  if (status != dnnl_success) fail("INTERNAL", call, " failed with status ", static_cast<int>(status));
}
}  // namespace

void sgemm(bool transposeA, bool transposeB, int64_t m, int64_t n, int64_t k, float alpha, const float* a, int64_t lda,
           const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  check(dnnl_sgemm(transposeA ? 'T' : 'N', transposeB ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc),
        "dnnl_sgemm");
}

void bgemm(bool transposeA, bool transposeB, int64_t m, int64_t n, int64_t k, float alpha, const bf16_t* a, int64_t lda,
           const bf16_t* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  check(dnnl_gemm_bf16bf16f32(transposeA ? 'T' : 'N', transposeB ? 'T' : 'N', m, n, k, alpha, &a->bits, lda, &b->bits,
                              ldb, beta, c, ldc),
        "dnnl_gemm_bf16bf16f32");
}

}  // namespace alps
