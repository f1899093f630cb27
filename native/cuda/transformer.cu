// Purpose: what else the decoder's forward pass needs without products: rows by their ids, rotary positions, loss,
// drawing tokens.
#include <cmath>
#include <limits>

#include "cuda/cuda_backend.h"
#include "cuda/reduce.h"
#include "cuda/scan.h"
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

// One block a row; both rows are read once. They may lie differently in memory, so by single numbers.
__global__ void __launch_bounds__(lossThreads)
    divergenceKernel(const float* p, const float* q, int64_t columns, double* out) {
  p += blockIdx.x * columns;
  q += blockIdx.x * columns;
  Exponentials mine, other;
  // All differences less the first one: what rows have in common would take bits.
  float common = columns > 0 ? p[0] - q[0] : 0;
  double weighted = 0;  // the sum of exp(p − top) (p − q − common) so far
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < columns; i += lossThreads) {
    Vector<float, 1> a = load<1>(p + i), b = load<1>(q + i);
    float before = mine.top;
    mine.add(a);
    other.add(b);
    if (mine.top > before) weighted *= static_cast<double>(expf(before - mine.top));
    weighted += static_cast<double>(expf(a.at[0] - mine.top) * (a.at[0] - b.at[0] - common));
  }
  float top = blockMax(mine.top), otherTop = blockMax(other.top);
  double factor = static_cast<double>(expf(mine.top - top));
  double sum = blockSum(mine.sum * factor), difference = blockSum(weighted * factor);
  double otherSum = blockSum(other.sum * static_cast<double>(expf(other.top - otherTop)));
  if (threadIdx.x != 0) return;
  double offset = static_cast<double>(common) + (static_cast<double>(otherTop) - top);
  out[blockIdx.x] = difference / sum + offset + log(otherSum / sum);
}

constexpr int sampleThreads = 512, sampleWarps = sampleThreads / 32;

// The block's largest value and its lowest index, in every thread.
__device__ inline void blockArgMax(float& value, uint32_t& at) {
  SHARED(float, values, sampleWarps);
  SHARED(uint32_t, places, sampleWarps);
  auto take = [&](float other, uint32_t place) {
    if (other > value || (other == value && place < at)) value = other, at = place;
  };
  for (int by = 16; by > 0; by /= 2) {
    float other = __shfl_xor_sync(0xffffffffu, value, by);
    uint32_t place = __shfl_xor_sync(0xffffffffu, at, by);
    take(other, place);
  }
  if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value, places[threadIdx.x / 32] = at;
  __syncthreads();
  for (int i = 0; i < sampleWarps; i++) take(values[i], places[i]);
}

// One block a row, which its warps divide into parts side by side. inverse: 1 / temperature; 0 for temperature 0.
__global__ void __launch_bounds__(sampleThreads)
    sampleKernel(const float* logits, const double* draws, uint32_t* ids, uint32_t columns, float inverse) {
  SHARED(double, sums, sampleWarps);
  SHARED(uint32_t, found, 2);  // the first id that passes the draw, the last that can be drawn, both of the part
  const float* row = logits + int64_t{blockIdx.x} * columns;
  float top = -std::numeric_limits<float>::infinity();
  uint32_t largest = columns;
  for (int64_t j = threadIdx.x; j < columns; j += sampleThreads)  // NaN is above nothing
    if (row[j] > top || (row[j] == top && largest == columns)) top = row[j], largest = static_cast<uint32_t>(j);
  blockArgMax(top, largest);
  if (threadIdx.x == 0) {
    ids[blockIdx.x] = largest < columns ? largest : 0;
    found[0] = columns, found[1] = 0;
  }
  if (inverse == 0 || fabsf(top) == std::numeric_limits<float>::infinity()) return;

  auto probability = [&](int64_t j) {  // not yet divided by their sum; 0 for NaN
    float p = expf((row[j] - top) * inverse);
    return p > 0 ? static_cast<double>(p) : 0.0;
  };
  int64_t part = (int64_t{columns} + sampleWarps - 1) / sampleWarps;
  int64_t begin = threadIdx.x / 32 * part, end = min(begin + part, int64_t{columns});
  double sum = 0;
  for (int64_t j = begin + threadIdx.x % 32; j < end; j += 32) sum += probability(j);
  sum = warpSum(sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();

  double total = 0, before = 0;
  for (int i = 0; i < sampleWarps; i++) total += sums[i];
  double draw = draws[blockIdx.x] * total;
  int drawn = -1;  // the part
  for (int i = 0; i < sampleWarps && (drawn < 0 || before + sums[drawn] <= draw); i++) {
    if (sums[i] == 0) continue;
    if (drawn >= 0) before += sums[drawn];
    drawn = i;
  }
  // The part again, as far as the draw, by all threads.
  begin = drawn * part, end = min(begin + part, int64_t{columns});
  for (int64_t first = begin; first < end && found[0] == columns; first += sampleThreads) {
    int64_t j = first + threadIdx.x;
    double p = j < end ? probability(j) : 0, all;
    double below = before + blockScan(p, all);
    if (p > 0) {
      atomicMax(&found[1], static_cast<uint32_t>(j));
      if (below + p > draw) atomicMin(&found[0], static_cast<uint32_t>(j));
    }
    before += all;
    __syncthreads();
  }
  // Rounding may leave the last sum at the draw.
  if (threadIdx.x == 0) ids[blockIdx.x] = found[0] < columns ? found[0] : found[1];
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

void CudaBackend::divergence(Tensor p, Tensor q, Tensor out) {
  launch(queue(), divergenceKernel, {p.dim(0)}, lossThreads, 0, p.as(), q.as(), p.dim(1), out.as<double>());
}

void CudaBackend::sample(Tensor logits, Tensor draws, Tensor ids, double temperature) {
  double inverse = temperature == 0 ? 0 : std::min<double>(1 / temperature, std::numeric_limits<float>::max());
  launch(queue(), sampleKernel, {logits.dim(0)}, sampleThreads, 0, logits.as(), draws.as<double>(), ids.as<uint32_t>(),
         static_cast<uint32_t>(logits.dim(1)), static_cast<float>(inverse));
}

}  // namespace alps
