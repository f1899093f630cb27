// Mixtures of experts: routing, and rows taken to an expert and back.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/cpu_backend.h"

namespace alps {

namespace {
int64_t rowGrain(int64_t columns) { return std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, columns)); }

void requireRows(const Tensor& ids, int64_t count) {
  for (int64_t i = 0; i < ids.size(); i++)
    if (ids.as<uint32_t>()[i] >= count)
      fail("INVALID_ARGUMENT", "Expected row ids below ", count, " but received ", ids.as<uint32_t>()[i]);
}
}  // namespace

void CpuBackend::topExperts(Tensor logits, Tensor ids, Tensor weights, bool normalise) {
  int64_t experts = logits.dim(1), k = ids.dim(1);
  pool_.ranges(logits.dim(0), rowGrain(experts), [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> order(static_cast<size_t>(experts));
    for (int64_t t = begin; t < end; t++) {
      const float* row = logits.as() + t * experts;
      std::iota(order.begin(), order.end(), 0u);
      std::partial_sort(order.begin(), order.begin() + k, order.end(),
                        [&](uint32_t a, uint32_t b) { return row[a] > row[b] || (row[a] == row[b] && a < b); });
      double total = 0;
      for (int64_t e = 0; e < (normalise ? k : experts); e++)
        total += std::exp(static_cast<double>(row[order[static_cast<size_t>(e)]]) - row[order[0]]);
      for (int64_t e = 0; e < k; e++) {
        uint32_t expert = order[static_cast<size_t>(e)];
        ids.as<uint32_t>()[t * k + e] = expert;
        weights.as()[t * k + e] =
            static_cast<float>(std::exp(static_cast<double>(row[expert]) - row[order[0]]) / total);
      }
    }
  });
}

void CpuBackend::gatherRows(Tensor x, Tensor ids, Tensor out) {
  requireRows(ids, x.dim(0));
  size_t bytes = static_cast<size_t>(x.dim(1)) * sizeOf(x.dtype);
  pool_.ranges(ids.size(), rowGrain(x.dim(1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      std::copy_n(x.as<char>() + ids.as<uint32_t>()[i] * bytes, bytes, out.as<char>() + static_cast<size_t>(i) * bytes);
  });
}

void CpuBackend::scatterAddRows(Tensor y, Tensor ids, Tensor weights, Tensor x) {
  requireRows(ids, x.dim(0));
  int64_t n = x.dim(1);
  pool_.ranges(ids.size(), rowGrain(n), [&](int64_t begin, int64_t end) {
    std::vector<float> wide(static_cast<size_t>(n));
    for (int64_t i = begin; i < end; i++) {
      const float* row = y.dtype == DType::f32 ? y.as() + i * n : wide.data();
      if (y.dtype == DType::bf16) kernels_.f32FromBf16(y.as<bf16_t>() + i * n, wide.data(), static_cast<size_t>(n));
      kernels_.axpby(row, x.as() + static_cast<int64_t>(ids.as<uint32_t>()[i]) * n, weights.as()[i], 1,
                     static_cast<size_t>(n));
    }
  });
}

}  // namespace alps
