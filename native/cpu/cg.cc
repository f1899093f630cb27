// Conjugate gradient on a fixed support. All rows side by side: each row has its own step lengths, and its loops follow
// one another while it is in cache; the one product of a step, q = direction·H, is the caller's. Or each row on its
// own, with H[S, S] of its support S gathered, which takes (|S| / n)² of the products' operations.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "core/stream.h"
#include "cpu/cpu_backend.h"
#include "cpu/lines.h"
#include "cpu/support.h"

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

namespace {

// What a row's steps need, on its support alone; vectors in whole tiles, zeros behind their ends.
class SupportRow {
 public:
  SupportRow(const Kernels& kernels, const Tensor& gram) : kernels_(kernels), gram_(gram) {}

  // As many steps as there are counts; each that moves the row is counted.
  void solve(const uint8_t* mask, float* x, const float* residual, double tolerance, std::vector<uint32_t>& moved) {
    readSupport(mask, gram_.dim(0), support_);
    size_t size = support_.size(), padded = inTiles(size) * supportTile;
    for (Vector* v : {&x_, &r_, &p_, &q_}) v->reserve(padded);
    for (size_t k = 0; k < padded; k++) {
      x_.data()[k] = k < size ? x[support_[k]] : 0.0f;
      r_.data()[k] = p_.data()[k] = k < size ? residual[support_[k]] : 0.0f;
    }
    float *r = r_.data(), *p = p_.data(), *q = q_.data();
    double rr = kernels_.dot(r, r, padded), end = tolerance * tolerance * rr;
    if (moved.empty() || !(rr > end)) return;
    gather();
    for (uint32_t& count : moved) {
      if (!(rr > end)) break;  // as in cgStep, whose rows stand still from there on
      multiply(p, q);
      double pq = kernels_.dot(p, q, padded), alpha = rr / pq;
      if (!(pq > 0) || !(alpha <= std::numeric_limits<float>::max())) break;
      kernels_.axpby(p, x_.data(), static_cast<float>(alpha), 1.0f, padded);
      kernels_.axpby(q, r, -static_cast<float>(alpha), 1.0f, padded);
      double rrNew = kernels_.dot(r, r, padded);
      kernels_.axpby(r, p, 1.0f, static_cast<float>(rrNew / rr), padded);
      rr = rrNew;
      count++;
    }
    for (size_t k = 0; k < size; k++) x[support_[k]] = x_.data()[k];
  }

 private:
  // Grows, without its contents.
  class Vector {
   public:
    void reserve(size_t n) {
      if (numbers_.size() < n) numbers_ = Lines<float>(n + n / 8);
    }
    float* data() { return numbers_.data(); }

   private:
    Lines<float> numbers_;
  };

  void gather() {
    size_t n = static_cast<size_t>(gram_.dim(0));
    if (!packs()) return whole_.assign(n, 0.0f);
    packed_.reserve(packedNumbers(support_.size()));
    kernels_.pruning.packSupport(gram_.as(), n, support_.data(), support_.size(), packed_.data());
  }

  // A support that takes more than some 4 MB is not gathered: it is one of few, where most are smaller.
  bool packs() const { return support_.size() <= 1440; }

  // q = gram[S, S]·p
  void multiply(const float* p, float* q) {
    size_t size = support_.size(), n = whole_.size();
    if (packs()) return kernels_.pruning.supportTimes(packed_.data(), size, p, q);
    throwIfCancelled();
    for (size_t k = 0; k < size; k++) whole_[support_[k]] = p[k];
    for (size_t k = 0; k < size; k++)
      q[k] = static_cast<float>(kernels_.dot(gram_.as() + support_[k] * n, whole_.data(), n));
    std::fill_n(q + size, inTiles(size) * supportTile - size, 0.0f);
  }

  const Kernels& kernels_;
  const Tensor& gram_;
  std::vector<uint32_t> support_;
  Vector packed_, x_, r_, p_, q_;
  std::vector<float> whole_;  // p in its places; zero off the support
};

// One for each thread that is at work, made when it is first asked for.
class SupportRows {
 public:
  std::unique_ptr<SupportRow> take(const Kernels& kernels, const Tensor& gram) {
    std::lock_guard lock(mutex_);
    if (idle_.empty()) return std::make_unique<SupportRow>(kernels, gram);
    auto row = std::move(idle_.back());
    idle_.pop_back();
    return row;
  }
  void give(std::unique_ptr<SupportRow> row) {
    std::lock_guard lock(mutex_);
    idle_.push_back(std::move(row));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<SupportRow>> idle_;
};

}  // namespace

void CpuBackend::cgOnSupport(Tensor gram, Tensor mask, Tensor x, Tensor residual, double tolerance, int64_t kept,
                             Tensor active) {
  int64_t rowCount = residual.dim(0), n = gram.dim(0);
  double numbers = static_cast<double>(std::max<int64_t>(1, kept)) * static_cast<double>(n) /
                   static_cast<double>(std::max<int64_t>(1, rowCount));  // of gram that a row gathers from
  int64_t grain = std::max<int64_t>(1, static_cast<int64_t>((1 << 19) / std::max(1.0, numbers)));
  std::fill_n(active.as<uint32_t>(), active.size(), 0u);
  SupportRows rows;
  pool_.ranges(rowCount, grain, [&](int64_t begin, int64_t end) {
    auto row = rows.take(kernels_, gram);
    std::vector<uint32_t> moved(static_cast<size_t>(active.size()));
    for (int64_t i = begin; i < end; i++) {
      row->solve(mask.as<uint8_t>() + i * n, x.as() + i * n, residual.as() + i * n, tolerance, moved);
    }
    rows.give(std::move(row));
    for (size_t t = 0; t < moved.size(); t++)
      std::atomic_ref(active.as<uint32_t>()[t]).fetch_add(moved[t], std::memory_order_relaxed);
  });
}

}  // namespace alps
