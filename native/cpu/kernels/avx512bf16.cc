// All loops with AVX512_BF16's rounding, and those of bfloat16 products, for processors that have it.
#define ALPS_ISA avx512bf16
#include <immintrin.h>

#include "cpu/kernels/all.inl"
#include "cpu/kernels_products.h"

namespace alps::avx512bf16 {

#include "cpu/kernels/products.inl"

extern const ProductKernels products;
const ProductKernels products = productTable;

}  // namespace alps::avx512bf16
