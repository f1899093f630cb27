// Purpose: ADMM in Douglas-Rachford form: everything of an iteration but the product, bound by memory.
#include <optional>

#include "cuda/cuda_backend.h"
#include "cuda/groups.h"
#include "cuda/project_rows.h"
#include "cuda/select.h"

namespace alps {

namespace {

// ---- kernels --------------------------------------------------------------------------------------------------------

// The tensors of an update, and what it does to a quad. An element's first pass reads 13 bytes and writes 8 (4 where B
// is not wanted), its second one reads 8 and writes 1 and Y; N:M patterns need only one, which reads 13 bytes.
template <typename Y>
struct UpdatePass {
  float* b;
  const float* base;
  float* state;
  uint8_t* mask;
  Y* y;
  bool aligned;
  bool storeB;          // else b keeps the product: another one is to follow
  float relaxation;     // ω
  const float* scores;  // state

  static constexpr bool makes = true;
  struct Raw {
    float b[4], base[4], state[4];
    uint32_t mask;
  };
  struct Quad {
    float score[4], base[4];
  };

  template <bool whole>
  __device__ void sample(int64_t at, Range range, float (&score)[4]) const {
    Raw raw = read<whole>(at, range);
    for (int j = 0; j < 4; j++) score[j] = scoreOf(raw, j, raw.base[j] + raw.b[j]);
  }
  __device__ float scoreOf(const Raw& raw, int j, float sum) const {
    // Rounded alike wherever it stands: which of the two products is fused is not left to the compiler.
    return fmaf(relaxation, sum, (raw.mask >> (8 * j) & 0xff ? 1 - relaxation : 1.0f) * raw.state[j]);
  }
  template <bool whole>
  __device__ Raw read(int64_t at, Range range) const {
    Raw raw;
    load4<whole>(b, at, range, raw.b);
    load4<whole>(base, at, range, raw.base);
    load4<whole>(state, at, range, raw.state);
    raw.mask = load4<whole>(mask, at, range);
    return raw;
  }
  template <bool whole>
  __device__ Quad make(const Raw& raw, int64_t at, Range range) const {
    Quad quad;
    float sum[4];
    for (int j = 0; j < 4; j++) {
      sum[j] = raw.base[j] + raw.b[j];
      quad.score[j] = scoreOf(raw, j, sum[j]);
      quad.base[j] = raw.base[j];
    }
    if (storeB) store4<whole>(b, at, range, sum);
    store4<whole>(state, at, range, quad.score);
    return quad;
  }
  template <bool whole>
  __device__ Quad load(int64_t at, Range range) const {
    Quad quad;
    load4<whole>(state, at, range, quad.score);
    load4<whole>(base, at, range, quad.base);
    return quad;
  }
  template <bool whole>
  __device__ void useY(const Quad& quad, uint32_t kept, int64_t at, Range range) const {
    float out[4];
    for (int j = 0; j < 4; j++) out[j] = (kept >> j & 1 ? quad.score[j] : -quad.score[j]) - quad.base[j];
    store4<whole>(y, at, range, out);
  }
  template <bool whole>
  __device__ void use(const Quad& quad, uint32_t kept, int64_t at, Range range) const {
    storeMask4<whole>(mask, at, range, kept);
    useY<whole>(quad, kept, at, range);
  }
};

__device__ uint32_t bitsOf(uint32_t mask) {
  uint32_t bits = 0;
  for (int j = 0; j < 4; j++) bits |= (mask >> (8 * j) & 0xff ? 1u : 0u) << j;
  return bits;
}

// S = ωB + (mask ? (1 − ω)S : S); b := B.
struct MakeState {
  template <bool whole, typename Pass>
  __device__ void operator()(const Pass& pass, int64_t at, Range range) const {
    pass.template make<whole>(pass.template read<whole>(at, range), at, range);
  }
};

// Y from S and the mask.
struct MakeY {
  template <bool whole, typename Pass>
  __device__ void operator()(const Pass& pass, int64_t at, Range range) const {
    uint32_t kept = bitsOf(load4<whole>(pass.mask, at, range));
    pass.template useY<whole>(pass.template load<whole>(at, range), kept, at, range);
  }
};

// S = mask ? B0 : 0; then Y.
struct Start {
  template <bool whole, typename Pass>
  __device__ void operator()(const Pass& pass, int64_t at, Range range) const {
    typename Pass::Quad quad;
    load4<whole>(pass.base, at, range, quad.base);
    uint32_t kept = bitsOf(load4<whole>(pass.mask, at, range));
    for (int j = 0; j < 4; j++) quad.score[j] = kept >> j & 1 ? quad.base[j] : 0.0f;
    store4<whole>(pass.state, at, range, quad.score);
    pass.template useY<whole>(quad, kept, at, range);
  }
};

// S *= factor off the mask; then Y.
struct Rescale {
  float factor;
  template <bool whole, typename Pass>
  __device__ void operator()(const Pass& pass, int64_t at, Range range) const {
    auto quad = pass.template load<whole>(at, range);
    uint32_t kept = bitsOf(load4<whole>(pass.mask, at, range));
    for (int j = 0; j < 4; j++) quad.score[j] *= kept >> j & 1 ? 1.0f : factor;
    store4<whole>(pass.state, at, range, quad.score);
    pass.template useY<whole>(quad, kept, at, range);
  }
};

// Action for every quad.
template <typename Pass, typename Action>
__global__ void quadsKernel(Pass pass, int64_t size, Action action) {
  Range range{0, size};
  int64_t step = int64_t{gridDim.x} * blockDim.x * 4;
  for (int64_t at = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 4; at < size; at += step) {
    if (pass.aligned && at + 4 <= size)
      action.template operator()<true>(pass, at, range);
    else
      action.template operator()<false>(pass, at, range);
  }
}

template <typename Y>
UpdatePass<Y> passOf(float* b, const Tensor& base, const Tensor& state, const Tensor& mask, const Tensor& y) {
  UpdatePass<Y> pass{b, base.as(), state.as(), mask.as<uint8_t>(), y.as<Y>(), false, true, 1, state.as()};
  pass.aligned =
      holdsQuads(b) && holdsQuads(pass.base) && holdsQuads(pass.state) && holdsQuads(pass.mask) && holdsQuads(pass.y);
  return pass;
}

}  // namespace

// ---- launchers ------------------------------------------------------------------------------------------------------

void CudaBackend::admmStart(Tensor base, Tensor mask, Tensor state, Tensor y) {
  dispatch(y.dtype, [&](auto* type) {
    using Y = std::remove_pointer_t<decltype(type)>;
    auto pass = passOf<Y>(nullptr, base, state, mask, y);
    launch(queue(), quadsKernel<decltype(pass), Start>, blocksFor((base.size() + 3) / 4), blockSize_, 0, pass,
           base.size(), Start{});
  });
}

void CudaBackend::admmRescale(Tensor base, Tensor state, Tensor mask, Tensor y, double factor) {
  dispatch(y.dtype, [&](auto* type) {
    using Y = std::remove_pointer_t<decltype(type)>;
    auto pass = passOf<Y>(nullptr, base, state, mask, y);
    launch(queue(), quadsKernel<decltype(pass), Rescale>, blocksFor((base.size() + 3) / 4), blockSize_, 0, pass,
           base.size(), Rescale{static_cast<float>(factor)});
  });
}

// One update; with a selection where the pattern is unstructured.
void CudaBackend::queueUpdate(const Tensor& b, const Tensor& base, const Tensor& state, const Tensor& mask,
                              const Tensor& y, double relaxation, const Pattern& pattern, const Selection* selection,
                              bool storeB) {
  dispatch(y.dtype, [&](auto* type) {
    using Y = std::remove_pointer_t<decltype(type)>;
    auto pass = passOf<Y>(b.as(), base, state, mask, y);
    using Pass = decltype(pass);
    pass.storeB = storeB;
    pass.relaxation = static_cast<float>(relaxation);
    int64_t size = base.size();
    if (selection) return selection->run(pass);
    if (pattern.group <= largestShuffled) return maskGroups(queue(), pass, size, pattern.group, pattern.kept);
    Grid blocks = blocksFor((size + 3) / 4);
    launch(queue(), quadsKernel<Pass, MakeState>, blocks, blockSize_, 0, pass, size, MakeState{});
    maskRows(queue(), pass.state, pass.mask, size / pattern.group, pattern.group, pattern.kept);
    launch(queue(), quadsKernel<Pass, MakeY>, blocks, blockSize_, 0, pass, size, MakeY{});
  });
}

void CudaBackend::admmUpdate(Tensor b, Tensor base, Tensor state, Tensor mask, Tensor y, double relaxation,
                             Pattern pattern, Counts rowEnds, Counts keep) {
  if (base.size() == 0) return;
  std::optional<Selection> selection;
  if (pattern.group == 0) selection.emplace(*runtime_, base.columns(), rowEnds, keep);
  queueUpdate(b, base, state, mask, y, relaxation, pattern, selection ? &*selection : nullptr, true);
}

void CudaBackend::admmIterate(Tensor op, Tensor base, Tensor b, Tensor state, Tensor mask, Tensor y, double relaxation,
                              Pattern pattern, Counts rowEnds, Counts keep, int64_t count) {
  constexpr int64_t fewestRecorded = 6;  // to make a graph takes about as long as to launch so many iterations
  if (base.size() == 0) return;
  std::optional<Selection> selection;
  if (pattern.group == 0) selection.emplace(*runtime_, base.columns(), rowEnds, keep);
  int64_t m = base.dim(0), n = base.dim(1);
  // In float32 the operator is split once, Y in every iteration.
  bool split = y.dtype == DType::f32 && splits(m, n, n);
  auto opMemory = scratch<bf16_t>(split ? splitSize(n * n) : 0),
       yMemory = scratch<bf16_t>(split ? splitSize(m * n) : 0);
  SplitFactor right{};
  if (split) right = splitOf({op.as<void>(), n}, n, n, Side::right, opMemory);
  auto iterate = [&](bool storeB) {
    if (split)
      multiplySplit(*products_, m, n, n, 1, splitOf({y.as<void>(), n}, m, n, Side::left, yMemory), right, 0, b.as(),
                    /* ldc = */ n);
    else
      gemm(y, op, b, false, false, 1, 0);
    queueUpdate(b, base, state, mask, y, relaxation, pattern, selection ? &*selection : nullptr, storeB);
  };
  std::unique_ptr<Graph> graph;
  for (int64_t i = 0; i < count; i++) {
    throwIfCancelled();
    bool last = i + 1 == count;  // only then is B of use
    // The first one has had all kernels loaded, cuBLAS's too: to load one may not be possible during a recording.
    if (i == 1 && count > fewestRecorded) graph = runtime_->record([&] { iterate(false); });
    if (graph && !last)
      graph->launch();
    else
      iterate(last);
  }
}

}  // namespace alps
