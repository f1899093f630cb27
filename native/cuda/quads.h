// Four consecutive elements a thread: one access of 16 bytes of float32, 8 of bfloat16, 4 of a mask.
#pragma once
#include "cuda/platform.h"

namespace alps {

// Elements [begin, end).
struct Range {
  int64_t begin, end;
  __host__ __device__ int64_t size() const { return end - begin; }
};

// Whether quads at multiples of four elements are whole accesses.
template <typename T>
bool holdsQuads(const T* data) {
  return reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0;
}

// `whole`: the quad lies in the range and its memory is aligned. Else element by element, those of the range only.

template <bool whole>
__device__ inline void load4(const float* from, int64_t at, Range range, float (&out)[4]) {
  if constexpr (whole) {
    float4 v = *reinterpret_cast<const float4*>(from + at);
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
  } else {
    for (int j = 0; j < 4; j++) out[j] = at + j >= range.begin && at + j < range.end ? from[at + j] : 0.0f;
  }
}

// Four bytes, the first one lowest.
template <bool whole>
__device__ inline uint32_t load4(const uint8_t* from, int64_t at, Range range) {
  if constexpr (whole) {
    return *reinterpret_cast<const uint32_t*>(from + at);
  } else {
    uint32_t out = 0;
    for (int j = 0; j < 4; j++)
      if (at + j >= range.begin && at + j < range.end) out |= static_cast<uint32_t>(from[at + j]) << (8 * j);
    return out;
  }
}

template <bool whole>
__device__ inline void store4(float* to, int64_t at, Range range, const float (&in)[4]) {
  if constexpr (whole) {
    *reinterpret_cast<float4*>(to + at) = make_float4(in[0], in[1], in[2], in[3]);
  } else {
    for (int j = 0; j < 4; j++)
      if (at + j >= range.begin && at + j < range.end) to[at + j] = in[j];
  }
}

template <bool whole>
__device__ inline void store4(bf16_t* to, int64_t at, Range range, const float (&in)[4]) {
  if constexpr (whole) {
    auto pair = [](float low, float high) {
      return static_cast<uint32_t>(bf16Of(low).bits) | static_cast<uint32_t>(bf16Of(high).bits) << 16;
    };
    *reinterpret_cast<uint2*>(to + at) = make_uint2(pair(in[0], in[1]), pair(in[2], in[3]));
  } else {
    for (int j = 0; j < 4; j++)
      if (at + j >= range.begin && at + j < range.end) to[at + j] = bf16Of(in[j]);
  }
}

// A mask's bytes from the four lowest bits of `kept`.
template <bool whole>
__device__ inline void storeMask4(uint8_t* to, int64_t at, Range range, uint32_t kept) {
  if constexpr (whole) {
    *reinterpret_cast<uint32_t*>(to + at) = (kept & 1) | (kept & 2) << 7 | (kept & 4) << 14 | (kept & 8) << 21;
  } else {
    for (int j = 0; j < 4; j++)
      if (at + j >= range.begin && at + j < range.end) to[at + j] = static_cast<uint8_t>(kept >> j & 1);
  }
}

// What scores are ranked by: the bits of |x| as an integer. −0 equals 0, a NaN ranks above infinity.
constexpr uint32_t largestMagnitude = 0x7fffffff;
__device__ inline uint32_t magnitude(float x) { return __float_as_uint(x) & largestMagnitude; }

}  // namespace alps
