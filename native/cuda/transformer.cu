// Purpose: what else the decoder's forward pass needs without products: rows by their ids, rotary positions, loss.
#include <cmath>
#include <limits>

#include "cuda/cuda_backend.h"
#include "cuda/reduce.h"
#include "cuda/vectors.h"

namespace alps {

namespace {

// ---- kernels --------------------------------------------------------------------------------------------------------

// out[i] = table[ids[i]], converted. An id past the table leaves its row alone.
template <typename From, typename To, int N>
__global__ void gatherKernel(const From* table, const uint32_t* ids, To* out, int64_t rows, int64_t columns,
                             int64_t limit, FailureKind kind, Failure* failure, int across) {
  Place place = placeIn(across);
  int64_t j = place.vector * N;
  if (place.idle || place.row >= rows) return;
  uint32_t id = ids[place.row], next = 0;
  for (int64_t i = place.row; i < rows; i += place.step, id = next) {
    if (i + place.step < rows) next = ids[i + place.step];  // on its way while this row is
    if (id >= limit) {
      if (place.vector == 0) report(failure, kind, id, static_cast<uint32_t>(limit));
    } else if (j < columns) {
      Vector<From, N> v = load<N>(table + id * columns + j);
      if constexpr (std::is_same_v<From, To>) {
        store<N>(v, out + i * columns + j);
      } else {
        Vector<To, N> y;
#pragma unroll
        for (int k = 0; k < N; k++) y.at[k] = rounded<To>(floatOf(v.at[k]));
        store<N>(y, out + i * columns + j);
      }
    }
  }
}

// x[ids[i]] += weights[i] * y[i]; no id twice.
template <typename T, int N>
__global__ void scatterAddKernel(const T* y, const uint32_t* ids, const float* weights, float* x, int64_t rows,
                                 int64_t columns, int64_t limit, Failure* failure, int across) {
  Place place = placeIn(across);
  int64_t j = place.vector * N;
  if (place.idle || place.row >= rows) return;
  uint32_t id = ids[place.row], next = 0;
  for (int64_t i = place.row; i < rows; i += place.step, id = next) {
    if (i + place.step < rows) next = ids[i + place.step];  // on its way while this row is
    if (id >= limit) {
      if (place.vector == 0) report(failure, rowPastTable, id, static_cast<uint32_t>(limit));
    } else if (j < columns) {
      Vector<T, N> v = load<N>(y + i * columns + j);
      Vector<float, N> sum = load<N>(x + id * columns + j);
      float weight = weights[i];
#pragma unroll
      for (int k = 0; k < N; k++) sum.at[k] = weight * floatOf(v.at[k]) + sum.at[k];
      store<N>(sum, x + id * columns + j);
    }
  }
}

// A thread turns one vector of pairs (i, i + half) of one head; a row is a token.
template <typename T, int N>
__global__ void ropeKernel(T* x, const float* cosine, const float* sine, int64_t tokens, int64_t columns, int64_t half,
                           int64_t headDim, int64_t sequence, int across) {
  Place place = placeIn(across);
  int64_t perHead = half / N;
  if (place.idle || place.vector >= columns / headDim * perHead) return;
  int64_t i = place.vector % perHead * N, at = place.vector / perHead * headDim + i;
  for (int64_t token = place.row; token < tokens; token += place.step) {
    T *first = x + token * columns + at, *second = first + half;
    int64_t angle = token % sequence * half + i;
    Vector<T, N> a = load<N>(first), b = load<N>(second);
    Vector<float, N> c = load<N>(cosine + angle), s = load<N>(sine + angle);
#pragma unroll
    for (int k = 0; k < N; k++) {
      float u = floatOf(a.at[k]), v = floatOf(b.at[k]);
      a.at[k] = rounded<T>(u * c.at[k] - v * s.at[k]);
      b.at[k] = rounded<T>(v * c.at[k] + u * s.at[k]);
    }
    store<N>(a, first);
    store<N>(b, second);
  }
}

__device__ inline float blockMax(float value) {
  SHARED(float, tops, 32);
  for (int by = 16; by > 0; by /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, by));
  if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = value;
  __syncthreads();
  for (unsigned i = 0; i < blockDim.x / 32; i++) value = fmaxf(value, tops[i]);
  __syncthreads();
  return value;
}

// The sum of exp(x − top) over the numbers so far, top their largest; fmaxf passes over NaN, which the sum then shows.
struct Exponentials {
  float top = -std::numeric_limits<float>::infinity();
  double sum = 0;

  template <int N>
  __device__ void add(const Vector<float, N>& v) {
    float most = top;
#pragma unroll
    for (int k = 0; k < N; k++) most = fmaxf(most, v.at[k]);
    if (most > top) {
      sum *= expf(top - most);
      top = most;
    }
    float shift = top == -std::numeric_limits<float>::infinity() ? 0 : top, part = 0;
#pragma unroll
    for (int k = 0; k < N; k++) part += expf(v.at[k] - shift);
    sum += part;
  }
};

constexpr int lossThreads = 512;

// One block a row, which is read once, in vectors from its first aligned element on.
__global__ void __launch_bounds__(lossThreads)
    crossEntropyKernel(const float* logits, const uint32_t* targets, int64_t columns, double* out, Failure* failure) {
  constexpr int N = 4;
  const float* row = logits + blockIdx.x * columns;
  int64_t head = min(static_cast<int64_t>((16 - reinterpret_cast<uintptr_t>(row) % 16) % 16 / sizeof(float)), columns);
  int64_t vectors = (columns - head) / N, rest = columns - vectors * N;
  Exponentials mine;
  for (int64_t i = threadIdx.x; i < vectors; i += 2 * lossThreads) {  // two at a time, so that their loads overlap
    Vector<float, N> v = load<N>(row + head + i * N), w = v;
    bool two = i + lossThreads < vectors;
    if (two) w = load<N>(row + head + (i + lossThreads) * N);
    mine.add(v);
    if (two) mine.add(w);
  }
  if (threadIdx.x < rest) mine.add(load<1>(row + (threadIdx.x < head ? threadIdx.x : vectors * N + threadIdx.x)));
  float top = blockMax(mine.top);
  // Where nothing lies above −infinity, the sum is NaN, as the loss then is.
  double sum = blockSum(mine.sum * static_cast<double>(expf(mine.top - top)));
  if (threadIdx.x != 0) return;
  uint32_t target = targets[blockIdx.x];
  if (target >= columns) return report(failure, targetPastTable, target, static_cast<uint32_t>(columns));
  out[blockIdx.x] = (static_cast<double>(top) - row[target]) + log(sum);
}

}  // namespace

// ---- launchers ------------------------------------------------------------------------------------------------------

void CudaBackend::embedding(Tensor table, Tensor ids, Tensor out) {
  auto run = [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    int64_t rows = ids.size(), columns = table.dim(1);
    withVectors<4>(rowsAligned<4>(columns, table.as<const T>(), out.as<const float>()), [&](auto width) {
      constexpr int N = decltype(width)::value;
      Tiling tiling = tile(rows, columns / N, blockSize_, runtime_->properties().multiprocessors);
      launch(queue(), gatherKernel<T, float, N>, tiling.grid, blockSize_, 0, table.as<T>(), ids.as<uint32_t>(),
             out.as(), rows, columns, table.dim(0), idPastTable, failure(), tiling.across);
    });
  };
  if (table.dtype == DType::f16) return run(static_cast<f16_t*>(nullptr));
  dispatch(table.dtype, run);
}

void CudaBackend::gatherRows(Tensor x, Tensor ids, Tensor out) {
  auto run = [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    constexpr int widest = vectorWidth<T>;
    int64_t rows = ids.size(), columns = x.dim(1);
    withVectors<widest>(rowsAligned<widest>(columns, x.as<const T>(), out.as<const T>()), [&](auto width) {
      constexpr int N = decltype(width)::value;
      Tiling tiling = tile(rows, columns / N, blockSize_, runtime_->properties().multiprocessors);
      launch(queue(), gatherKernel<T, T, N>, tiling.grid, blockSize_, 0, x.as<T>(), ids.as<uint32_t>(), out.as<T>(),
             rows, columns, x.dim(0), rowPastTable, failure(), tiling.across);
    });
  };
  dispatch(x.dtype, run);
}

void CudaBackend::scatterAddRows(Tensor y, Tensor ids, Tensor weights, Tensor x) {
  dispatch(y.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    int64_t rows = ids.size(), columns = x.dim(1);
    withVectors<4>(rowsAligned<4>(columns, y.as<const T>(), x.as<const float>()), [&](auto width) {
      constexpr int N = decltype(width)::value;
      Tiling tiling = tile(rows, columns / N, blockSize_, runtime_->properties().multiprocessors);
      launch(queue(), scatterAddKernel<T, N>, tiling.grid, blockSize_, 0, y.as<T>(), ids.as<uint32_t>(), weights.as(),
             x.as(), rows, columns, x.dim(0), failure(), tiling.across);
    });
  });
}

void CudaBackend::rope(Tensor x, Tensor cosine, Tensor sine, int64_t headDim, int64_t sequence) {
  dispatch(x.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    constexpr int widest = vectorWidth<T>;
    int64_t tokens = x.rows(), columns = x.columns(), half = cosine.dim(1);
    bool fit = headDim % widest == 0 &&
               rowsAligned<widest>(half, x.as<const T>(), cosine.as<const float>(), sine.as<const float>());
    withVectors<widest>(fit, [&](auto width) {
      constexpr int N = decltype(width)::value;
      Tiling tiling = tile(tokens, columns / headDim * (half / N), blockSize_, runtime_->properties().multiprocessors);
      launch(queue(), ropeKernel<T, N>, tiling.grid, blockSize_, 0, x.as<T>(), cosine.as(), sine.as(), tokens, columns,
             half, headDim, sequence, tiling.across);
    });
  });
}

void CudaBackend::crossEntropy(Tensor logits, Tensor targets, Tensor out) {
  launch(queue(), crossEntropyKernel, {logits.dim(0)}, lossThreads, 0, logits.as(), targets.as<uint32_t>(),
         logits.dim(1), out.as<double>(), failure());
}

}  // namespace alps
