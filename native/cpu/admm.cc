#include "cpu/cpu_backend.h"

namespace alps {
void CpuBackend::admmStart(Tensor, Tensor, Tensor, Tensor) {}
void CpuBackend::admmUpdate(Tensor, Tensor, Tensor, Tensor, Tensor, Pattern, Counts, Counts) {}
void CpuBackend::admmRescale(Tensor, Tensor, Tensor, Tensor, double) {}
}  // namespace alps
