// CUDA's language on the processor, for tests: a launch runs its blocks one after the other; the threads of a block are
// fibers that stop at barriers and at exchanges within their warp. Blocks and threads run in an order shuffled by a
// seed: a kernel that relies on another order than its barriers give then changes its result. Shared memory is filled
// with NaN before each block and has guard zones behind it.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

namespace alps::host {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// Where the running fiber is.
struct Place {
  Dim3 thread, block, threads, blocks;
};
extern thread_local Place place;

// What a Queue points to here.
struct Settings {
  uint64_t seed = 0;      // 0: blocks and threads in ascending order
  uint64_t launches = 0;  // so far
};

void run(Settings& settings, Grid grid, int threads, size_t sharedBytes, const std::function<void()>& kernel);
void barrier();
void warpBarrier(uint32_t lanes);
// Every lane of `lanes` puts a value in and gets all lanes' values, by lane.
const uint64_t* exchange(uint32_t lanes, uint64_t value);
void* sharedBlock(size_t bytes);  // the running block's next array
void* dynamicShared();
inline int lane() { return static_cast<int>(place.thread.x % 32); }

template <typename T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <typename T>
T unpack(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace alps::host

#define threadIdx (::alps::host::place.thread)
#define blockIdx (::alps::host::place.block)
#define blockDim (::alps::host::place.threads)
#define gridDim (::alps::host::place.blocks)

#define SHARED(type, name, count) type* name = static_cast<type*>(::alps::host::sharedBlock(sizeof(type) * (count)))
#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::alps::host::dynamicShared())

struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline void __syncthreads() { alps::host::barrier(); }
inline void __syncwarp(uint32_t lanes = 0xffffffff) { alps::host::warpBarrier(lanes); }
inline void __threadfence() {}

template <typename T>
T __shfl_sync(uint32_t lanes, T value, int from, int width = 32) {
  const uint64_t* all = alps::host::exchange(lanes, alps::host::pack(value));
  int lane = alps::host::lane();
  return alps::host::unpack<T>(all[lane / width * width + from % width]);
}
template <typename T>
T __shfl_xor_sync(uint32_t lanes, T value, int by, int = 32) {
  const uint64_t* all = alps::host::exchange(lanes, alps::host::pack(value));
  return alps::host::unpack<T>(all[alps::host::lane() ^ by]);
}
template <typename T>
T __shfl_down_sync(uint32_t lanes, T value, unsigned by, int width = 32) {
  const uint64_t* all = alps::host::exchange(lanes, alps::host::pack(value));
  int lane = alps::host::lane(), from = lane + static_cast<int>(by);
  return alps::host::unpack<T>(all[from / width == lane / width ? from : lane]);
}
template <typename T>
T __shfl_up_sync(uint32_t lanes, T value, unsigned by, int width = 32) {
  const uint64_t* all = alps::host::exchange(lanes, alps::host::pack(value));
  int lane = alps::host::lane();
  return alps::host::unpack<T>(all[lane % width >= static_cast<int>(by) ? lane - static_cast<int>(by) : lane]);
}
inline uint32_t __ballot_sync(uint32_t lanes, int predicate) {
  const uint64_t* all = alps::host::exchange(lanes, predicate != 0);
  uint32_t votes = 0;
  for (int i = 0; i < 32; i++)
    if ((lanes >> i & 1) && all[i]) votes |= 1u << i;
  return votes;
}
inline int __any_sync(uint32_t lanes, int predicate) { return __ballot_sync(lanes, predicate) != 0; }
inline int __all_sync(uint32_t lanes, int predicate) { return __ballot_sync(lanes, predicate) == lanes; }

// One system thread runs a launch, so a plain update is atomic.
template <typename T, typename U>
T atomicAdd(T* at, U value) {
  T old = *at;
  *at = static_cast<T>(old + static_cast<T>(value));
  return old;
}
template <typename T, typename U>
T atomicMax(T* at, U value) {
  T old = *at;
  *at = std::max(old, static_cast<T>(value));
  return old;
}
template <typename T, typename U>
T atomicMin(T* at, U value) {
  T old = *at;
  *at = std::min(old, static_cast<T>(value));
  return old;
}
template <typename T, typename U>
T atomicOr(T* at, U value) {
  T old = *at;
  *at = old | static_cast<T>(value);
  return old;
}
template <typename T, typename U>
T atomicExch(T* at, U value) {
  T old = *at;
  *at = static_cast<T>(value);
  return old;
}
template <typename T, typename U, typename V>
T atomicCAS(T* at, U expected, V value) {
  T old = *at;
  if (old == static_cast<T>(expected)) *at = static_cast<T>(value);
  return old;
}

inline uint32_t __float_as_uint(float f) { return std::bit_cast<uint32_t>(f); }
inline int32_t __float_as_int(float f) { return std::bit_cast<int32_t>(f); }
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline int __popc(uint32_t bits) { return std::popcount(bits); }
inline int __clz(uint32_t bits) { return std::countl_zero(bits); }
inline int __ffs(uint32_t bits) { return bits == 0 ? 0 : std::countr_zero(bits) + 1; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
template <typename T>
T __ldg(const T* at) {
  return *at;
}
using std::max;
using std::min;

namespace alps {

template <typename... P, typename... A>
void launch(Queue queue, void (*kernel)(P...), Grid grid, int threads, size_t sharedBytes, A&&... arguments) {
  host::run(*static_cast<host::Settings*>(queue), grid, threads, sharedBytes,
            [&] { kernel(static_cast<P>(arguments)...); });
}

}  // namespace alps
