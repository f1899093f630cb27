#define ALPS_ISA scalar
#include "cpu/kernels/all.inl"
#include "cpu/kernels_int8.h"
#include "cpu/kernels_products.h"

namespace alps::scalar {

#include "cpu/kernels/products.inl"

extern const ProductKernels products;
const ProductKernels products = productTable;

namespace int8 {
#include "cpu/kernels/int8.inl"
}
extern const Int8Kernels int8Products;
const Int8Kernels int8Products = int8::int8Table;

}  // namespace alps::scalar
