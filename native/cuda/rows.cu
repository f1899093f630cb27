// Purpose: matrices by rows and columns: biases, scales, sums along rows and columns; bound by memory.
#include "cuda/cuda_backend.h"
#include "cuda/reduce.h"
#include "cuda/vectors.h"

namespace alps {

namespace {

// ---- kernels --------------------------------------------------------------------------------------------------------

struct AddColumn {
  static constexpr float neutral = 0;
  __device__ float operator()(float x, float, float column) const { return x + column; }
};
struct ScaleRowColumn {
  static constexpr float neutral = 1;
  __device__ float operator()(float x, float row, float column) const { return x * row * column; }
};

// out[i, j] = f(a[i, j], row[i], column[j]); row and column may be nullptr, out may be a.
template <typename T, int N, typename F>
__global__ void rowsColumnsKernel(const T* a, const float* row, const float* column, T* out, int64_t rows,
                                  int64_t columns, int across, F f) {
  Place place = placeIn(across);
  int64_t j = place.vector * N;
  if (place.idle || j >= columns) return;
  Vector<float, N> c;
#pragma unroll
  for (int k = 0; k < N; k++) c.at[k] = F::neutral;
  if (column) c = load<N>(column + j);
  auto finish = [&](Vector<T, N> v, int64_t i) {
    float r = row ? row[i] : F::neutral;
#pragma unroll
    for (int k = 0; k < N; k++) v.at[k] = rounded<T>(f(floatOf(v.at[k]), r, c.at[k]));
    store<N>(v, out + i * columns + j);
  };
  for (int64_t i = place.row; i < rows; i += 2 * place.step) {  // two rows at a time, so that their loads overlap
    int64_t next = i + place.step;
    Vector<T, N> v = load<N>(a + i * columns + j), w = v;
    if (next < rows) w = load<N>(a + next * columns + j);
    finish(v, i);
    if (next < rows) finish(w, next);
  }
}

// One block a row.
template <int N>
__global__ void rowDotsKernel(const float* a, const float* b, int64_t columns, double* out) {
  const float *x = a + blockIdx.x * columns, *y = b + blockIdx.x * columns;
  double sum = 0;
#pragma unroll 2
  for (int64_t j = int64_t{threadIdx.x} * N; j < columns; j += int64_t{blockDim.x} * N) {
    Vector<float, N> v = load<N>(x + j), w = load<N>(y + j);
#pragma unroll
    for (int k = 0; k < N; k++) sum += static_cast<double>(v.at[k]) * w.at[k];
  }
  sum = blockSum(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

constexpr int sumWarps = 8;  // warps of a block of columnSumsKernel, each with every eighth row

// partial[chunk, j] = sum over the chunk's rows, or of their squares. A block has 32 vectors of columns and one chunk
// of rows.
template <typename T, int N, bool Squares>
__global__ void columnSumsKernel(const T* x, int64_t rows, int64_t columns, int64_t chunkRows, double* partial) {
  SHARED(double, sums, sumWarps * 32 * N);  // [warp, element of the vector, lane]
  int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  int64_t first = int64_t{blockIdx.x} * 32 * N, j = first + lane * N;
  int64_t begin = blockIdx.y * chunkRows, end = min(rows, begin + chunkRows);
  double total[N] = {};
  if (j < columns) {
#pragma unroll 4
    for (int64_t i = begin + warp; i < end; i += sumWarps) {
      Vector<T, N> v = load<N>(x + i * columns + j);
#pragma unroll
      for (int k = 0; k < N; k++) {
        double value = floatOf(v.at[k]);
        total[k] += Squares ? value * value : value;
      }
    }
  }
#pragma unroll
  for (int k = 0; k < N; k++) sums[(warp * N + k) * 32 + lane] = total[k];
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < 32 * N && first + c < columns; c += sumWarps * 32) {
    double sum = 0;
    for (int w = 0; w < sumWarps; w++) sum += sums[(w * N + c % N) * 32 + c / N];
    partial[blockIdx.y * columns + first + c] = sum;
  }
}

__global__ void addPartialsKernel(const double* partial, int64_t chunks, int64_t columns, double* out) {
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; j < columns; j += step) {
    double sum = 0;
#pragma unroll 8
    for (int64_t chunk = 0; chunk < chunks; chunk++) sum += partial[chunk * columns + j];
    out[j] += sum;
  }
}

}  // namespace

// ---- launchers ------------------------------------------------------------------------------------------------------

void CudaBackend::addBias(Tensor x, Tensor bias) {
  dispatch(x.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const float* b = bias.as();
    int64_t rows = x.rows(), columns = x.columns();
    withVectors<vectorWidth<T>>(rowsAligned<vectorWidth<T>>(columns, x.as<const T>(), b), [&](auto width) {
      constexpr int N = decltype(width)::value;
      Tiling tiling = tile(rows, columns / N, blockSize_, runtime_->properties().multiprocessors);
      launch(queue(), rowsColumnsKernel<T, N, AddColumn>, tiling.grid, blockSize_, 0, x.as<T>(), nullptr, b, x.as<T>(),
             rows, columns, tiling.across, AddColumn{});
    });
  });
}

void CudaBackend::scaleRowsColumns(Tensor a, Tensor row, Tensor column, Tensor out) {
  int64_t rows = a.rows(), columns = a.columns();
  const float *r = row.defined() ? row.as() : nullptr, *c = column.defined() ? column.as() : nullptr;
  withVectors<4>(rowsAligned<4>(columns, a.as<const float>(), c, out.as<const float>()), [&](auto width) {
    constexpr int N = decltype(width)::value;
    Tiling tiling = tile(rows, columns / N, blockSize_, runtime_->properties().multiprocessors);
    launch(queue(), rowsColumnsKernel<float, N, ScaleRowColumn>, tiling.grid, blockSize_, 0, a.as(), r, c, out.as(),
           rows, columns, tiling.across, ScaleRowColumn{});
  });
}

void CudaBackend::rowDots(Tensor a, Tensor b, Tensor out) {
  withVectors<4>(rowsAligned<4>(a.columns(), a.as<const float>(), b.as<const float>()), [&](auto width) {
    launch(queue(), rowDotsKernel<decltype(width)::value>, {a.rows()}, blockSize_, 0, a.as(), b.as(), a.columns(),
           out.as<double>());
  });
}

void CudaBackend::quadraticForms(Tensor a, Tensor s, Tensor out) {
  int64_t m = a.dim(0), n = a.dim(1);
  if (n == 0) return fill(out, 0);
  constexpr int64_t elements = int64_t{1} << 25, most = 8192;  // of the product that are kept at a time, and its rows
  int64_t rows = std::clamp<int64_t>(elements / n, 1, std::clamp<int64_t>(m, 1, most));
  auto product = scratch<float>(rows * n);
  bool split = splits(rows, n, n);
  auto whole = scratch<bf16_t>(split ? splitSize(n * n) : 0), parts = scratch<bf16_t>(split ? splitSize(rows * n) : 0);
  SplitFactor right{};
  if (split) right = splitOf({s.as<void>(), n}, n, n, Side::right, whole);
  for (int64_t i = 0; i < m; i += rows) {
    throwIfCancelled();
    int64_t height = std::min(rows, m - i);
    const float* part = a.as() + i * n;
    if (split)
      multiplySplit(*products_, height, n, n, 1, splitOf({part, n}, height, n, Side::left, parts), right, 0, product,
                    /* ldc = */ n);
    else
      products_->f32(height, n, n, 1, {part, n}, {s.as<void>(), n}, 0, product, /* ldc = */ n);
    withVectors<4>(rowsAligned<4>(n, part, product.data()), [&](auto width) {
      launch(queue(), rowDotsKernel<decltype(width)::value>, {height}, blockSize_, 0, part, product.data(), n,
             out.as<double>() + i);
    });
  }
}

void CudaBackend::columnSums(Tensor x, bool squares, Tensor out) {
  int64_t rows = x.rows(), columns = x.columns();
  if (rows == 0) return;
  dispatch(x.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    withVectors<vectorWidth<T>>(rowsAligned<vectorWidth<T>>(columns, x.as<const T>()), [&](auto width) {
      constexpr int N = decltype(width)::value;
      // Enough chunks of rows to fill the device, few enough for their sums to cost nothing.
      int64_t strips = (columns + 32 * N - 1) / (32 * N);
      int64_t wanted = std::clamp<int64_t>(4 * runtime_->properties().multiprocessors / strips, 1, 128);
      int64_t chunkRows = std::max<int64_t>(4 * sumWarps, (rows + wanted - 1) / wanted);
      int64_t chunks = (rows + chunkRows - 1) / chunkRows;
      auto partial = scratch<double>(chunks * columns);
      launch(queue(), squares ? columnSumsKernel<T, N, true> : columnSumsKernel<T, N, false>, {strips, chunks},
             sumWarps * 32, 0, x.as<T>(), rows, columns, chunkRows, partial.data());
      launch(queue(), addPartialsKernel, blocksFor(columns), blockSize_, 0, partial.data(), chunks, columns,
             out.as<double>());
    });
  });
}

}  // namespace alps
