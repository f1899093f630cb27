// The projection of scores to a mask, unstructured or N:M, and the size of a mask's changes.
#include <algorithm>
#include <atomic>
#include <bit>
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

namespace {

// The largest of one row after another. The threshold is looked for near the last row's; where it is not there, a
// histogram of the magnitude bits leads to it.
class RowSelector {
 public:
  RowSelector(const PruningKernels& kernels, int64_t columns)
      : kernels_(kernels), n_(static_cast<size_t>(columns)), counts_(bins), inside_(n_ + 16) {}

  // 0 < keep < columns.
  void select(const float* row, uint8_t* mask, size_t keep) {
    uint32_t above = 0;
    size_t inside = kernels_.collect(row, n_, expected_.low(), expected_.high(), inside_.data(), &above);
    if (keep <= above || keep > above + inside) {
      uint32_t low = binOf(row, keep);
      above = 0, inside = kernels_.collect(row, n_, low, low + (1u << shift) - 1, inside_.data(), &above);
    }
    float *begin = inside_.data(), *end = begin + inside, *threshold = begin + (keep - above - 1);
    std::nth_element(begin, threshold, end,
                     [](float a, float b) { return std::bit_cast<uint32_t>(a) > std::bit_cast<uint32_t>(b); });
    uint32_t bits = std::bit_cast<uint32_t>(*threshold);
    size_t larger = above, equal = 0;
    for (const float* x = begin; x < end; x++)
      larger += std::bit_cast<uint32_t>(*x) > bits, equal += std::bit_cast<uint32_t>(*x) == bits;
    expected_ = next(expected_, bits, reaches);
    divide(row, mask, bits, keep - larger, equal);
  }

 private:
  // The lowest magnitude in the bin of the keep-th largest.
  uint32_t binOf(const float* row, size_t keep) {
    std::fill(counts_.begin(), counts_.end(), 0);
    kernels_.histogram(row, n_, 0, INT32_MAX, shift, counts_.data());
    size_t bin = bins - 1;
    for (; keep > counts_[bin]; bin--) keep -= counts_[bin];
    return static_cast<uint32_t>(bin) << shift;
  }

  // Keeps what is above `bits` and the first `ties` of the `equal` ones at it.
  void divide(const float* row, uint8_t* mask, uint32_t bits, size_t ties, size_t equal) {
    int32_t threshold = static_cast<int32_t>(bits);
    if (ties == equal) return kernels_.maskAbove(row, mask, threshold - 1, n_);
    kernels_.maskAbove(row, mask, threshold, n_);
    for (size_t i = 0; ties > 0; i++) {
      if ((std::bit_cast<uint32_t>(row[i]) & INT32_MAX) != bits) continue;
      mask[i] = 1;
      ties--;
    }
  }

  static constexpr Reaches reaches{1u << 20, 1u << 18, 1u << 21, 1};  // 12, 3 and 25 %
  static constexpr int shift = 21;                                    // four bins an octave
  static constexpr size_t bins = size_t{1} << (31 - shift);
  const PruningKernels& kernels_;
  size_t n_;
  std::vector<uint32_t> counts_;
  std::vector<float> inside_;
  Expected expected_;  // the last row's
};

}  // namespace

void CpuBackend::projectRows(Tensor scores, Tensor mask, int64_t keep) {
  int64_t n = scores.columns();
  if (n == 0) return;
  if (keep == 0 || keep == n) {
    std::fill_n(mask.as<uint8_t>(), mask.size(), keep > 0);
    return;
  }
  pool_.ranges(scores.rows(), std::max<int64_t>(1, tileSize / n), [&](int64_t begin, int64_t end) {
    RowSelector rows(kernels_.pruning, n);
    for (int64_t i = begin; i < end; i++)
      rows.select(scores.as() + i * n, mask.as<uint8_t>() + i * n, static_cast<size_t>(keep));
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
