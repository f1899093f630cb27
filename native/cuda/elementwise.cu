// Purpose: conversions, vector updates, masks, dot products; bound by memory.
#include "cuda/cuda_backend.h"
#include "cuda/reduce.h"

namespace alps {

namespace {

// ---- kernels ----------------------------------------------------------------------------------------------------------

template <typename T>
__global__ void fillKernel(T* out, int64_t count, T value) {
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) out[i] = value;
}

// One block a row.
__global__ void rowDotsKernel(const float* a, const float* b, int64_t columns, double* out) {
  const float *x = a + blockIdx.x * columns, *y = b + blockIdx.x * columns;
  double sum = 0;
  for (int64_t j = threadIdx.x; j < columns; j += blockDim.x) sum += static_cast<double>(x[j]) * y[j];
  sum = blockSum(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

}  // namespace

// ---- launchers --------------------------------------------------------------------------------------------------------

void CudaBackend::fill(Tensor out, double value) {
  auto run = [&](auto* to, auto converted) {
    launch(queue(), fillKernel<std::remove_pointer_t<decltype(to)>>, blocksFor(out.size()), blockSize_, 0, to,
           out.size(), converted);
  };
  float f = static_cast<float>(value);
  switch (out.dtype) {
    case DType::f32:
      return run(out.as<float>(), f);
    case DType::f64:
      return run(out.as<double>(), value);
    case DType::u32:
      return run(out.as<uint32_t>(), static_cast<uint32_t>(value));
    case DType::u8:
      return run(out.as<uint8_t>(), static_cast<uint8_t>(value));
    case DType::bf16:
      return run(out.as<bf16_t>(), bf16Of(f));
    case DType::f16:
      fail("INTERNAL", "no kernel for fill of float16");
  }
}

void CudaBackend::rowDots(Tensor a, Tensor b, Tensor out) {
  launch(queue(), rowDotsKernel, {a.rows()}, blockSize_, 0, a.as(), b.as(), a.columns(), out.as<double>());
}

}  // namespace alps
