// The language that the .cu files are written in, on either of two machines: CUDA's compiler, or a C++ compiler that
// runs the same kernels on the processor (host/device_language.h), so that their logic is tested where there is no GPU.
//
// What a .cu file uses beyond C++: __global__, __device__, threadIdx & co., __syncthreads, warp shuffles and votes,
// atomics, and the following, which stand for what has no common spelling:
//   SHARED(float, tile, 32 * 33);       shared memory of a fixed size, a pointer named tile
//   DYNAMIC_SHARED(float, rows);        the shared memory whose bytes the launch gave
//   launch(queue, kernel, grid, threads, sharedBytes, arguments...)
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

#include "core/error.h"
#include "core/tensor.h"

namespace alps {

// Blocks of a launch.
struct Grid {
  int64_t x = 1;
  int64_t y = 1;
  int64_t z = 1;
};

// The device's order of work: launches run one after the other. A cudaStream_t; on the host, its settings.
using Queue = void*;

}  // namespace alps

#ifdef ALPS_CUDA_ON_HOST
#include "cuda/host/device_language.h"
#else
#include <cuda_runtime.h>

// Aligned for accesses of 16 bytes, whatever the type.
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define DYNAMIC_SHARED(type, name)                                   \
  extern __shared__ __align__(16) unsigned char alpsDynamicShared[]; \
  type* name = reinterpret_cast<type*>(alpsDynamicShared)

namespace alps {

inline void checkCuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  const char* code = status == cudaErrorMemoryAllocation ? "OUT_OF_MEMORY" : "DEVICE_FAILED";
  fail(code, call, " failed: ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")");
}
#define CHECK_CUDA(call) ::alps::checkCuda((call), #call)

// More shared memory than this has to be asked for.
constexpr size_t sharedWithoutAsking = 48 << 10;

#ifdef __CUDACC__
template <typename... P, typename... A>
void launch(Queue queue, void (*kernel)(P...), Grid grid, int threads, size_t sharedBytes, A&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (sharedBytes > sharedWithoutAsking)
    CHECK_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(sharedBytes)));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = sharedBytes;
  config.stream = static_cast<cudaStream_t>(queue);
  CHECK_CUDA(cudaLaunchKernelEx(&config, kernel, static_cast<P>(std::forward<A>(arguments))...));
}
#endif

}  // namespace alps
#endif

// Numbers, the same on both.
namespace alps {

constexpr int warpSize32 = 32;

__host__ __device__ inline float floatOf(float x) { return x; }
__host__ __device__ inline float floatOf(bf16_t x) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
#else
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
#endif
}

// Rounds to nearest even; a NaN stays one.
__host__ __device__ inline bf16_t bf16Of(float f) {
  uint32_t bits;
#ifdef __CUDA_ARCH__
  bits = __float_as_uint(f);
#else
  __builtin_memcpy(&bits, &f, sizeof bits);
#endif
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
  return {static_cast<uint16_t>(f != f ? nan : rounded)};
}

template <typename T>
__host__ __device__ inline T rounded(float f);
template <>
__host__ __device__ inline float rounded<float>(float f) {
  return f;
}
template <>
__host__ __device__ inline bf16_t rounded<bf16_t>(float f) {
  return bf16Of(f);
}

// Calls action with a null pointer of the C++ type of a float32 or bfloat16 tensor:
// dispatch(x.dtype, [&](auto* t) {...}).
template <typename Action>
void dispatch(DType dtype, const Action& action) {
  if (dtype == DType::bf16)
    action(static_cast<bf16_t*>(nullptr));
  else
    action(static_cast<float*>(nullptr));
}

}  // namespace alps
