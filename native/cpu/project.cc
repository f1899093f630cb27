// The projection of scores to a mask, unstructured or N:M, and the size of a mask's changes.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>

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

// The largest of one row after another. What separates them is found by counting what is above a guess: the last row's
// at first, then where the counts so far and the last row's density lead to. Few are needed, and a row is in the first
// cache.
class RowSelector {
 public:
  RowSelector(const PruningKernels& kernels, int64_t columns) : kernels_(kernels), n_(columns) {}

  // 0 < keep < columns.
  void select(const float* row, uint8_t* mask, int64_t keep) {
    Count under{-1, n_}, over{largestBits, 0}, first{};  // more than `keep` are above `under`, fewer above `over`
    for (int tries = 0, guesses = 0; over.bits - under.bits > 1; tries++) {
      bool isOpen = under.bits < 0 || over.bits == largestBits;
      int64_t guess = tries == 0 ? guess_
                      : isOpen   ? beyond(under, over, keep, tries)
                                 : between(under, over, keep, guesses);
      if (tries > 9 && tries % 2 == 0) {  // several may be equal: the next ones under `over` at once
        over.bits = kernels_.largestUpTo(row, static_cast<size_t>(n_), static_cast<int32_t>(over.bits));
        guess = over.bits - 1;
        if (guess == under.bits) break;
      }
      Count tried{guess,
                  static_cast<int64_t>(kernels_.countAbove(row, static_cast<size_t>(n_), static_cast<int32_t>(guess)))};
      if (tries == 0) first = tried;
      if (tried.above == keep) {
        remember(first, tried);
        return kernels_.maskAbove(row, mask, static_cast<int32_t>(guess), static_cast<size_t>(n_));
      }
      (tried.above > keep ? under : over) = tried;
    }
    remember(first, over);
    // Several are equal to `over`, of which the first ones are kept.
    kernels_.maskAbove(row, mask, static_cast<int32_t>(over.bits), static_cast<size_t>(n_));
    for (int64_t i = 0, ties = keep - over.above; ties > 0; i++) {
      if ((std::bit_cast<int32_t>(row[i]) & largestBits) != over.bits) continue;
      mask[i] = 1;
      ties--;
    }
  }

 private:
  // Where one end is open still: from the other one further than the last row's density says, so that it closes.
  int64_t beyond(const Count& under, const Count& over, int64_t keep, int tries) const {
    const Count& from = over.bits == largestBits ? under : over;
    double step = perBit_ > 0 ? 1.25 * static_cast<double>(from.above - keep) / perBit_ : 0x1p31;
    int64_t guess = from.bits + static_cast<int64_t>(std::clamp(step, -0x1p31, 0x1p31));
    if (tries > 4 || guess <= under.bits || guess >= over.bits) return under.bits + (over.bits - under.bits) / 2;
    return guess;
  }

  void remember(const Count& first, const Count& last) {
    guess_ = last.bits;
    if (first.bits == last.bits || first.above == last.above) return;
    perBit_ = std::abs(static_cast<double>(first.above - last.above) / static_cast<double>(first.bits - last.bits));
  }

  static constexpr int32_t largestBits = INT32_MAX;
  const PruningKernels& kernels_;
  int64_t n_;
  int64_t guess_ = 0x3f800000;  // that of 1
  double perBit_ = 0;           // counts
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
    for (int64_t i = begin; i < end; i++) rows.select(scores.as() + i * n, mask.as<uint8_t>() + i * n, keep);
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
