#include "cpu/cpu_backend.h"

namespace alps {
void CpuBackend::project(Tensor, Tensor, Pattern, Counts, Counts) {}
void CpuBackend::maskChanges(Tensor, Tensor, Counts, Tensor) {}
}  // namespace alps
