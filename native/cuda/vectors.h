// Several neighbouring elements in accesses of up to 16 bytes, conversions between the dtypes, and how the threads of a
// launch lie over the vectors of a tensor.
#pragma once
#include <algorithm>

#include "cuda/platform.h"

namespace alps {

// ---- conversions beside those of platform.h -------------------------------------------------------------------------

__host__ __device__ inline float floatOf(double x) { return static_cast<float>(x); }

// float16 by integer arithmetic, with the processor backend's bits, NaN included.
__host__ __device__ inline float floatOf(f16_t x) {
  uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff, bits;
  float f = static_cast<float>(magnitude) * 0x1p-24f;  // below 2^-14
  __builtin_memcpy(&bits, &f, sizeof bits);
  if (magnitude >= 0x400) bits = (magnitude << 13) + (112u << 23);
  if (magnitude >= 0x7c00) bits = 0x7f800000 | ((magnitude & 0x3ff) << 13);
  bits |= sign;
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
}

template <>
__host__ __device__ inline double rounded<double>(float f) {
  return f;
}

// Rounds to nearest even.
template <>
__host__ __device__ inline f16_t rounded<f16_t>(float f) {
  uint32_t bits, low;
  __builtin_memcpy(&bits, &f, sizeof bits);
  uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff, half;
  float small;
  __builtin_memcpy(&small, &magnitude, sizeof small);
  small += 0.5f;  // rounds to a multiple of 2^-24, to nearest even, in the low bits
  __builtin_memcpy(&low, &small, sizeof low);
  half = low - 0x3f000000;
  uint32_t rebased = magnitude - (112u << 23);
  if (magnitude >= 0x38800000) half = (rebased + 0xfff + ((rebased >> 13) & 1)) >> 13;  // normal
  if (magnitude >= 0x477ff000) half = 0x7c00;                                           // 65520 and more: infinity
  if (magnitude > 0x7f800000) half = 0x7e00;
  return {static_cast<uint16_t>(sign | half)};
}

// ---- vectors --------------------------------------------------------------------------------------------------------

template <typename T, int N>
struct Vector {
  T at[N];
};

template <int bytes>
struct WordOf;
template <>
struct WordOf<1> {
  using type = uint8_t;
};
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

// Bytes of one access to a vector, which its address must be a multiple of.
template <typename T, int N>
constexpr int accessBytes = static_cast<int>(sizeof(T)) * N < 16 ? static_cast<int>(sizeof(T)) * N : 16;

// Elements of the longest vectors of which none needs more than one access.
template <typename... T>
constexpr int vectorWidth = 16 / static_cast<int>(std::max({sizeof(T)...}));

#ifndef __CUDA_ARCH__
inline void requireAligned(const void* at, int bytes) {
  if (reinterpret_cast<uintptr_t>(at) % static_cast<uintptr_t>(bytes) != 0)
    fail("INTERNAL", "A kernel's access of ", bytes, " bytes is not aligned");
}
#endif

template <int N, typename T>
__device__ inline Vector<T, N> load(const T* from) {
  Vector<T, N> v;
#ifdef __CUDA_ARCH__
  using Word = typename WordOf<accessBytes<T, N>>::type;
  constexpr int words = static_cast<int>(sizeof v / sizeof(Word));
  Word bits[words];
#pragma unroll
  for (int i = 0; i < words; i++) bits[i] = reinterpret_cast<const Word*>(from)[i];
  __builtin_memcpy(&v, bits, sizeof v);
#else
  requireAligned(from, accessBytes<T, N>);
  __builtin_memcpy(&v, from, sizeof v);
#endif
  return v;
}

template <int N, typename T>
__device__ inline void store(const Vector<T, N>& v, T* to) {
#ifdef __CUDA_ARCH__
  using Word = typename WordOf<accessBytes<T, N>>::type;
  constexpr int words = static_cast<int>(sizeof v / sizeof(Word));
  Word bits[words];
  __builtin_memcpy(bits, &v, sizeof v);
#pragma unroll
  for (int i = 0; i < words; i++) reinterpret_cast<Word*>(to)[i] = bits[i];
#else
  requireAligned(to, accessBytes<T, N>);
  __builtin_memcpy(to, &v, sizeof v);
#endif
}

template <int N, typename T>
bool aligned(const T* at) {
  return reinterpret_cast<uintptr_t>(at) % accessBytes<T, N> == 0;
}

// Whether rows of `columns` elements can be read by vectors of N at each of these places.
template <int N, typename... T>
bool rowsAligned(int64_t columns, const T*... at) {
  return columns % N == 0 && (aligned<N>(at) && ...);
}

// Calls action with N as a constant, or with 1 where the vectors do not fit.
template <int N, typename Action>
void withVectors(bool fit, const Action& action) {
  if (fit)
    action(std::integral_constant<int, N>());
  else
    action(std::integral_constant<int, 1>());
}

// ---- threads over a matrix ------------------------------------------------------------------------------------------

// `across` threads of a block, a power of two, lie over the vectors of a row, the others over the rows below it; a
// block's rows stride by the grid's height. What belongs to a column is so read once for many rows.
struct Tiling {
  int across;
  Grid grid;
};

inline Tiling tile(int64_t rows, int64_t vectors, int blockSize, int multiprocessors) {
  Tiling tiling{1, {}};
  while (tiling.across < vectors && tiling.across * 2 <= blockSize) tiling.across *= 2;
  int64_t down = blockSize / tiling.across, most = int64_t{multiprocessors} * (2048 / blockSize) * 4;
  tiling.grid.x = std::max<int64_t>(1, (vectors + tiling.across - 1) / tiling.across);
  tiling.grid.y = std::min((rows + down - 1) / down, std::clamp<int64_t>(most / tiling.grid.x, 1, 65535));
  return tiling;
}

// Where a thread of such a block is.
struct Place {
  int64_t vector;  // of the row
  int64_t row;     // the first one
  int64_t step;    // from one of its rows to the next
  bool idle;       // threads left over where `across` does not divide the block
};

__device__ inline Place placeIn(int across) {
  unsigned width = static_cast<unsigned>(across), down = blockDim.x / width, part = threadIdx.x / width;
  return {int64_t{blockIdx.x} * width + threadIdx.x % width, int64_t{blockIdx.y} * down + part,
          int64_t{gridDim.y} * down, part >= down};
}

}  // namespace alps
