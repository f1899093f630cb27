// The decoder's forward pass without its products and its attention: embedding, norms, rotary positions, activations,
// loss.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/cpu_backend.h"

namespace alps {

namespace {
constexpr int64_t grain = 1 << 15;  // elements a task
int64_t rowGrain(int64_t columns) { return std::max<int64_t>(1, grain / std::max<int64_t>(1, columns)); }

// Looked at before the work starts: the complaint names the first one, whatever the threads.
void requireIds(const Tensor& ids, int64_t count, const char* what) {
  for (int64_t i = 0; i < ids.size(); i++) {
    uint32_t id = ids.as<uint32_t>()[i];
    if (id >= count) fail("INVALID_ARGUMENT", "Expected ", what, " below ", count, " but received ", id);
  }
}

Activation kindOf(const std::string& activation) {
  return activation == "silu" ? silu : activation == "gelu" ? gelu : activation == "relu" ? relu : geluTanh;
}
}  // namespace

void CpuBackend::embedding(Tensor table, Tensor ids, Tensor out) {
  requireIds(ids, table.dim(0), "token ids");
  int64_t n = table.dim(1);
  pool_.ranges(ids.size(), rowGrain(n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      int64_t from = static_cast<int64_t>(ids.as<uint32_t>()[i]) * n;
      float* row = out.as() + i * n;
      size_t count = static_cast<size_t>(n);
      if (table.dtype == DType::f32)
        std::copy_n(table.as() + from, n, row);
      else if (table.dtype == DType::bf16)
        kernels_.f32FromBf16(table.as<bf16_t>() + from, row, count);
      else
        kernels_.f32FromF16(table.as<f16_t>() + from, row, count);
    }
  });
}

void CpuBackend::rmsNorm(Tensor x, Tensor weight, double eps, double offset, Tensor out) {
  const TransformerKernels& kernels = kernels_.transformer;
  int64_t n = weight.size();
  size_t count = static_cast<size_t>(n);
  float add = static_cast<float>(offset);
  bool from16 = x.dtype == DType::bf16, to16 = out.dtype == DType::bf16;
  pool_.ranges(x.size() / n, rowGrain(n), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * n; at < end * n; at += n) {
      if (from16 && to16)
        kernels.norm16(x.as<bf16_t>() + at, weight.as(), eps, add, out.as<bf16_t>() + at, count);
      else if (from16)
        kernels.normFrom16(x.as<bf16_t>() + at, weight.as(), eps, add, out.as() + at, count);
      else if (to16)
        kernels.normTo16(x.as() + at, weight.as(), eps, add, out.as<bf16_t>() + at, count);
      else
        kernels.norm(x.as() + at, weight.as(), eps, add, out.as() + at, count);
    }
  });
}

void CpuBackend::layerNorm(Tensor x, Tensor weight, Tensor bias, double eps, Tensor out) {
  const TransformerKernels& kernels = kernels_.transformer;
  int64_t n = weight.size();
  size_t count = static_cast<size_t>(n);
  bool from16 = x.dtype == DType::bf16, to16 = out.dtype == DType::bf16;
  pool_.ranges(x.size() / n, rowGrain(n), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * n; at < end * n; at += n) {
      if (from16 && to16)
        kernels.layerNorm16(x.as<bf16_t>() + at, weight.as(), bias.as(), eps, out.as<bf16_t>() + at, count);
      else if (from16)
        kernels.layerNormFrom16(x.as<bf16_t>() + at, weight.as(), bias.as(), eps, out.as() + at, count);
      else if (to16)
        kernels.layerNormTo16(x.as() + at, weight.as(), bias.as(), eps, out.as<bf16_t>() + at, count);
      else
        kernels.layerNorm(x.as() + at, weight.as(), bias.as(), eps, out.as() + at, count);
    }
  });
}

void CpuBackend::rope(Tensor x, Tensor cosine, Tensor sine, int64_t headDim, int64_t sequence) {
  int64_t n = x.columns(), half = cosine.dim(1);
  size_t heads = static_cast<size_t>(n / headDim);
  pool_.ranges(x.rows(), rowGrain(n), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      const float *c = cosine.as() + t % sequence * half, *s = sine.as() + t % sequence * half;
      if (x.dtype == DType::f32)
        kernels_.transformer.rope(x.as() + t * n, c, s, static_cast<size_t>(half), static_cast<size_t>(headDim), heads);
      else
        kernels_.transformer.rope16(x.as<bf16_t>() + t * n, c, s, static_cast<size_t>(half),
                                    static_cast<size_t>(headDim), heads);
    }
  });
}

void CpuBackend::gatedActivation(Tensor gate, Tensor up, Tensor out, std::string activation) {
  Activation kind = kindOf(activation);
  pool_.ranges(gate.size(), grain, [&](int64_t begin, int64_t end) {
    size_t count = static_cast<size_t>(end - begin);
    if (gate.dtype == DType::f32)
      kernels_.transformer.gated[kind](gate.as() + begin, up.as() + begin, out.as() + begin, count);
    else
      kernels_.transformer.gated16[kind](gate.as<bf16_t>() + begin, up.as<bf16_t>() + begin, out.as<bf16_t>() + begin,
                                         count);
  });
}

void CpuBackend::activate(Tensor x, Tensor out, std::string activation) {
  Activation kind = kindOf(activation);
  pool_.ranges(x.size(), grain, [&](int64_t begin, int64_t end) {
    size_t count = static_cast<size_t>(end - begin);
    if (x.dtype == DType::f32)
      kernels_.transformer.activate[kind](x.as() + begin, out.as() + begin, count);
    else
      kernels_.transformer.activate16[kind](x.as<bf16_t>() + begin, out.as<bf16_t>() + begin, count);
  });
}

void CpuBackend::softCap(Tensor x, double cap) {
  pool_.ranges(x.size(), grain, [&](int64_t begin, int64_t end) {
    kernels_.transformer.softCap(x.as() + begin, static_cast<float>(cap), static_cast<size_t>(end - begin));
  });
}

void CpuBackend::crossEntropy(Tensor logits, Tensor targets, Tensor out) {
  int64_t n = logits.dim(1);
  requireIds(targets, n, "target ids");
  pool_.ranges(logits.dim(0), rowGrain(n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const float* row = logits.as() + i * n;
      float top = kernels_.transformer.maximum(row, static_cast<size_t>(n));
      double sum = kernels_.transformer.sumExponentials(row, top, static_cast<size_t>(n));
      out.as<double>()[i] = (static_cast<double>(top) - row[targets.as<uint32_t>()[i]]) + std::log(sum);
    }
  });
}

void CpuBackend::divergence(Tensor p, Tensor q, Tensor out) {
  size_t n = static_cast<size_t>(p.dim(1));
  const TransformerKernels& kernels = kernels_.transformer;
  pool_.ranges(p.dim(0), rowGrain(p.dim(1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const float *a = p.as() + i * p.dim(1), *b = q.as() + i * p.dim(1);
      float topA = kernels.maximum(a, n), topB = kernels.maximum(b, n);
      double sums[3];
      kernels.divergenceSums(a, b, topA, topB, n, sums);
      out.as<double>()[i] = sums[2] / sums[0] + std::log(sums[1] / sums[0]);
    }
  });
}

void CpuBackend::sample(Tensor logits, Tensor draws, Tensor ids, double temperature) {
  int64_t n = logits.dim(1);
  pool_.ranges(logits.dim(0), 1, [&](int64_t begin, int64_t) {
    const float* row = logits.as() + begin * n;
    uint32_t& id = ids.as<uint32_t>()[begin];
    float top = kernels_.transformer.maximum(row, static_cast<size_t>(n));
    int64_t largest = std::find(row, row + n, top) - row;
    id = static_cast<uint32_t>(largest < n ? largest : 0);
    if (temperature == 0 || !std::isfinite(top)) return;
    thread_local std::vector<float> scaled;
    scaled.resize(static_cast<size_t>(n));
    // Differences are scaled: logits over a small temperature would lose their last bits, or overflow.
    float inverse = static_cast<float>(std::min<double>(1 / temperature, std::numeric_limits<float>::max()));
    for (int64_t j = 0; j < n; j++) scaled[static_cast<size_t>(j)] = (row[j] - top) * inverse;
    kernels_.transformer.exponentials(scaled.data(), 0, scaled.data(), scaled.size());
    double sum = 0;
    for (float p : scaled) sum += p > 0 ? p : 0;  // NaN is not drawn
    double left = draws.as<double>()[begin] * sum;
    for (int64_t j = 0; j < n; j++) {
      if (!(scaled[static_cast<size_t>(j)] > 0)) continue;
      id = static_cast<uint32_t>(j);
      left -= scaled[static_cast<size_t>(j)];
      if (left < 0) return;
    }
  });
}

}  // namespace alps
