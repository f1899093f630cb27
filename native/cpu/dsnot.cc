// DSnoT's prune-and-grow (Zhang et al., "Dynamic Sparse No Training", ICLR 2024): a row swaps a pruned weight for a
// kept one as long as that brings the expected change of its output towards 0. Rows are independent.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/cpu_backend.h"

namespace alps {

namespace {

struct Candidate {
  float order;  // lowest first
  int64_t index;
  bool operator<(const Candidate& other) const {
    return order < other.order || (order == other.order && index < other.index);
  }
};

// The first `count` of a list, sorted.
void sortFirst(std::vector<Candidate>& list, int64_t count) {
  size_t first = std::min(list.size(), static_cast<size_t>(count));
  std::partial_sort(list.begin(), list.begin() + static_cast<int64_t>(first), list.end());
  list.resize(first);
}

class Row {
 public:
  Row(const float* weight, const float* metric, const float* expected, const float* variance, uint8_t* mask, int64_t n)
      : weight_(weight), metric_(metric), expected_(expected), variance_(variance), mask_(mask), n_(n) {}

  void run(const Pattern& pattern, int64_t cycles, double threshold, bool sameSign) {
    collect(pattern, cycles);
    double error = 0;  // expected change of the output: what the pruned weights contributed
    for (int64_t j = 0; j < n_; j++)
      if (!mask_[j]) error += share(j);
    bool positive = error > 0;
    size_t grown[2] = {0, 0}, pruned[2] = {0, 0};
    for (int64_t cycle = 0; cycle < cycles && std::fabs(error) > threshold; cycle++) {
      int side = error > 0;  // grow a pruned weight whose contribution has the error's sign ...
      if (grown[side] == grow_[side].size()) return;
      int64_t in = grow_[side][grown[side]++].index;
      int64_t out = pattern.group > 0 ? lowestOfGroup(in, pattern.group) : next(prune_[!side], pruned[!side]);
      if (out < 0) {
        if (pattern.group > 0) continue;
        return;
      }
      double after = error + share(out) - share(in);
      if (sameSign && (after > 0) != positive) return;
      mask_[in] = 1;
      mask_[out] = 0;
      if (pattern.group > 0) swapped_[static_cast<size_t>(in)] = swapped_[static_cast<size_t>(out)] = true;
      error = after;
    }
  }

 private:
  float share(int64_t j) const { return weight_[j] * expected_[j]; }

  // Candidates by the sign of their contribution: [0] negative, [1] positive.
  void collect(const Pattern& pattern, int64_t cycles) {
    for (auto* lists : {grow_, prune_})
      for (int side = 0; side < 2; side++) lists[side].clear();
    for (int64_t j = 0; j < n_; j++) {
      float value = share(j);
      if (!(value != 0)) continue;  // nothing ever arrives there, or the weight is 0
      if (!mask_[j])
        grow_[value > 0].push_back({-std::fabs(value) / variance_[j], j});
      else if (pattern.group == 0)
        prune_[value > 0].push_back({std::fabs(metric_[j]), j});
    }
    for (auto* lists : {grow_, prune_})
      for (int side = 0; side < 2; side++) sortFirst(lists[side], cycles);
    swapped_.assign(pattern.group > 0 ? static_cast<size_t>(n_) : 0, false);
  }

  // ... for a kept one with the opposite sign that matters least, or in N:M the one of its group that matters least.
  static int64_t next(const std::vector<Candidate>& list, size_t& used) {
    return used < list.size() ? list[used++].index : -1;
  }

  int64_t lowestOfGroup(int64_t index, int64_t group) const {
    int64_t start = index / group * group, best = -1;
    for (int64_t j = start; j < start + group; j++)
      if (mask_[j] && !swapped_[static_cast<size_t>(j)] &&
          (best < 0 || std::fabs(metric_[j]) < std::fabs(metric_[best])))
        best = j;
    return best;
  }

  const float *weight_, *metric_, *expected_, *variance_;
  uint8_t* mask_;
  int64_t n_;
  std::vector<Candidate> grow_[2], prune_[2];
  std::vector<bool> swapped_;
};

}  // namespace

void CpuBackend::dsnot(Tensor weight, Tensor metric, Tensor expected, Tensor variance, Tensor mask, Pattern pattern,
                       int64_t cycles, double threshold, bool sameSign) {
  int64_t n = weight.dim(1);
  pool_.ranges(weight.dim(0), 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      Row(weight.as() + i * n, metric.as() + i * n, expected.as(), variance.as(), mask.as<uint8_t>() + i * n, n)
          .run(pattern, cycles, threshold, sameSign);
  });
}

}  // namespace alps
