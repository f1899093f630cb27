#include "cpu/cpu_backend.h"

namespace alps {
void CpuBackend::cgStart(Tensor, Tensor, Tensor, Tensor, Tensor) {}
void CpuBackend::cgStep(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, double, Tensor) {}
}  // namespace alps
