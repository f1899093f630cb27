// Loops of the decoder's forward pass; see cpu/kernels.h.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace alps {

struct TransformerKernels {};

}  // namespace alps
