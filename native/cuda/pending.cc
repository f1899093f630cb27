#include "cuda/cuda_backend.h"
// Ops whose kernels are still to come.
namespace alps {
__attribute__((weak)) void CudaBackend::fill(Tensor, double) { fail("INTERNAL", "no kernel for fill"); }
__attribute__((weak)) void CudaBackend::copy(Tensor, Tensor) { fail("INTERNAL", "no kernel for copy"); }
__attribute__((weak)) void CudaBackend::axpby(Tensor, Tensor, double, double) { fail("INTERNAL", "no kernel for axpby"); }
__attribute__((weak)) void CudaBackend::addBias(Tensor, Tensor) { fail("INTERNAL", "no kernel for addBias"); }
__attribute__((weak)) void CudaBackend::scaleRowsColumns(Tensor, Tensor, Tensor, Tensor) { fail("INTERNAL", "no kernel for scaleRowsColumns"); }
__attribute__((weak)) void CudaBackend::applyMask(Tensor, Tensor) { fail("INTERNAL", "no kernel for applyMask"); }
__attribute__((weak)) void CudaBackend::nonZeroMask(Tensor, Tensor) { fail("INTERNAL", "no kernel for nonZeroMask"); }
__attribute__((weak)) void CudaBackend::countNonFinite(Tensor, Tensor) { fail("INTERNAL", "no kernel for countNonFinite"); }
__attribute__((weak)) void CudaBackend::rowDots(Tensor, Tensor, Tensor) { fail("INTERNAL", "no kernel for rowDots"); }
__attribute__((weak)) void CudaBackend::columnSums(Tensor, Tensor) { fail("INTERNAL", "no kernel for columnSums"); }
__attribute__((weak)) void CudaBackend::transpose(Tensor, Tensor) { fail("INTERNAL", "no kernel for transpose"); }
__attribute__((weak)) void CudaBackend::gemm(Tensor, Tensor, Tensor, bool, bool, double, double) { fail("INTERNAL", "no kernel for gemm"); }
__attribute__((weak)) void CudaBackend::gramAccumulate(Tensor, Tensor) { fail("INTERNAL", "no kernel for gramAccumulate"); }
__attribute__((weak)) void CudaBackend::symmetrize(Tensor) { fail("INTERNAL", "no kernel for symmetrize"); }
__attribute__((weak)) void CudaBackend::addDiagonal(Tensor, double) { fail("INTERNAL", "no kernel for addDiagonal"); }
__attribute__((weak)) void CudaBackend::diagonal(Tensor, Tensor) { fail("INTERNAL", "no kernel for diagonal"); }
__attribute__((weak)) void CudaBackend::cholesky(Tensor) { fail("INTERNAL", "no kernel for cholesky"); }
__attribute__((weak)) void CudaBackend::choleskyInverse(Tensor) { fail("INTERNAL", "no kernel for choleskyInverse"); }
__attribute__((weak)) void CudaBackend::project(Tensor, Tensor, Pattern, Counts, Counts) { fail("INTERNAL", "no kernel for project"); }
__attribute__((weak)) void CudaBackend::projectRows(Tensor, Tensor, int64_t) { fail("INTERNAL", "no kernel for projectRows"); }
__attribute__((weak)) void CudaBackend::maskChanges(Tensor, Tensor, Counts, Tensor) { fail("INTERNAL", "no kernel for maskChanges"); }
__attribute__((weak)) void CudaBackend::admmStart(Tensor, Tensor, Tensor, Tensor) { fail("INTERNAL", "no kernel for admmStart"); }
__attribute__((weak)) void CudaBackend::admmUpdate(Tensor, Tensor, Tensor, Tensor, Tensor, Pattern, Counts, Counts) { fail("INTERNAL", "no kernel for admmUpdate"); }
__attribute__((weak)) void CudaBackend::admmRescale(Tensor, Tensor, Tensor, Tensor, double) { fail("INTERNAL", "no kernel for admmRescale"); }
__attribute__((weak)) void CudaBackend::cgStart(Tensor, Tensor, Tensor, Tensor, Tensor) { fail("INTERNAL", "no kernel for cgStart"); }
__attribute__((weak)) void CudaBackend::cgStep(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, double, Tensor) { fail("INTERNAL", "no kernel for cgStep"); }
__attribute__((weak)) void CudaBackend::backsolve(Tensor, Tensor, Tensor, Tensor) { fail("INTERNAL", "no kernel for backsolve"); }
__attribute__((weak)) void CudaBackend::sparseGpt(Tensor, Tensor, Tensor, Pattern, Counts, Counts, int64_t) { fail("INTERNAL", "no kernel for sparseGpt"); }
__attribute__((weak)) void CudaBackend::dsnot(Tensor, Tensor, Tensor, Tensor, Tensor, Pattern, int64_t, double, bool) { fail("INTERNAL", "no kernel for dsnot"); }
__attribute__((weak)) void CudaBackend::embedding(Tensor, Tensor, Tensor) { fail("INTERNAL", "no kernel for embedding"); }
__attribute__((weak)) void CudaBackend::rmsNorm(Tensor, Tensor, double, double, Tensor) { fail("INTERNAL", "no kernel for rmsNorm"); }
__attribute__((weak)) void CudaBackend::layerNorm(Tensor, Tensor, Tensor, double, Tensor) { fail("INTERNAL", "no kernel for layerNorm"); }
__attribute__((weak)) void CudaBackend::rope(Tensor, Tensor, Tensor, int64_t, int64_t) { fail("INTERNAL", "no kernel for rope"); }
__attribute__((weak)) void CudaBackend::attention(Tensor, Tensor, Tensor, Tensor, int64_t, int64_t, double, int64_t, double) { fail("INTERNAL", "no kernel for attention"); }
__attribute__((weak)) void CudaBackend::gatedActivation(Tensor, Tensor, Tensor, std::string) { fail("INTERNAL", "no kernel for gatedActivation"); }
__attribute__((weak)) void CudaBackend::activate(Tensor, Tensor, std::string) { fail("INTERNAL", "no kernel for activate"); }
__attribute__((weak)) void CudaBackend::softCap(Tensor, double) { fail("INTERNAL", "no kernel for softCap"); }
__attribute__((weak)) void CudaBackend::topExperts(Tensor, Tensor, Tensor, bool) { fail("INTERNAL", "no kernel for topExperts"); }
__attribute__((weak)) void CudaBackend::gatherRows(Tensor, Tensor, Tensor) { fail("INTERNAL", "no kernel for gatherRows"); }
__attribute__((weak)) void CudaBackend::scatterAddRows(Tensor, Tensor, Tensor, Tensor) { fail("INTERNAL", "no kernel for scatterAddRows"); }
__attribute__((weak)) void CudaBackend::addTo(Tensor, Tensor) { fail("INTERNAL", "no kernel for addTo"); }
__attribute__((weak)) void CudaBackend::crossEntropy(Tensor, Tensor, Tensor) { fail("INTERNAL", "no kernel for crossEntropy"); }
}
