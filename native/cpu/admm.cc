// ADMM in Douglas-Rachford form: everything of an iteration but the product, bound by memory. The loops run piece by
// piece (select.h), so that a piece is read from memory once a pass and its later loops find it in cache.
#include <algorithm>
#include <cstring>

#include "core/stream.h"
#include "cpu/cpu_backend.h"
#include "cpu/select.h"

namespace alps {

namespace {

// y[begin ..) from the same range of the others, in y's dtype.
void writeY(const PruningKernels& kernels, const Tensor& base, const Tensor& state, const Tensor& mask, const Tensor& y,
            int64_t begin, int64_t n) {
  const float* b = base.as() + begin;
  const float* s = state.as() + begin;
  const uint8_t* m = mask.as<uint8_t>() + begin;
  if (y.dtype == DType::f32)
    kernels.admmY(b, s, m, y.as() + begin, static_cast<size_t>(n));
  else
    kernels.admmY16(b, s, m, y.as<bf16_t>() + begin, static_cast<size_t>(n));
}

}  // namespace

void CpuBackend::admmStart(Tensor base, Tensor mask, Tensor state, Tensor y) {
  forGroups(pool_, base.size(), 1, [&](int64_t at, int64_t n) {
    std::copy_n(base.as() + at, n, state.as() + at);
    kernels_.applyMask(state.as() + at, mask.as<uint8_t>() + at, static_cast<size_t>(n));
    writeY(kernels_.pruning, base, state, mask, y, at, n);
  });
}

void CpuBackend::admmUpdate(Tensor b, Tensor base, Tensor state, Tensor mask, Tensor y, double relaxation,
                            Pattern pattern, Counts rowEnds, Counts keep) {
  admmPass(b, base, state, mask, y, relaxation, pattern, rowEnds, keep, true, nullptr);
}

// storeB: whether b := B. expected: what one pass tells the next (select.h).
void CpuBackend::admmPass(Tensor b, Tensor base, Tensor state, Tensor mask, Tensor y, double relaxation,
                          Pattern pattern, Counts rowEnds, Counts keep, bool storeB, std::vector<Expected>* expected) {
  const PruningKernels& kernels = kernels_.pruning;
  const float omega = static_cast<float>(relaxation);
  auto stateOf = [&](float* out, int64_t at, int64_t n) {
    kernels.admmState(b.as() + at, base.as() + at, out, mask.as<uint8_t>() + at, omega, static_cast<size_t>(n));
  };
  auto makeState = [&](int64_t at, int64_t n) {
    stateOf(state.as() + at, at, n);
    if (storeB) kernels_.addVector(base.as() + at, b.as() + at, static_cast<size_t>(n));
  };
  if (pattern.group > 0) {
    forGroups(pool_, base.size(), pattern.group, [&](int64_t at, int64_t n) {
      makeState(at, n);
      kernels.groupMask(state.as() + at, mask.as<uint8_t>() + at, static_cast<size_t>(n), pattern.kept, pattern.group);
      writeY(kernels, base, state, mask, y, at, n);
    });
    return;
  }
  SelectionLoops loops;
  loops.sample = [&](int64_t at, int64_t n, float* out) {  // the new state, with b and the state left as they are
    std::copy_n(state.as() + at, n, out);
    stateOf(out, at, n);
  };
  loops.make = makeState;
  loops.use = [&](int64_t at, int64_t n, int32_t above) {
    kernels.maskAbove(state.as() + at, mask.as<uint8_t>() + at, above, static_cast<size_t>(n));
    writeY(kernels, base, state, mask, y, at, n);
  };
  selectTop(pool_, kernels, state.as(), base.columns(), rowEnds, keep, loops, expected);
}

void CpuBackend::admmIterate(Tensor op, Tensor base, Tensor b, Tensor state, Tensor mask, Tensor y, double relaxation,
                             Pattern pattern, Counts rowEnds, Counts keep, int64_t count) {
  std::vector<Expected> expected;
  int64_t rows = y.dim(0), n = y.dim(1);
  bool packed = count > 1 && packsWhole(y);
  if (packed) packColumns(op.as<bf16_t>(), nullptr, n, n, n, rightPairs_);
  for (int64_t i = 0; i < count; i++) {
    throwIfCancelled();
    if (packed)
      pairTiles(leftFactor(y, false, 0, rows, 0, n), rows, n, n, {b.as(), nullptr, n, 1, 0});
    else
      gemm(y, op, b, false, false, 1, 0);
    admmPass(b, base, state, mask, y, relaxation, pattern, rowEnds, keep, i + 1 == count, &expected);
  }
  dropLarge(leftPairs_), dropLarge(rightPairs_);
}

void CpuBackend::admmIterateInt8(Tensor op, Tensor base, Tensor b, Tensor state, Tensor mask, Tensor y,
                                 double relaxation, Pattern pattern, Counts rowEnds, Counts keep, int64_t count) {
  if (!goesByInt8(y)) return admmIterate(op, base, b, state, mask, y, relaxation, pattern, rowEnds, keep, count);
  if (count == 0) return;
  if (y.dim(1) > stripeColumns) {
    std::vector<Expected> expected;
    for (int64_t i = 0; i < count; i++) {
      throwIfCancelled();
      int8Product(y, op, b, i > 0);
      admmPass(b, base, state, mask, y, relaxation, pattern, rowEnds, keep, i + 1 == count, &expected);
    }
  } else {
    admmStripes(op, base, b, state, mask, y, static_cast<float>(relaxation), pattern, rowEnds, keep, count);
  }
  dropLarge(leftPairs_), dropLarge(rightPairs_);
}

// Stripes of rows: Y is made, rounded and multiplied where the state it comes from lies, and the sums of the product
// become the new state in registers. Neither Y nor B goes to memory but at the end.
void CpuBackend::admmStripes(const Tensor& op, const Tensor& base, const Tensor& b, const Tensor& state,
                             const Tensor& mask, const Tensor& y, float relaxation, Pattern pattern,
                             const Counts& rowEnds, const Counts& keep, int64_t count) {
  const PruningKernels& kernels = kernels_.pruning;
  int64_t m = y.dim(0), n = y.dim(1), height = stripeRows(m);
  packInt8(op, 0, n);
  auto makeState = [&](int64_t begin, int64_t end, bool isLast) {
    QuadUpdate out{
        state.as() + begin, isLast ? b.as() + begin : nullptr, base.as() + begin, mask.as<uint8_t>() + begin, n,
        relaxation};
    updateStripe((end - begin) / n, n, out);
  };
  if (pattern.group > 0) {  // a row's mask needs no other row
    pool_.ranges(m, height, [&](int64_t first, int64_t last) {
      for (int64_t i = 0; i < count; i++) {
        throwIfCancelled();
        bool isLast = i + 1 == count;
        makeState(first * n, last * n, isLast);
        forPieces(first * n, last * n, pieceOfGroups(pattern.group), [&](int64_t at, int64_t length) {
          kernels.groupMask(state.as() + at, mask.as<uint8_t>() + at, static_cast<size_t>(length), pattern.kept,
                            pattern.group);
          if (isLast) writeY(kernels, base, state, mask, y, at, length);
        });
      }
    });
    return;
  }
  std::vector<Expected> expected;
  SelectionLoops loops;
  loops.tile = height * n;
  loops.sample = [&](int64_t at, int64_t length, float* out) { std::copy_n(state.as() + at, length, out); };
  for (int64_t i = 0; i < count; i++) {
    throwIfCancelled();
    bool isLast = i + 1 == count;
    loops.makeTile = [&](int64_t begin, int64_t end) { makeState(begin, end, isLast); };
    loops.use = [&](int64_t at, int64_t length, int32_t above) {
      kernels.maskAbove(state.as() + at, mask.as<uint8_t>() + at, above, static_cast<size_t>(length));
      if (isLast) writeY(kernels, base, state, mask, y, at, length);
    };
    selectTop(pool_, kernels, state.as(), n, rowEnds, keep, loops, &expected);
  }
}

void CpuBackend::admmRescale(Tensor base, Tensor state, Tensor mask, Tensor y, double factor) {
  forGroups(pool_, base.size(), 1, [&](int64_t at, int64_t n) {
    kernels_.pruning.scaleOffMask(state.as() + at, mask.as<uint8_t>() + at, static_cast<float>(factor),
                                  static_cast<size_t>(n));
    writeY(kernels_.pruning, base, state, mask, y, at, n);
  });
}

}  // namespace alps
