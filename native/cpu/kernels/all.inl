// Everything that is compiled once for each instruction set. ALPS_ISA names the set and the function that returns its
// table. Only static functions and plain C types here: an inline function of the standard library compiled with AVX-512
// could be the copy that the linker keeps for the whole addon.
#include "cpu/kernels.h"

namespace alps {
namespace ALPS_ISA {

#include "cpu/kernels/elementwise.inl"
#include "cpu/kernels/factor.inl"
#include "cpu/kernels/pruning.inl"
#include "cpu/kernels/transformer.inl"

#define ALPS_TEXT_(x) #x
#define ALPS_TEXT(x) ALPS_TEXT_(x)

extern const Kernels table;
const Kernels table = {
    ALPS_TEXT(ALPS_ISA),
    f32FromBf16,
    bf16FromF32,
    f32FromF16,
    f16FromF32,
    axpby,
    addVector,
    scale,
    applyMask,
    nonZeroMask,
    countNonFiniteF32,
    countNonFinite16,
    dot,
    columnSums<float>,
    columnSums<bf16_t>,
    columnSquares<float>,
    columnSquares<bf16_t>,
    differenceSquares16,
    factorTable,
    pruningTable,
    transformerTable,
};

}  // namespace ALPS_ISA
}  // namespace alps
