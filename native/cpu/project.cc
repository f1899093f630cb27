// The projection of scores to a mask, unstructured or N:M, and the size of a mask's changes.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <vector>

#include "cpu/cpu_backend.h"
#include "cpu/select.h"

namespace alps {

void CpuBackend::project(Tensor scores, Tensor mask, Pattern pattern, Counts rowEnds, Counts keep) {
  const PruningKernels& kernels = kernels_.pruning;
  const float* from = scores.as();
  uint8_t* to = mask.as<uint8_t>();
  if (pattern.group > 0) {
    forGroups(pool_, scores.size(), pattern.group, [&](int64_t at, int64_t n) {
      kernels.groupMask(from + at, to + at, static_cast<size_t>(n), pattern.kept, pattern.group);
    });
    return;
  }
  SelectionLoops loops;
  loops.sample = [&](int64_t begin, int64_t n, float* out) { std::copy_n(from + begin, n, out); };
  loops.use = [&](int64_t begin, int64_t n, int32_t above) {
    kernels.maskAbove(from + begin, to + begin, above, static_cast<size_t>(n));
  };
  selectTop(pool_, kernels, from, scores.columns(), rowEnds, keep, loops);
}

void CpuBackend::projectRows(Tensor scores, Tensor mask, int64_t keep) {
  int64_t n = scores.columns();
  if (n == 0) return;
  pool_.ranges(scores.rows(), std::max<int64_t>(1, tileSize / n), [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> magnitudes(static_cast<size_t>(n)), sorted;
    for (int64_t i = begin; i < end; i++) {
      std::memcpy(magnitudes.data(), scores.as() + i * n, static_cast<size_t>(n) * sizeof(float));
      for (uint32_t& bits : magnitudes) bits &= 0x7fffffff;
      uint8_t* row = mask.as<uint8_t>() + i * n;
      if (keep == 0 || keep == n) {
        std::fill_n(row, n, keep > 0);
        continue;
      }
      sorted = magnitudes;
      std::nth_element(sorted.begin(), sorted.begin() + (keep - 1), sorted.end(), std::greater<>());
      uint32_t threshold = sorted[static_cast<size_t>(keep - 1)];
      int64_t ties = keep;
      for (uint32_t bits : magnitudes) ties -= bits > threshold;
      for (int64_t j = 0; j < n; j++) {
        uint32_t bits = magnitudes[static_cast<size_t>(j)];
        row[j] = bits > threshold || (bits == threshold && ties-- > 0);
      }
    }
  });
}

void CpuBackend::maskChanges(Tensor mask, Tensor previous, Counts rowEnds, Tensor counts) {
  int64_t begin = 0;
  for (size_t s = 0; s < rowEnds.size(); s++) {
    int64_t end = static_cast<int64_t>(rowEnds[s]) * mask.columns();
    std::atomic<uint64_t> total{0};
    pool_.ranges(end - begin, tileSize * 4, [&](int64_t first, int64_t last) {
      total += kernels_.pruning.countChanges(mask.as<uint8_t>() + begin + first, previous.as<uint8_t>() + begin + first,
                                             static_cast<size_t>(last - first));
    });
    counts.as<uint32_t>()[s] = static_cast<uint32_t>(total.load());
    begin = end;
  }
}

}  // namespace alps
