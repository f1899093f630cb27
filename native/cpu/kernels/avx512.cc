#define ALPS_ISA avx512
#include "cpu/kernels/all.inl"
