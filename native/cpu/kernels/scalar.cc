#define ALPS_ISA scalar
#include "cpu/kernels/all.inl"
#include "cpu/kernels_products.h"

namespace alps::scalar {

#include "cpu/kernels/products.inl"

extern const ProductKernels products;
const ProductKernels products = productTable;

}  // namespace alps::scalar
