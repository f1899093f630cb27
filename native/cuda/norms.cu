// Purpose: norms over the last dimension. Each number is read once and written once.
#include "cuda/cuda_backend.h"
#include "cuda/reduce.h"
#include "cuda/vectors.h"

namespace alps {

namespace {

// ---- kernels --------------------------------------------------------------------------------------------------------

constexpr int heldVectors = 4;      // of a norm in the registers of a thread
constexpr int sharedThreads = 128;  // of a block with several norms
constexpr int mostThreads = 1024;   // of a block with one norm

// The sum over the `group` threads of a norm, in each of them: a power of two within a warp, or the block.
__device__ inline double groupSum(double value, int group) {
  if (group > 32) return blockSum(value);
  for (int by = group / 2; by > 0; by /= 2) value += __shfl_xor_sync(0xffffffffu, value, by);
  return value;
}

// centred: out = (x − mean) / sqrt(var + eps) * weight + bias; else out = x / sqrt(mean x² + eps) * (weight + offset).
// `group` threads have one norm; held: in registers, else its vectors are read anew for each sum. out may be x.
template <typename From, typename To, int N, bool centred, bool held>
__global__ void __launch_bounds__(mostThreads)
    normKernel(const From* x, const float* weight, const float* bias, double eps, float offset, To* out, int64_t norms,
               int64_t columns, double share, int group) {
  int member = static_cast<int>(threadIdx.x) % group;
  int64_t norm =
      int64_t{blockIdx.x} * (blockDim.x / static_cast<unsigned>(group)) + static_cast<int>(threadIdx.x) / group;
  const From* from = x + norm * columns;
  int64_t vectors = norm < norms ? columns / N : 0;
  Vector<From, N> mine[held ? heldVectors : 1];
  if constexpr (held) {
#pragma unroll
    for (int k = 0; k < heldVectors; k++)
      if (member + k * group < vectors) mine[k] = load<N>(from + int64_t{member + k * group} * N);
  }
  auto each = [&](const auto& action) {
    if constexpr (held) {
#pragma unroll
      for (int k = 0; k < heldVectors; k++)
        if (member + k * group < vectors) action(mine[k], int64_t{member + k * group} * N);
    } else {
      for (int64_t v = member; v < vectors; v += group) action(load<N>(from + v * N), v * N);
    }
  };

  float mean = 0;
  if constexpr (centred) {
    double total = 0;
    each([&](const Vector<From, N>& v, int64_t) {
      float part = 0;
#pragma unroll
      for (int k = 0; k < N; k++) part += floatOf(v.at[k]);
      total += part;
    });
    mean = static_cast<float>(groupSum(total, group) * share);
  }
  double squares = 0;
  each([&](const Vector<From, N>& v, int64_t) {
    float part = 0;
#pragma unroll
    for (int k = 0; k < N; k++) {
      float d = floatOf(v.at[k]) - mean;
      part += d * d;
    }
    squares += part;
  });
  float factor = 1.0f / sqrtf(static_cast<float>(groupSum(squares, group) * share + eps));
  each([&](const Vector<From, N>& v, int64_t j) {
    Vector<float, N> w = load<N>(weight + j), b = centred ? load<N>(bias + j) : Vector<float, N>();
    Vector<To, N> y;
#pragma unroll
    for (int k = 0; k < N; k++) {
      if constexpr (centred)
        y.at[k] = rounded<To>((floatOf(v.at[k]) - mean) * factor * w.at[k] + b.at[k]);
      else
        y.at[k] = rounded<To>(floatOf(v.at[k]) * factor * (w.at[k] + offset));
    }
    store<N>(y, out + norm * columns + j);
  });
}

// ---- launchers ------------------------------------------------------------------------------------------------------

// bias: nullptr where centred is false.
template <bool centred>
void launchNorm(Queue queue, const Tensor& x, const float* weight, const float* bias, int64_t columns, double eps,
                double offset, const Tensor& out) {
  int64_t norms = x.size() / columns;
  auto run = [&](auto* from, auto* to, auto width) {
    using From = std::remove_pointer_t<decltype(from)>;
    using To = std::remove_pointer_t<decltype(to)>;
    constexpr int N = decltype(width)::value;
    int64_t vectors = columns / N;
    auto with = [&](auto kernel, int group, int threads) {
      int64_t share = threads / group;  // norms a block
      launch(queue, kernel, {(norms + share - 1) / share}, threads, 0, x.as<From>(), weight, bias, eps,
             static_cast<float>(offset), out.as<To>(), norms, columns, 1.0 / static_cast<double>(columns), group);
    };
    if (vectors <= 32 * heldVectors) {
      int group = 1;
      while (group < 32 && group < vectors) group *= 2;
      with(normKernel<From, To, N, centred, true>, group, sharedThreads);
    } else if (vectors <= mostThreads * heldVectors) {
      int threads = static_cast<int>((vectors + 32 * heldVectors - 1) / (32 * heldVectors)) * 32;
      with(normKernel<From, To, N, centred, true>, threads, threads);
    } else {
      with(normKernel<From, To, N, centred, false>, mostThreads, mostThreads);
    }
  };
  dispatch(x.dtype, [&](auto* from) {
    dispatch(out.dtype, [&](auto* to) {
      using From = std::remove_pointer_t<decltype(from)>;
      using To = std::remove_pointer_t<decltype(to)>;
      constexpr int N = vectorWidth<From, To>;
      withVectors<N>(rowsAligned<N>(columns, x.as<const From>(), out.as<const To>(), weight, bias),
                     [&](auto width) { run(from, to, width); });
    });
  });
}

}  // namespace

void CudaBackend::rmsNorm(Tensor x, Tensor weight, double eps, double offset, Tensor out) {
  launchNorm<false>(queue(), x, weight.as(), nullptr, weight.size(), eps, offset, out);
}

void CudaBackend::layerNorm(Tensor x, Tensor weight, Tensor bias, double eps, Tensor out) {
  launchNorm<true>(queue(), x, weight.as(), bias.as(), weight.size(), eps, 0, out);
}

}  // namespace alps
