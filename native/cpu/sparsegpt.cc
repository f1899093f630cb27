// SparseGPT's sweep (Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
// ICML 2023, algorithm 1). In a block of columns some rows at a time are swept side by side, turned, while they are in
// cache; what the block leaves to the columns after it is one product.
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/stream.h"
#include "cpu/cpu_backend.h"
#include "cpu/lines.h"
#include "cpu/select.h"

namespace alps {

namespace {

// Of the product behind a block.
constexpr int64_t columnsPerTile = 10 * panelColumns;

// Weights of a segment that stay in the columns before `column`; the whole is exact.
uint64_t shareBefore(uint64_t keep, int64_t column, int64_t columns) {
  return static_cast<uint64_t>(
      std::llround(static_cast<double>(keep) * static_cast<double>(column) / static_cast<double>(columns)));
}

// A block of columns for all rows; the rows stand in tiles of sweepRows.
struct Block {
  int64_t width;
  std::vector<float> upper;   // the block's rows of Lᵀ, [width, width]
  std::vector<float> pivots;  // their diagonal
  std::vector<float> scores;  // weight / pivot, whose square is what losing it costs, [m, width]
  std::vector<uint8_t> kept;  // their mask
  Lines<float> errors;        // what each pruned weight leaves, [width, sweepRows] for each tile
};

// The weights of a tile while it is swept, and what its groups take.
struct Tile {
  Lines<float> weights, scores;  // [width, sweepRows]
  std::vector<float> turned;
  std::vector<uint8_t> kept;
};

// The mask of a group of columns from `first` on, by the weights as they are by then.
void chooseGroup(const Kernels& kernels, Block& block, Tile& tile, int64_t row, int64_t rows, int64_t first,
                 Pattern pattern) {
  int64_t group = pattern.group;
  size_t size = static_cast<size_t>(group * sweepRows);
  tile.scores.resize(size);
  tile.turned.resize(size);
  tile.kept.resize(size);
  for (int64_t j = 0; j < group; j++) {
    const float* from = tile.weights.data() + (first + j) * sweepRows;
    float *to = tile.scores.data() + j * sweepRows, pivot = block.pivots[static_cast<size_t>(first + j)];
    for (int64_t r = 0; r < sweepRows; r++) to[r] = from[r] / pivot;
  }
  kernels.factor.turn(tile.scores.data(), sweepRows, group, rows, tile.turned.data(), group, false);
  kernels.pruning.groupMask(tile.turned.data(), tile.kept.data(), static_cast<size_t>(rows * group), pattern.kept,
                            group);
  for (int64_t r = 0; r < rows; r++)
    std::copy_n(tile.kept.data() + r * group, group, block.kept.data() + (row + r) * block.width + first);
}

// Rows [row, row + rows) of a block, at w, rows of n.
void sweepTile(const Kernels& kernels, Block& block, float* w, int64_t n, int64_t row, int64_t rows, Pattern pattern) {
  thread_local Tile tile;
  int64_t width = block.width;
  tile.weights.resize(static_cast<size_t>(width * sweepRows));
  kernels.factor.turn(w, n, rows, width, tile.weights.data(), sweepRows, false);
  uint32_t pruned[sweepColumns * sweepRows] = {};
  for (int64_t i = 0, columns; i < width; i += columns) {
    columns = std::min(sweepColumns, width - i);
    if (pattern.group > 0) {
      if (i % pattern.group == 0) chooseGroup(kernels, block, tile, row, rows, i, pattern);
      columns = std::min(columns, pattern.group - i % pattern.group);
    }
    for (int64_t r = 0; r < rows; r++)
      for (int64_t j = 0; j < columns; j++)
        pruned[j * sweepRows + r] = block.kept[static_cast<size_t>((row + r) * width + i + j)] ? 0 : UINT32_MAX;
    kernels.pruning.sweep(tile.weights.data() + i * sweepRows, pruned, block.upper.data() + i * (width + 1),
                          static_cast<size_t>(width), static_cast<size_t>(columns), static_cast<size_t>(width - i),
                          block.errors.data() + (row * width + i * sweepRows));
  }
  kernels.factor.turn(tile.weights.data(), sweepRows, width, rows, w, n, false);
}

}  // namespace

void CpuBackend::sparseGpt(Tensor weight, Tensor factor, Tensor mask, Pattern pattern, Counts rowEnds, Counts keep,
                           int64_t blockSize) {
  int64_t m = weight.dim(0), n = weight.dim(1);
  if (m == 0 || n == 0) return;
  float* w = weight.as();
  const float* l = factor.as();
  blockSize = std::min(blockSize, n);
  Block block;
  block.upper.resize(static_cast<size_t>(blockSize * blockSize));
  block.pivots.resize(static_cast<size_t>(blockSize));
  block.scores.resize(pattern.group == 0 ? static_cast<size_t>(m * blockSize) : 0);
  block.kept.resize(static_cast<size_t>(m * blockSize));
  block.errors.resize(static_cast<size_t>((m + sweepRows - 1) / sweepRows * sweepRows * blockSize));
  Lines<float> panels(
      static_cast<size_t>((n - blockSize + panelColumns - 1) / panelColumns * panelColumns * blockSize));
  for (int64_t start = 0; start < n; start += blockSize) {
    throwIfCancelled();
    int64_t width = block.width = std::min(blockSize, n - start), end = start + width;
    for (int64_t i = 0; i < width; i++) {
      for (int64_t j = 0; j < width; j++)
        block.upper[static_cast<size_t>(i * width + j)] = j >= i ? l[(start + j) * n + start + i] : 0.0f;
      block.pivots[static_cast<size_t>(i)] = block.upper[static_cast<size_t>(i * width + i)];
    }
    float* scores = block.scores.data();
    if (pattern.group == 0) {
      pool_.ranges(m, sweepRows, [&](int64_t begin, int64_t last) {
        for (int64_t r = begin; r < last; r++)
          kernels_.pruning.ratios(w + r * n + start, block.pivots.data(), scores + r * width,
                                  static_cast<size_t>(width));
      });
      Counts budget;
      for (uint64_t k : keep) budget.push_back(shareBefore(k, end, n) - shareBefore(k, start, n));
      SelectionLoops loops;
      loops.sample = [&](int64_t at, int64_t count, float* out) { std::copy_n(scores + at, count, out); };
      loops.use = [&](int64_t at, int64_t count, int32_t above) {
        kernels_.pruning.maskAbove(scores + at, block.kept.data() + at, above, static_cast<size_t>(count));
      };
      selectTop(pool_, kernels_.pruning, scores, width, rowEnds, budget, loops);
    }
    pool_.ranges(m, sweepRows, [&](int64_t begin, int64_t last) {
      sweepTile(kernels_, block, w + begin * n + start, n, begin, last - begin, pattern);
      for (int64_t r = begin; r < last; r++)
        std::copy_n(block.kept.data() + r * width, width, mask.as<uint8_t>() + r * n + start);
    });
    // The columns after the block: W −= errors · Lᵀ[block, after].
    auto panel = [&](int64_t column) { return panels.data() + (column - end) * width; };
    pool_.ranges(n - end, panelColumns, [&](int64_t from, int64_t to) {
      kernels_.factor.turn(l + (end + from) * n + start, n, to - from, width, panel(end + from), panelColumns, false);
    });
    int64_t across = (n - end + columnsPerTile - 1) / columnsPerTile, down = (m + sweepRows - 1) / sweepRows;
    pool_.run(across * down, [&](int64_t task) {
      int64_t tile = end + task / down * columnsPerTile, r = task % down * sweepRows;
      for (int64_t column = tile; column < std::min(n, tile + columnsPerTile); column += panelColumns)
        kernels_.factor.product(std::min(sweepRows, m - r), std::min(panelColumns, n - column), width,
                                block.errors.data() + r * width, 1, sweepRows, panel(column), -1, true,
                                w + r * n + column, n);
    });
  }
}

}  // namespace alps
