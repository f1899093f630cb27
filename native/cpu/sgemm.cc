#include "cpu/sgemm.h"

#include <dnnl.h>

#include <algorithm>
#include <cstring>
#include <vector>

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

// Where rows are multiples of half a page apart, the narrow columns that oneDNN packs fall into a few sets of the
// caches and are read from memory twice; its AVX2 products then take up to twice the time. Wide pieces that are copied
// first do not.
bool isFarApart(int64_t ld) { return ld % 512 == 0; }

bool uses(dnnl_cpu_isa_t isa) { return (dnnl_get_effective_cpu_isa() & isa) == isa; }

bool packsNarrowColumns() {
  static const bool narrow = !uses(dnnl_cpu_isa_avx512_core);
  return narrow;
}

// Fewer uses of each element do not pay for its copy.
constexpr int64_t enoughUses = 64;

// A copy's elements, 8 MB.
constexpr int64_t largestCopy = int64_t{1} << 21;

const float* copied(const float* from, int64_t& ld, int64_t rows, int64_t columns, std::vector<float>& out) {
  int64_t stride = (columns + 15) / 16 * 16 + 16;
  if (isFarApart(stride)) stride += 16;
  out.resize(static_cast<size_t>(rows * stride));
  for (int64_t i = 0; i < rows; i++)
    std::memcpy(out.data() + i * stride, from + i * ld, static_cast<size_t>(columns) * sizeof(float));
  ld = stride;
  return out.data();
}

// Columns of a copy of k rows; all of them where there is none.
int64_t pieceOf(bool copies, int64_t columns, int64_t k) {
  return copies ? std::clamp<int64_t>(largestCopy / std::max<int64_t>(k, 1), 64, columns) : columns;
}

}  // namespace

bool multipliesTiles() { return uses(dnnl_cpu_isa_avx512_core_amx); }

void sgemm(bool transposeA, bool transposeB, int64_t m, int64_t n, int64_t k, float alpha, const float* a, int64_t lda,
           const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  thread_local std::vector<float> columnsOfA, columnsOfB;
  bool pays = m >= enoughUses && n >= enoughUses && packsNarrowColumns();
  bool copiesA = pays && transposeA && isFarApart(lda), copiesB = pays && !transposeB && isFarApart(ldb);
  int64_t height = pieceOf(copiesA, m, k), width = pieceOf(copiesB, n, k);
  for (int64_t j = 0; j < n; j += width) {
    int64_t columns = std::min(width, n - j), strideB = ldb;
    const float* right = transposeB ? b + j * ldb : b + j;
    if (copiesB) right = copied(right, strideB, k, columns, columnsOfB);
    for (int64_t i = 0; i < m; i += height) {
      int64_t rows = std::min(height, m - i), strideA = lda;
      const float* left = transposeA ? a + i : a + i * lda;
      if (copiesA) left = copied(left, strideA, k, rows, columnsOfA);
      check(dnnl_sgemm(transposeA ? 'T' : 'N', transposeB ? 'T' : 'N', rows, columns, k, alpha, left, strideA, right,
                       strideB, beta, c + i * ldc + j, ldc),
            "dnnl_sgemm");
    }
  }
}

void bgemm(bool transposeA, bool transposeB, int64_t m, int64_t n, int64_t k, float alpha, const bf16_t* a, int64_t lda,
           const bf16_t* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  check(dnnl_gemm_bf16bf16f32(transposeA ? 'T' : 'N', transposeB ? 'T' : 'N', m, n, k, alpha, &a->bits, lda, &b->bits,
                              ldb, beta, c, ldc),
        "dnnl_gemm_bf16bf16f32");
}

}  // namespace alps
