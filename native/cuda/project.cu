// Purpose: the projection of scores to a mask, unstructured or N:M, and the size of a mask's changes.
#include "cuda/cuda_backend.h"
#include "cuda/groups.h"
#include "cuda/project_rows.h"
#include "cuda/reduce.h"
#include "cuda/select.h"

namespace alps {

namespace {

// ---- kernels --------------------------------------------------------------------------------------------------------

// Scores that are there already: 4 bytes an element are read, twice when a selection needs two passes, and 1 written.
struct ProjectPass {
  const float* scores;
  uint8_t* mask;
  bool aligned;

  static constexpr bool makes = false;
  struct Quad {
    float score[4];
  };
  using Raw = Quad;

  template <bool whole>
  __device__ void sample(int64_t at, Range range, float (&score)[4]) const {
    load4<whole>(scores, at, range, score);
  }
  template <bool whole>
  __device__ Raw read(int64_t at, Range range) const {
    Quad quad;
    load4<whole>(scores, at, range, quad.score);
    return quad;
  }
  template <bool whole>
  __device__ Quad make(const Raw& raw, int64_t, Range) const {
    return raw;
  }
  template <bool whole>
  __device__ Quad load(int64_t at, Range range) const {
    return read<whole>(at, range);
  }
  template <bool whole>
  __device__ void use(const Quad&, uint32_t kept, int64_t at, Range range) const {
    storeMask4<whole>(mask, at, range, kept);
  }
};

constexpr int changeSegments = 64;  // of one launch
constexpr int changeThreads = 256;

struct ChangeSegments {
  Range ranges[changeSegments];
};

// How many of the four bytes of x are not zero.
__device__ uint32_t nonZeroBytes(uint32_t x) {
  x |= x >> 4;
  x |= x >> 2;
  x |= x >> 1;
  return static_cast<uint32_t>(__popc(x & 0x01010101u));
}

// Grid y: segments. Pieces of 16 bytes from the address before the segment that is a multiple of 16; `offset` is the
// masks' place after one. aligned: it is the same for both. Only what has changed is written.
__global__ void __launch_bounds__(changeThreads)
    changesKernel(const uint8_t* mask, uint8_t* previous, int64_t offset, bool aligned, ChangeSegments segments,
                  uint32_t* counts) {
  Range range = segments.ranges[blockIdx.y];
  uint32_t changes = 0;
  int64_t step = int64_t{gridDim.x} * changeThreads * 16;
  int64_t at = range.begin - (range.begin + offset) % 16 + (int64_t{blockIdx.x} * changeThreads + threadIdx.x) * 16;
#pragma unroll 4
  for (; at < range.end; at += step) {
    if (aligned && at >= range.begin && at + 16 <= range.end) {
      uint4 now = *reinterpret_cast<const uint4*>(mask + at);
      uint4 before = *reinterpret_cast<const uint4*>(previous + at);
      uint32_t differ = nonZeroBytes(now.x ^ before.x) + nonZeroBytes(now.y ^ before.y) +
                        nonZeroBytes(now.z ^ before.z) + nonZeroBytes(now.w ^ before.w);
      if (differ) *reinterpret_cast<uint4*>(previous + at) = now;
      changes += differ;
    } else {
      for (int64_t i = max(at, range.begin); i < min(at + 16, range.end); i++) {
        changes += mask[i] != previous[i];
        previous[i] = mask[i];
      }
    }
  }
  changes = blockSum(changes);
  if (threadIdx.x == 0 && changes) atomicAdd(counts + blockIdx.y, changes);
}

}  // namespace

// ---- launchers ------------------------------------------------------------------------------------------------------

void CudaBackend::project(Tensor scores, Tensor mask, Pattern pattern, Counts rowEnds, Counts keep) {
  if (scores.size() == 0) return;
  ProjectPass pass{scores.as(), mask.as<uint8_t>(), holdsQuads(scores.as()) && holdsQuads(mask.as<uint8_t>())};
  if (pattern.group == 0)
    Selection(*runtime_, scores.columns(), rowEnds, keep).run(pass);
  else if (pattern.group <= largestShuffled)
    maskGroups(queue(), pass, scores.size(), pattern.group, pattern.kept);
  else
    maskRows(queue(), pass.scores, pass.mask, scores.size() / pattern.group, pattern.group, pattern.kept);
}

void CudaBackend::projectRows(Tensor scores, Tensor mask, int64_t keep) {
  maskRows(queue(), scores.as(), mask.as<uint8_t>(), scores.rows(), scores.columns(), keep);
}

void CudaBackend::maskChanges(Tensor mask, Tensor previous, Counts rowEnds, Tensor counts) {
  runtime_->zero(counts.as<void>(), counts.bytes());
  auto offsetOf = [](const Tensor& t) { return static_cast<int64_t>(reinterpret_cast<uintptr_t>(t.as<void>()) % 16); };
  int64_t offset = offsetOf(mask), segments = static_cast<int64_t>(rowEnds.size()), begin = 0;
  for (int64_t first = 0; first < segments; first += changeSegments) {
    ChangeSegments part{};
    int64_t count = std::min<int64_t>(changeSegments, segments - first), longest = 0;
    for (int64_t s = 0; s < count; s++) {
      int64_t end = static_cast<int64_t>(rowEnds[static_cast<size_t>(first + s)]) * mask.columns();
      part.ranges[s] = {begin, end};
      longest = std::max(longest, end - begin);
      begin = end;
    }
    int64_t most = std::max<int64_t>(1, int64_t{runtime_->properties().multiprocessors} * 8 / count);
    int64_t blocks = std::min((longest + 15) / (int64_t{changeThreads} * 16) + 1, most);
    launch(queue(), changesKernel, {blocks, count}, changeThreads, 0, mask.as<uint8_t>(), previous.as<uint8_t>(),
           offset, offset == offsetOf(previous), part, counts.as<uint32_t>() + first);
  }
}

}  // namespace alps
