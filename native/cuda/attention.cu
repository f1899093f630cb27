// Purpose: causal attention with grouped queries by blocks of queries and keys (the online softmax of FlashAttention);
// bound by arithmetic. The kernels are in attention_bf16.cu and attention_f32.cu.
#include <algorithm>

#include "cuda/attention.h"
#include "cuda/cuda_backend.h"

namespace alps {

void CudaBackend::attention(Tensor q, Tensor k, Tensor v, Tensor out, int64_t headDim, int64_t sequence, double scale,
                            int64_t window, double softCap) {
  if (q.size() == 0) return;
  int64_t heads = q.columns() / headDim, kvHeads = k.columns() / headDim, group = heads / kvHeads;
  size_t headBytes = static_cast<size_t>(headDim) * sizeOf(q.dtype);
  AttentionProblem problem;
  problem.q = q.as<void>(), problem.k = k.as<void>(), problem.v = v.as<void>(), problem.out = out.as<void>();
  problem.queryStride = q.columns(), problem.keyStride = k.columns();
  int64_t parts = q.rows() / sequence * heads;
  // Half the cache: the sections before and after have blocks under way too.
  size_t keyBytes = 2 * headBytes * static_cast<size_t>(sequence);
  int64_t section = std::max<int64_t>(1, static_cast<int64_t>(runtime_->properties().l2 / 2 / keyBytes)) * group;
  problem.parts = static_cast<uint32_t>(parts), problem.section = static_cast<uint32_t>(std::min(parts, section));
  problem.headDim = static_cast<int>(headDim), problem.heads = static_cast<int>(heads);
  problem.group = static_cast<int>(group), problem.sequence = static_cast<int>(sequence);
  problem.window = window < sequence ? static_cast<int>(window) : 0;
  problem.scale = static_cast<float>(scale), problem.softCap = static_cast<float>(softCap);
  problem.aligned = headBytes % 16 == 0;
  for (const void* data : {problem.q, problem.k, problem.v, static_cast<const void*>(problem.out)})
    problem.aligned &= reinterpret_cast<uintptr_t>(data) % 16 == 0;
  if (q.dtype == DType::f32) return attentionInFloat32<float>(queue(), problem);
  if (headDim > 256) return attentionInFloat32<bf16_t>(queue(), problem);
  attentionOnTensorCores(queue(), problem);
}

}  // namespace alps
