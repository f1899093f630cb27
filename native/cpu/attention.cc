// Causal attention with grouped queries. A task is one window, one query head and one block of query rows; it goes over
// blocks of keys with a running softmax, so its scratch is a few blocks whatever the sequence.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/cpu_backend.h"
#include "cpu/rows.h"
#include "cpu/sgemm.h"

namespace alps {

namespace {

constexpr int64_t queryBlock = 128, keyBlock = 512;
constexpr float none = -std::numeric_limits<float>::infinity();

// One head's rows [begin, begin + rows) as float32 and their row length: in place, or converted.
const float* headRows(const Kernels& kernels, const Tensor& x, int64_t begin, int64_t rows, int64_t column,
                      int64_t headDim, std::vector<float>& buffer, int64_t& ld) {
  int64_t n = x.dim(1);
  if (x.dtype == DType::f32) {
    ld = n;
    return x.as() + begin * n + column;
  }
  ld = headDim;
  buffer.resize(static_cast<size_t>(rows * headDim));
  for (int64_t i = 0; i < rows; i++)
    kernels.f32FromBf16(x.as<bf16_t>() + (begin + i) * n + column, buffer.data() + i * headDim,
                        static_cast<size_t>(headDim));
  return buffer.data();
}

}  // namespace

void CpuBackend::attention(Tensor q, Tensor k, Tensor v, Tensor out, int64_t headDim, int64_t sequence, double scale,
                           int64_t window) {
  int64_t heads = q.dim(1) / headDim, group = q.dim(1) / k.dim(1), windows = q.dim(0) / sequence;
  int64_t blocks = (sequence + queryBlock - 1) / queryBlock;
  const auto& loops = kernels_.transformer;
  pool_.run(windows * heads * blocks, [&](int64_t task) {
    // Longest query blocks first: they see the most keys.
    int64_t block = blocks - 1 - task / (windows * heads), head = task % heads,
            start = task / heads % windows * sequence;
    int64_t first = block * queryBlock, rows = std::min(queryBlock, sequence - first);
    int64_t from = window > 0 ? std::max<int64_t>(0, first - window + 1) : 0, to = first + rows;
    std::vector<float> qBuffer, kBuffer, vBuffer, scores(static_cast<size_t>(rows * keyBlock)),
        sums(static_cast<size_t>(rows * headDim), 0.0f);
    std::vector<float> largest(static_cast<size_t>(rows), none), total(static_cast<size_t>(rows), 0.0f);
    int64_t ldq, ldk, ldv;
    const float* queries = headRows(kernels_, q, start + first, rows, head * headDim, headDim, qBuffer, ldq);
    for (int64_t key = from; key < to; key += keyBlock) {
      int64_t keys = std::min(keyBlock, to - key), column = head / group * headDim;
      const float* keyRows = headRows(kernels_, k, start + key, keys, column, headDim, kBuffer, ldk);
      const float* valueRows = headRows(kernels_, v, start + key, keys, column, headDim, vBuffer, ldv);
      sgemm(false, true, rows, keys, headDim, static_cast<float>(scale), queries, ldq, keyRows, ldk, 0, scores.data(),
            keys);
      for (int64_t i = 0; i < rows; i++) {
        // Query first + i sees keys up to itself, and no further back than its window.
        float* row = scores.data() + i * keys;
        int64_t end = std::clamp<int64_t>(first + i + 1 - key, 0, keys);
        int64_t begin = window > 0 ? std::clamp<int64_t>(first + i + 1 - window - key, 0, end) : 0;
        std::fill(row, row + begin, 0.0f);
        std::fill(row + end, row + keys, 0.0f);
        if (begin == end) continue;
        size_t seen = static_cast<size_t>(end - begin);
        float before = largest[i], here = *std::max_element(row + begin, row + end);
        float sum = loops.softmaxRow(row + begin, 1.0f, seen);
        float now = std::max(before, here);
        if (here < now) {
          float factor = std::exp(here - now);
          loops.multiply(row + begin, factor, seen);
          sum *= factor;
        }
        if (before != none && before < now) {
          float factor = std::exp(before - now);
          loops.multiply(sums.data() + i * headDim, factor, static_cast<size_t>(headDim));
          total[i] *= factor;
        }
        largest[i] = now;
        total[i] += sum;
      }
      sgemm(false, false, rows, headDim, keys, 1, scores.data(), keys, valueRows, ldv, 1, sums.data(), headDim);
    }
    for (int64_t i = 0; i < rows; i++) {
      int64_t at = (start + first + i) * q.dim(1) + head * headDim;
      float* row = sums.data() + i * headDim;
      loops.multiply(row, 1.0f / total[i], static_cast<size_t>(headDim));
      if (out.dtype == DType::f32)
        std::copy_n(row, headDim, out.as() + at);
      else
        storeRow(kernels_, out, at, headDim, row);
    }
  });
}

}  // namespace alps
