// Purpose: top-k of each row by histograms in shared memory; the row is read once where it fits the block's registers.
#include "cuda/project_rows.h"
#include "cuda/quads.h"
#include "cuda/search.h"

namespace alps {

namespace {

// ---- kernels --------------------------------------------------------------------------------------------------------

constexpr int rounds = 4;               // quads of a row that a thread holds
constexpr int64_t smallestBlock = 128;  // threads
constexpr int64_t largestBlock = 1024;

__device__ void storeKept(uint8_t* mask, bool alignedMask, int64_t at, Range range, uint32_t kept) {
  if (alignedMask && at >= range.begin && at + 4 <= range.end)
    storeMask4<true>(mask, at, range, kept);
  else
    storeMask4<false>(mask, at, range, kept);
}

// One block a row. held: the row has at most blockDim.x * rounds quads.
template <bool held>
__global__ void __launch_bounds__(largestBlock)
    rowsKernel(const float* scores, bool aligned, uint8_t* mask, bool alignedMask, int64_t columns, int64_t keep) {
  SHARED(uint32_t, histogram, bins);
  int64_t begin = blockIdx.x * columns;
  Range range{begin, begin + columns};
  BlockSearch<held, rounds> search({scores, range, aligned}, histogram);
  Threshold threshold = keep == 0 ? keepNone() : keepAll();
  if (keep > 0 && keep < columns) threshold = search.find(static_cast<Count>(keep));
  search.forRounds([&](const uint32_t(&bits)[4], int64_t at) {
    uint32_t kept = 0;
    for (int j = 0; j < 4; j++) kept |= (threshold.keeps(bits[j], at + j) ? 1u : 0u) << j;
    storeKept(mask, alignedMask, at, range, kept);
    return false;
  });
}

}  // namespace

// ---- launchers ------------------------------------------------------------------------------------------------------

void maskRows(Queue queue, const float* scores, uint8_t* mask, int64_t rows, int64_t columns, int64_t keep) {
  if (columns == 0) return;
  bool aligned = holdsQuads(scores), alignedMask = holdsQuads(mask);
  int64_t threads = smallestBlock, needed = columns + 3;  // a row may begin inside a quad
  while (threads < largestBlock && threads * rounds * 4 < needed) threads *= 2;
  auto kernel = threads * rounds * 4 >= needed ? rowsKernel<true> : rowsKernel<false>;
  launch(queue, kernel, {rows}, static_cast<int>(threads), 0, scores, aligned, mask, alignedMask, columns, keep);
}

}  // namespace alps
