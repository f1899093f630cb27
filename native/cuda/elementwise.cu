// Purpose: conversions, vector updates, masks; bound by memory.
#include "cuda/cuda_backend.h"
#include "cuda/map.h"
#include "cuda/reduce.h"

namespace alps {

namespace {

// ---- kernels --------------------------------------------------------------------------------------------------------

struct Same {
  __device__ float operator()(float x) const { return x; }
};
struct Scaled {
  float alpha;
  __device__ float operator()(float x) const { return alpha * x; }
};
struct ScaledSum {
  float alpha, beta;
  __device__ float operator()(float x, float y) const { return alpha * x + beta * y; }
};
struct Sum {
  __device__ float operator()(float x, float y) const { return x + y; }
};
struct Masked {
  __device__ float operator()(float x, uint8_t mask) const { return mask ? x : 0.0f; }
};
struct NonZero {
  __device__ uint8_t operator()(float x) const { return x != 0.0f; }
};

template <typename T>
__global__ void fillKernel(T* out, int64_t count, int64_t head, T value) {
  constexpr int N = vectorWidth<T>;
  int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, step = int64_t{gridDim.x} * blockDim.x;
  int64_t vectors = (count - head) / N, rest = count - vectors * N;
  Vector<T, N> all;
#pragma unroll
  for (int k = 0; k < N; k++) all.at[k] = value;
  for (int64_t i = thread; i < vectors; i += step) store<N>(all, out + head + i * N);
  for (int64_t i = thread; i < rest; i += step) out[i < head ? i : i + vectors * N] = value;
}

// An exponent of ones: NaN or infinite.
__device__ inline bool notFinite(float x) { return (__float_as_uint(x) & 0x7f800000) == 0x7f800000; }
__device__ inline bool notFinite(bf16_t x) { return (x.bits & 0x7f80) == 0x7f80; }
__device__ inline bool notFinite(f16_t x) { return (x.bits & 0x7c00) == 0x7c00; }

// Stops at the largest number, so the order of the additions is of no matter.
__device__ inline void addSaturated(uint32_t* out, uint64_t count) {
  uint32_t seen = *static_cast<volatile uint32_t*>(out), expected;
  do {
    expected = seen;
    uint64_t sum = expected + count;
    seen = atomicCAS(out, expected, static_cast<uint32_t>(sum < 0xffffffff ? sum : 0xffffffff));
  } while (seen != expected);
}

template <typename T>
__global__ void countNonFiniteKernel(const T* x, int64_t count, int64_t head, uint32_t* out) {
  constexpr int N = vectorWidth<T>;
  int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, step = int64_t{gridDim.x} * blockDim.x;
  int64_t vectors = (count - head) / N, rest = count - vectors * N;
  uint64_t bad = 0;
#pragma unroll 4
  for (int64_t i = thread; i < vectors; i += step) {
    Vector<T, N> v = load<N>(x + head + i * N);
    uint32_t some = 0;
#pragma unroll
    for (int k = 0; k < N; k++) some += notFinite(v.at[k]);
    bad += some;
  }
  for (int64_t i = thread; i < rest; i += step) bad += notFinite(x[i < head ? i : i + vectors * N]);
  bad = blockSum(bad);
  if (threadIdx.x == 0 && bad > 0) addSaturated(out, bad);
}

// Calls action with a null pointer of the C++ type of a floating-point tensor.
template <typename Action>
void dispatchFloats(DType dtype, const Action& action) {
  if (dtype == DType::f64) return action(static_cast<double*>(nullptr));
  if (dtype == DType::f16) return action(static_cast<f16_t*>(nullptr));
  dispatch(dtype, action);
}

}  // namespace

// ---- launchers ------------------------------------------------------------------------------------------------------

void CudaBackend::clearFailures(int64_t count) {
  int64_t words = count * static_cast<int64_t>(sizeof(Failure) / sizeof(uint32_t));
  launch(queue(), fillKernel<uint32_t>, blocksFor(words), blockSize_, 0, reinterpret_cast<uint32_t*>(failures_), words,
         words, 0u);
}

void CudaBackend::fill(Tensor out, double value) {
  auto run = [&](auto* to, auto converted) {
    using T = std::remove_pointer_t<decltype(to)>;
    constexpr int N = vectorWidth<T>;
    int64_t count = out.size();
    launch(queue(), fillKernel<T>, blocksFor((count + N - 1) / N), blockSize_, 0, to, count,
           headOf<N>(count, static_cast<const T*>(to)), converted);
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
      return run(out.as<f16_t>(), rounded<f16_t>(f));
  }
}

void CudaBackend::copy(Tensor from, Tensor out) {
  if (from.dtype == out.dtype) return runtime_->copy(from.as<void>(), out.as<void>(), out.bytes());
  auto blocks = [&](int64_t threads) { return blocksFor(threads); };
  dispatchFloats(from.dtype, [&](auto* a) {
    dispatchFloats(out.dtype, [&](auto* to) {
      using From = std::remove_pointer_t<decltype(a)>;
      using To = std::remove_pointer_t<decltype(to)>;
      if constexpr (!std::is_same_v<From, To>)
        map(queue(), blocks, blockSize_, out.as<To>(), from.as<const From>(), noInput, out.size(), Same{});
    });
  });
}

void CudaBackend::axpby(Tensor x, Tensor y, double alpha, double beta) {
  auto blocks = [&](int64_t threads) { return blocksFor(threads); };
  float a = static_cast<float>(alpha), b = static_cast<float>(beta);
  dispatch(y.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if (b == 0)  // what is in y may be NaN
      return map(queue(), blocks, blockSize_, y.as<T>(), x.as<const T>(), noInput, y.size(), Scaled{a});
    map(queue(), blocks, blockSize_, y.as<T>(), x.as<const T>(), y.as<const T>(), y.size(), ScaledSum{a, b});
  });
}

void CudaBackend::addTo(Tensor y, Tensor x) {
  auto blocks = [&](int64_t threads) { return blocksFor(threads); };
  dispatch(y.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    map(queue(), blocks, blockSize_, x.as(), x.as<const float>(), y.as<const T>(), x.size(), Sum{});
  });
}

void CudaBackend::applyMask(Tensor x, Tensor mask) {
  auto blocks = [&](int64_t threads) { return blocksFor(threads); };
  map(queue(), blocks, blockSize_, x.as(), x.as<const float>(), mask.as<const uint8_t>(), x.size(), Masked{});
}

void CudaBackend::nonZeroMask(Tensor x, Tensor mask) {
  auto blocks = [&](int64_t threads) { return blocksFor(threads); };
  map(queue(), blocks, blockSize_, mask.as<uint8_t>(), x.as<const float>(), noInput, x.size(), NonZero{});
}

void CudaBackend::countNonFinite(Tensor x, Tensor out) {
  dispatchFloats(x.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    if constexpr (!std::is_same_v<T, double>) {
      constexpr int N = vectorWidth<T>;
      int64_t count = x.size();
      launch(queue(), countNonFiniteKernel<T>, blocksFor((count + N - 1) / N), blockSize_, 0, x.as<const T>(), count,
             headOf<N>(count, x.as<const T>()), out.as<uint32_t>());
    }
  });
}

}  // namespace alps
