// Loops of the projection, the ADMM pass and the conjugate gradient; see cpu/kernels.h.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace alps {

struct PruningKernels {};

}  // namespace alps
