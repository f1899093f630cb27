// The loops of bfloat16 products for processors with AVX512_BF16. See kernels/all.inl for what may be included here.
#include <immintrin.h>

#include "cpu/kernels_products.h"

namespace alps::avx512bf16 {

#include "cpu/kernels/products.inl"

extern const ProductKernels products;
const ProductKernels products = productTable;

}  // namespace alps::avx512bf16
