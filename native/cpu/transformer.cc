// The decoder's ops that are bound by memory: embedding, norms, rotary positions, activations, cross-entropy.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/cpu_backend.h"
#include "cpu/rows.h"

namespace alps {

namespace {
// Rows a task: about 64 K values.
int64_t rowGrain(int64_t columns) { return std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, columns)); }
}  // namespace

void CpuBackend::embedding(Tensor table, Tensor ids, Tensor out) {
  int64_t vocabulary = table.dim(0), n = table.dim(1);
  pool_.ranges(ids.size(), rowGrain(n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      uint32_t id = ids.as<uint32_t>()[i];
      require(id < vocabulary, "Expected token ids below ", vocabulary, " but received ", id);
      size_t width = static_cast<size_t>(n);
      float* row = out.as() + i * n;
      if (table.dtype == DType::f32) std::memcpy(row, table.as() + id * n, width * sizeof(float));
      if (table.dtype == DType::bf16) kernels_.f32FromBf16(table.as<bf16_t>() + id * n, row, width);
      if (table.dtype == DType::f16) kernels_.f32FromF16(table.as<f16_t>() + id * n, row, width);
    }
  });
}

void CpuBackend::rmsNorm(Tensor x, Tensor weight, double eps, double offset, Tensor out) {
  int64_t n = weight.size();
  pool_.ranges(x.size() / n, rowGrain(n), [&](int64_t begin, int64_t end) {
    std::vector<float> source, target;
    for (int64_t i = begin; i < end; i++) {
      const float* row = readRow(kernels_, x, i * n, n, source);
      float* result = targetRow(out, i * n, n, target);
      kernels_.transformer.rmsNorm(row, weight.as(), static_cast<float>(eps), static_cast<float>(offset), result,
                                   static_cast<size_t>(n));
      storeRow(kernels_, out, i * n, n, result);
    }
  });
}

void CpuBackend::rope(Tensor x, Tensor cosine, Tensor sine, int64_t headDim, int64_t sequence) {
  int64_t n = x.columns(), heads = n / headDim, half = cosine.dim(1);
  pool_.ranges(x.rows(), rowGrain(n), [&](int64_t begin, int64_t end) {
    std::vector<float> buffer;
    for (int64_t t = begin; t < end; t++) {
      float* row = const_cast<float*>(readRow(kernels_, x, t * n, n, buffer));
      const float* c = cosine.as() + t % sequence * half;
      const float* s = sine.as() + t % sequence * half;
      for (int64_t h = 0; h < heads; h++)
        kernels_.transformer.rotate(row + h * headDim, row + h * headDim + half, c, s, static_cast<size_t>(half));
      storeRow(kernels_, x, t * n, n, row);
    }
  });
}

void CpuBackend::gatedActivation(Tensor gate, Tensor up, Tensor out, std::string activation) {
  auto exactGelu = [](const float* x, const float* u, float* y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f)) * u[i];
  };
  void (*apply)(const float*, const float*, float*, size_t) = exactGelu;
  if (activation == "silu") apply = kernels_.transformer.silu;
  if (activation == "relu") apply = kernels_.transformer.relu;
  if (activation == "gelu_tanh") apply = kernels_.transformer.geluTanh;
  constexpr int64_t piece = 4096;
  pool_.ranges(gate.size(), 1 << 16, [&](int64_t begin, int64_t end) {
    std::vector<float> a, b, c;
    for (int64_t at = begin; at < end; at += piece) {
      int64_t n = std::min(piece, end - at);
      const float* x = readRow(kernels_, gate, at, n, a);
      const float* u = readRow(kernels_, up, at, n, b);
      float* y = targetRow(out, at, n, c);
      apply(x, u, y, static_cast<size_t>(n));
      storeRow(kernels_, out, at, n, y);
    }
  });
}

void CpuBackend::crossEntropy(Tensor logits, Tensor targets, Tensor out) {
  int64_t vocabulary = logits.dim(1);
  pool_.ranges(logits.dim(0), rowGrain(vocabulary), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      uint32_t target = targets.as<uint32_t>()[i];
      require(target < vocabulary, "Expected token ids below ", vocabulary, " but received ", target);
      const float* row = logits.as() + i * vocabulary;
      out.as<double>()[i] = kernels_.transformer.logSumExp(row, static_cast<size_t>(vocabulary)) - row[target];
    }
  });
}

}  // namespace alps
