// Exact top-k of |scores| per segment, in two passes over the scores whatever their number. Shared by the projection
// and by the ADMM pass, which compute and use the scores while they are in cache.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/backend.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace alps {

// Elements a piece: what the loops of one pass touch of it stays in the first-level cache.
constexpr int64_t pieceSize = 1024;
// Elements a task.
constexpr int64_t tileSize = 1 << 16;

// The caller's loops over flat element ranges; called from the pool's threads.
struct SelectionLoops {
  // out[0 .. n) = what scores[begin ..) will be once made. n is at most SelectionLoops::chunk.
  std::function<void(int64_t begin, int64_t n, float* out)> sample;
  // Makes scores[begin .. begin + n) final. Called once for every element. May be empty.
  std::function<void(int64_t begin, int64_t n)> make;
  // Uses them: kept are the magnitudes whose bits (kernels_pruning.h) are above `above`. Called once for every element.
  std::function<void(int64_t begin, int64_t n, int32_t above)> use;

  // In place of make: makes scores[begin .. end), the part of a segment from a multiple of `tile` on. What is sampled
  // is made before then.
  std::function<void(int64_t begin, int64_t end)> makeTile;
  int64_t tile = tileSize;

  static constexpr int64_t chunk = 16;
};

// Where the threshold of a segment was in the last of similar selections, and how far from there it may be now, in bits
// of the magnitude.
struct Expected {
  uint32_t threshold = 0, reach = 0;  // reach 0: not known

  uint32_t low() const { return threshold - std::min(threshold, reach); }
  uint32_t high() const { return std::min<uint32_t>(INT32_MAX, threshold + reach); }
};

// How far to look: at first, at least and at most (1 << 23 is a factor of two), and how many times the last move.
struct Reaches {
  uint32_t first, smallest, largest, moves;
};

// After a selection with this threshold.
inline Expected next(const Expected& last, uint32_t threshold, const Reaches& reaches) {
  if (last.reach == 0) return {threshold, reaches.first};
  uint32_t move = threshold > last.threshold ? threshold - last.threshold : last.threshold - threshold;
  uint32_t wanted = reaches.moves * std::min(move, reaches.largest);
  return {threshold, std::clamp(std::max(wanted, last.reach / 2), reaches.smallest, reaches.largest)};
}

// So many magnitudes have bits above these.
struct Count {
  int64_t bits, above;
};

// A guess strictly between `under`, which more than `wanted` magnitudes are above, and `over`, which fewer are above:
// where that many are, were they spread evenly. Over more than two octaves they are not, and where some such guesses
// have not led there (`guesses` counts them), every second one is the middle.
inline int64_t between(const Count& under, const Count& over, int64_t wanted, int& guesses) {
  int64_t width = over.bits - under.bits, step = width / 2;
  if (width <= int64_t{1} << 24 && (guesses++ < 5 || guesses % 2 == 0)) {
    double inside = static_cast<double>(under.above - over.above), below = static_cast<double>(under.above - wanted);
    step = static_cast<int64_t>((below + 0.5) / (inside + 1) * static_cast<double>(width));
  }
  return under.bits + std::clamp<int64_t>(step, 1, std::max<int64_t>(1, width - 1));
}

// Keeps exactly keep[s] scores in segment s, ties to the lowest index. `expected`, empty at first, is what a row of
// selections passes from one to the next: it makes them faster and changes nothing else.
void selectTop(ThreadPool& pool, const PruningKernels& kernels, const float* scores, int64_t columns,
               const Counts& rowEnds, const Counts& keep, const SelectionLoops& loops,
               std::vector<Expected>* expected = nullptr);

// Calls piece(begin, n) for [begin, end) in pieces of at most `size`.
template <typename Piece>
void forPieces(int64_t begin, int64_t end, int64_t size, const Piece& piece) {
  for (int64_t at = begin; at < end; at += size) piece(at, std::min(size, end - at));
}

// Elements of a piece that holds whole groups.
constexpr int64_t pieceOfGroups(int64_t group) { return std::max<int64_t>(1, pieceSize / group) * group; }

// Runs piece(begin, n) over all `size` elements on the pool, in pieces that hold whole groups.
template <typename Piece>
void forGroups(ThreadPool& pool, int64_t size, int64_t group, const Piece& piece) {
  int64_t step = pieceOfGroups(group);
  pool.ranges(size, std::max<int64_t>(1, tileSize / step) * step,
              [&](int64_t begin, int64_t end) { forPieces(begin, end, step, piece); });
}

}  // namespace alps
