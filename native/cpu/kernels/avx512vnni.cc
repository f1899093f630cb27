// The loops of products of 8-bit integers, for processors with AVX-512 that multiply them.
#include <immintrin.h>

#include "cpu/kernels_int8.h"

namespace alps::avx512vnni {

#include "cpu/kernels/int8.inl"

extern const Int8Kernels products;
const Int8Kernels products = int8Table;

}  // namespace alps::avx512vnni
