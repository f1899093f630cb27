// The projection of scores to a mask, unstructured or N:M, and the size of a mask's changes.
#include <algorithm>
#include <atomic>

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
