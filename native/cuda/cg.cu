// Purpose: conjugate gradient on a fixed support, all rows side by side, each with its own step lengths. One product of
// a step, q = direction·H, is the caller's; the rest is bound by memory: 17 bytes an element are read and 12 written.
#include <cfloat>

#include "cuda/cuda_backend.h"
#include "cuda/quads.h"
#include "cuda/reduce.h"

namespace alps {

namespace {

// ---- kernels --------------------------------------------------------------------------------------------------------

constexpr int rounds = 4;  // quads of a row that a thread holds
constexpr int64_t warpColumns = 32 * rounds * 4;
constexpr int warpsPerBlock = 4;
constexpr int64_t largestBlock = 1024;

// A row's threads: one warp, several rows a block; or a block.
template <bool warp>
struct RowThreads {
  __device__ static int64_t row() {
    return warp ? int64_t{blockIdx.x} * warpsPerBlock + threadIdx.x / 32 : int64_t{blockIdx.x};
  }
  __device__ static int index() { return static_cast<int>(warp ? threadIdx.x % 32 : threadIdx.x); }
  __device__ static int count() { return static_cast<int>(warp ? 32 : blockDim.x); }
  __device__ static double sum(double value) {
    if constexpr (warp)
      return warpSum(value);
    else
      return blockSum(value);
  }
};

// action(at, i) for the thread's quads of a row. held: at most `rounds` of them, i is the quad's number, and what the
// thread keeps for it from one call to the next stays in registers.
template <bool held, typename Threads, typename Action>
__device__ inline void forQuads(Range range, const Action& action) {
  int64_t first = (range.begin & ~int64_t{3}) + Threads::index() * 4;
  int step = Threads::count() * 4;
  if constexpr (held) {
#pragma unroll
    for (int i = 0; i < rounds; i++)
      if (first + i * step < range.end) action(first + i * step, i);
  } else {
    for (int64_t at = first; at < range.end; at += step) action(at, 0);
  }
}

struct Rows {
  int64_t rows, columns;
};

template <bool warp, bool whole>
__global__ void __launch_bounds__(largestBlock)
    startKernel(float* residual, const uint8_t* mask, float* direction, double* rr, double* rr0, Rows rows) {
  using Threads = RowThreads<warp>;
  int64_t row = Threads::row();
  if (row >= rows.rows) return;
  Range range{row * rows.columns, (row + 1) * rows.columns};
  double sum = 0;
  forQuads<false, Threads>(range, [&](int64_t at, int) {
    float r[4];
    load4<whole>(residual, at, range, r);
    uint32_t kept = load4<whole>(mask, at, range);
    for (int j = 0; j < 4; j++) {
      if (!(kept >> (8 * j) & 0xff)) r[j] = 0.0f;
      sum += static_cast<double>(r[j]) * r[j];
    }
    store4<whole>(residual, at, range, r);
    store4<whole>(direction, at, range, r);
  });
  sum = Threads::sum(sum);
  if (Threads::index() == 0) rr[row] = rr0[row] = sum;
}

struct Step {
  const float* q;
  const uint8_t* mask;
  float *x, *residual, *direction;
  double *rr, *rr0;
  double tolerance;
  uint32_t* active;
};

template <bool held, bool warp, bool whole>
__global__ void __launch_bounds__(warp ? 32 * warpsPerBlock : largestBlock) stepKernel(Step step, Rows rows) {
  using Threads = RowThreads<warp>;
  int64_t row = Threads::row();
  if (row >= rows.rows) return;
  double rr = step.rr[row];
  if (!(rr > step.tolerance * step.tolerance * step.rr0[row])) return;  // converged, or all zero; and so for NaN
  Range range{row * rows.columns, (row + 1) * rows.columns};
  constexpr int kept = held ? rounds : 1;
  float q[kept][4], p[kept][4], r[kept][4];

  // q need not be masked: the direction is zero off the support.
  double pq = 0;
  forQuads<held, Threads>(range, [&](int64_t at, int i) {
    load4<whole>(step.q, at, range, q[i]);
    load4<whole>(step.direction, at, range, p[i]);
    for (int j = 0; j < 4; j++) pq += static_cast<double>(p[i][j]) * q[i][j];
  });
  pq = Threads::sum(pq);
  double quotient = rr / pq;
  // Not a descent direction (rounding at the end of convergence), or a number that float32 cannot hold.
  if (!(pq > 0) || !(quotient <= FLT_MAX)) return;
  float alpha = static_cast<float>(quotient);

  double next = 0;
  forQuads<held, Threads>(range, [&](int64_t at, int i) {
    float x[4];
    if constexpr (!held) {
      load4<whole>(step.q, at, range, q[i]);
      load4<whole>(step.direction, at, range, p[i]);
    }
    load4<whole>(step.x, at, range, x);
    load4<whole>(step.residual, at, range, r[i]);
    uint32_t mask = load4<whole>(step.mask, at, range);
    for (int j = 0; j < 4; j++) {
      x[j] += alpha * p[i][j];
      float change = alpha * q[i][j];
      r[i][j] -= mask >> (8 * j) & 0xff ? change : 0.0f;
      next += static_cast<double>(r[i][j]) * r[i][j];
    }
    store4<whole>(step.x, at, range, x);
    store4<whole>(step.residual, at, range, r[i]);
  });
  next = Threads::sum(next);
  float beta = static_cast<float>(next / rr);

  forQuads<held, Threads>(range, [&](int64_t at, int i) {
    if constexpr (!held) {
      load4<whole>(step.residual, at, range, r[i]);
      load4<whole>(step.direction, at, range, p[i]);
    }
    for (int j = 0; j < 4; j++) p[i][j] = r[i][j] + beta * p[i][j];
    store4<whole>(step.direction, at, range, p[i]);
  });
  if (Threads::index() == 0) {
    step.rr[row] = next;
    atomicAdd(step.active, 1u);
  }
}

// ---- launchers ------------------------------------------------------------------------------------------------------

struct Shape {
  bool warp, held;
  int threads;
  int64_t blocks;
};

Shape shapeOf(const Rows& rows, bool whole) {
  int64_t needed = rows.columns + (whole ? 0 : 3);  // a row may begin inside a quad
  if (needed <= warpColumns) return {true, true, 32 * warpsPerBlock, (rows.rows + warpsPerBlock - 1) / warpsPerBlock};
  int64_t each = 32 * rounds * 4, threads = (needed + each - 1) / each * 32;
  bool held = threads <= largestBlock;
  return {false, held, static_cast<int>(held ? threads : largestBlock), rows.rows};
}

auto stepOf(const Shape& shape, bool whole) {
  if (shape.warp) return whole ? stepKernel<true, true, true> : stepKernel<true, true, false>;
  if (!whole) return stepKernel<false, false, false>;
  return shape.held ? stepKernel<true, false, true> : stepKernel<false, false, true>;
}

// Whether all quads of all rows are whole ones.
template <typename... T>
bool allWhole(int64_t columns, const T*... data) {
  return columns % 4 == 0 && (holdsQuads(data) && ...);
}

}  // namespace

void CudaBackend::cgStart(Tensor residual, Tensor mask, Tensor direction, Tensor rr, Tensor rr0) {
  Rows rows{residual.dim(0), residual.dim(1)};
  bool whole = allWhole(rows.columns, residual.as(), mask.as<uint8_t>(), direction.as());
  Shape shape = shapeOf(rows, whole);
  auto kernel = shape.warp ? (whole ? startKernel<true, true> : startKernel<true, false>)
                           : (whole ? startKernel<false, true> : startKernel<false, false>);
  launch(queue(), kernel, {shape.blocks}, shape.threads, 0, residual.as(), mask.as<uint8_t>(), direction.as(),
         rr.as<double>(), rr0.as<double>(), rows);
}

void CudaBackend::cgStep(Tensor q, Tensor mask, Tensor x, Tensor residual, Tensor direction, Tensor rr, Tensor rr0,
                         double tolerance, Tensor active) {
  runtime_->zero(active.as<void>(), active.bytes());
  Step step{q.as(),          mask.as<uint8_t>(), x.as(),    residual.as(),        direction.as(),
            rr.as<double>(), rr0.as<double>(),   tolerance, active.as<uint32_t>()};
  Rows rows{q.dim(0), q.dim(1)};
  bool whole = allWhole(rows.columns, step.q, step.mask, step.x, step.residual, step.direction);
  Shape shape = shapeOf(rows, whole);
  launch(queue(), stepOf(shape, whole), {shape.blocks}, shape.threads, 0, step, rows);
}

// All rows side by side: products on the whole Gram matrix are what a GPU is best at.
void CudaBackend::cgOnSupport(Tensor gram, Tensor mask, Tensor x, Tensor residual, double tolerance, int64_t,
                              Tensor active) {
  auto made = [&](DType dtype, std::vector<int64_t> shape) {
    Tensor tensor{nullptr, 0, dtype, std::move(shape)};
    tensor.storage = allocate(tensor.bytes(), Contents::any);
    return tensor;
  };
  int64_t rows = residual.dim(0);
  Tensor direction = made(DType::f32, residual.shape), q = made(DType::f32, residual.shape);
  Tensor rr = made(DType::f64, {rows}), rr0 = made(DType::f64, {rows});
  cgStart(residual, mask, direction, rr, rr0);
  for (int64_t i = 0; i < active.size(); i++) {
    Tensor count = active;
    count.shape = {1};
    count.byteOffset += static_cast<size_t>(i) * sizeof(uint32_t);
    gemm(direction, gram, q, false, false, 1, 0, true);
    cgStep(q, mask, x, residual, direction, rr, rr0, tolerance, count);
  }
}

}  // namespace alps
