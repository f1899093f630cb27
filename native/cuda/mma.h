// Matrix instructions of a warp on bfloat16 (PTX mma.sync, ldmatrix) and asynchronous copies to shared memory
// (cp.async), on a GPU from compute capability 8.0 and on the processor.
//
// Fragments, by g = lane / 4 and t = lane % 4; two bfloat16 a register, the lower index in the lower half:
//   a [16, 16]  row-major     x[0]: (g, 2t)   x[1]: (g + 8, 2t)   x[2]: (g, 2t + 8)   x[3]: (g + 8, 2t + 8)
//   b [16, 8]   by columns    (2t, g) and (2t + 8, g)
//   c [16, 8]   float32       (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
#pragma once
#include "cuda/platform.h"

#ifdef ALPS_CUDA_ON_HOST
#include <vector>
#endif

namespace alps {

struct Fragment {
  uint32_t x[4];
};

// Two floats as bfloat16, rounded to nearest even.
__device__ inline uint32_t packBf16(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
#else
  return bf16Of(low).bits | static_cast<uint32_t>(bf16Of(high).bits) << 16;
#endif
}

// 2^x with a relative error below 2^-22; denormal results are 0.
__device__ inline float fastExp2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

#ifdef __CUDA_ARCH__

__device__ inline uint32_t sharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// c += a b.
__device__ inline void mma(float (&c)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}

// Four 8 × 8 matrices from shared memory. Lane i gives row i % 8 of matrix i / 8 (16 bytes, aligned); register m holds
// (g, 2t) and (g, 2t + 1) of matrix m, or of its transpose.
template <bool transposed>
__device__ inline Fragment loadMatrices(const bf16_t* row) {
  Fragment f;
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
                 : "r"(sharedAddress(row)));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
                 : "r"(sharedAddress(row)));
  return f;
}

// 16 bytes to shared memory, both sides aligned; zeros instead if not `valid`, and `from` is then not read. They are
// there for this thread after waitForCopies(), for the others after a barrier behind it.
__device__ inline void copyAsync(void* shared, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sharedAddress(shared)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

__device__ inline void waitForCopies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#elif defined(ALPS_CUDA_ON_HOST)

inline void mma(float (&c)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  auto pair = [](uint32_t low, uint32_t high) { return low | static_cast<uint64_t>(high) << 32; };
  auto number = [](uint64_t bits, int half) { return floatOf(bf16_t{static_cast<uint16_t>(bits >> 16 * half)}); };
  int g = host::lane() / 4, t = host::lane() % 4;
  float rows[2][16], columns[2][16];
  auto spread = [&](float* to, uint64_t low, uint64_t high, int lane) {  // a lane's share of a row or column
    for (int i = 0; i < 2; i++) to[2 * lane + i] = number(low, i), to[2 * lane + 8 + i] = number(high, i);
  };
  const uint64_t* b = host::exchange(0xffffffff, pair(b0, b1));
  for (int column = 0; column < 2; column++)
    for (int i = 0; i < 4; i++) {
      uint64_t both = b[(2 * t + column) * 4 + i];
      spread(columns[column], both, both >> 32, i);
    }
  for (int row = 0; row < 2; row++) {
    const uint64_t* share = host::exchange(0xffffffff, pair(a.x[row], a.x[row + 2]));
    for (int i = 0; i < 4; i++) spread(rows[row], share[g * 4 + i], share[g * 4 + i] >> 32, i);
  }
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 16; k++) c[i] += rows[i / 2][k] * columns[i % 2][k];
}

template <bool transposed>
Fragment loadMatrices(const bf16_t* row) {
  const uint64_t* rows = host::exchange(0xffffffff, host::pack(row));
  if (host::unpack<uintptr_t>(rows[host::lane()]) % 16 != 0) fail("INTERNAL", "ldmatrix of an unaligned row");
  int g = host::lane() / 4, t = host::lane() % 4;
  Fragment f;
  for (int m = 0; m < 4; m++) {
    auto at = [&](int i, int j) { return uint32_t{host::unpack<const bf16_t*>(rows[m * 8 + i])[j].bits}; };
    f.x[m] = transposed ? at(2 * t, g) | at(2 * t + 1, g) << 16 : at(g, 2 * t) | at(g, 2 * t + 1) << 16;
  }
  return f;
}

namespace host {
struct Copy {
  void* to;
  const void* from;  // null: zeros
};
// Of each thread of the running block.
inline std::vector<Copy>& copiesUnderWay() {
  static thread_local std::vector<Copy> copies[1024];
  return copies[place.thread.x];
}
}  // namespace host

// What is there is gone at once, and what comes is there only after the wait: neither too early a copy nor too late a
// wait goes unseen.
inline void copyAsync(void* shared, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0))
    fail("INTERNAL", "cp.async of unaligned memory");
  std::memset(shared, 0xff, 16);
  host::copiesUnderWay().push_back({shared, valid ? from : nullptr});
}

inline void waitForCopies() {
  auto& copies = host::copiesUnderWay();
  for (auto [to, from] : copies) {
    if (from)
      std::memcpy(to, from, 16);
    else
      std::memset(to, 0, 16);
  }
  copies.clear();
}

#else

// nvcc's pass over the host's code sees the kernels but compiles none of them.
__device__ void mma(float (&c)[4], const Fragment& a, uint32_t b0, uint32_t b1);
template <bool transposed>
__device__ Fragment loadMatrices(const bf16_t* row);
__device__ void copyAsync(void* shared, const void* from, bool valid);
__device__ void waitForCopies();

#endif

}  // namespace alps
