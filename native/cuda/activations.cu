// Purpose: activations, gated and not, and capped logits; bound by memory.
#include <cmath>

#include "cuda/cuda_backend.h"
#include "cuda/map.h"

namespace alps {

namespace {

// ---- kernels --------------------------------------------------------------------------------------------------------

// 1 / (1 + exp(−x)), without overflow on either side.
__device__ inline float sigmoid(float x) {
  float e = expf(-fabsf(x)), s = __fdividef(1.0f, 1.0f + e);
  return x < 0 ? e * s : s;
}

// The normal distribution function, erfc(−x / √2) / 2. erfc(z) = exp(−z²) t P(t), t = 1 / (1 + z / 2), where P was
// fitted on 0 ≤ z ≤ 10 (relative error 3e-7). z is held below where the fast quotient turns to 0 or NaN.
__device__ inline float normalDistribution(float x) {
  float z = fabsf(x) * 0.707106781f, t = __fdividef(1.0f, 1.0f + 0.5f * min(z, 1e9f));
  float p = t * -0.0601087064f + 0.289446115f;
  p = p * t - 0.496834570f;
  p = p * t + 0.288515151f;
  p = p * t - 0.0333990194f;
  p = p * t + 0.205360427f;
  p = p * t + 0.242479384f;
  p = p * t + 0.282453835f;
  p = p * t + 0.282082349f;
  float tail = 0.5f * t * p * expf(-(z * z));
  return x < 0 ? tail : 1.0f - tail;
}

struct Silu {
  __device__ float operator()(float x) const { return x * sigmoid(x); }
};
struct Gelu {
  __device__ float operator()(float x) const { return x * normalDistribution(x); }
};
// x (1 + tanh u) / 2 = x sigmoid(2 u), u = √(2 / π) (x + 0.044715 x³)
struct GeluTanh {
  __device__ float operator()(float x) const { return x * sigmoid(x * (1.59576912f + 0.0713548163f * x * x)); }
};
struct Relu {
  __device__ float operator()(float x) const { return x < 0 ? 0.0f : x; }
};

template <typename Activation>
struct Gated {
  __device__ float operator()(float gate, float up) const { return Activation()(gate) * up; }
};

struct SoftCap {
  float cap, inverse;
  __device__ float operator()(float x) const { return cap * tanhf(x * inverse); }
};

template <typename Action>
void dispatchActivation(const std::string& activation, const Action& action) {
  if (activation == "silu") return action(Silu());
  if (activation == "gelu") return action(Gelu());
  if (activation == "relu") return action(Relu());
  action(GeluTanh());
}

}  // namespace

// ---- launchers ------------------------------------------------------------------------------------------------------

void CudaBackend::gatedActivation(Tensor gate, Tensor up, Tensor out, std::string activation) {
  auto blocks = [&](int64_t threads) { return blocksFor(threads); };
  dispatch(gate.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    dispatchActivation(activation, [&](auto f) {
      map(queue(), blocks, blockSize_, out.as<T>(), gate.as<const T>(), up.as<const T>(), out.size(),
          Gated<decltype(f)>());
    });
  });
}

void CudaBackend::activate(Tensor x, Tensor out, std::string activation) {
  auto blocks = [&](int64_t threads) { return blocksFor(threads); };
  dispatch(x.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    dispatchActivation(activation, [&](auto f) {
      map(queue(), blocks, blockSize_, out.as<T>(), x.as<const T>(), noInput, out.size(), f);
    });
  });
}

void CudaBackend::softCap(Tensor x, double cap) {
  auto blocks = [&](int64_t threads) { return blocksFor(threads); };
  map(queue(), blocks, blockSize_, x.as(), x.as<const float>(), noInput, x.size(),
      SoftCap{static_cast<float>(cap), static_cast<float>(1 / cap)});
}

}  // namespace alps
