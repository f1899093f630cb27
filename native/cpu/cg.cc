// Conjugate gradient on a fixed support, all rows side by side: each row has its own step lengths, and its loops follow
// one another while it is in cache. The one product of a step, q = direction·H, is the caller's.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "cpu/cpu_backend.h"

namespace alps {

namespace {
// Rows a task.
int64_t rowGrain(int64_t columns) { return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, columns)); }
}  // namespace

void CpuBackend::cgStart(Tensor residual, Tensor mask, Tensor direction, Tensor rr, Tensor rr0) {
  int64_t rows = residual.dim(0), columns = residual.dim(1);
  size_t n = static_cast<size_t>(columns);
  pool_.ranges(rows, rowGrain(columns), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      float* r = residual.as() + i * columns;
      kernels_.applyMask(r, mask.as<uint8_t>() + i * columns, n);
      std::copy_n(r, n, direction.as() + i * columns);
      rr.as<double>()[i] = rr0.as<double>()[i] = kernels_.dot(r, r, n);
    }
  });
}

void CpuBackend::cgStep(Tensor q, Tensor mask, Tensor x, Tensor residual, Tensor direction, Tensor rr, Tensor rr0,
                        double tolerance, Tensor active) {
  int64_t rows = q.dim(0), columns = q.dim(1);
  size_t n = static_cast<size_t>(columns);
  std::atomic<uint32_t> moved{0};
  pool_.ranges(rows, rowGrain(columns), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      double& rrRow = rr.as<double>()[i];
      if (!(rrRow > tolerance * tolerance * rr0.as<double>()[i])) continue;  // converged, or all zero; and so for NaN
      const float* qRow = q.as() + i * columns;
      float* r = residual.as() + i * columns;
      float* p = direction.as() + i * columns;
      // q need not be masked: the direction is zero off the support.
      double pq = kernels_.dot(p, qRow, n), alpha = rrRow / pq;
      // Not a descent direction (rounding at the end of convergence), or a number that float32 cannot hold.
      if (!(pq > 0) || !(alpha <= std::numeric_limits<float>::max())) continue;
      kernels_.pruning.cgUpdate(qRow, p, mask.as<uint8_t>() + i * columns, static_cast<float>(alpha),
                                x.as() + i * columns, r, n);
      double rrNew = kernels_.dot(r, r, n);
      kernels_.axpby(r, p, 1.0f, static_cast<float>(rrNew / rrRow), n);
      rrRow = rrNew;
      moved++;
    }
  });
  *active.as<uint32_t>() = moved;
}

}  // namespace alps
