#define ALPS_ISA avx2
#include "cpu/kernels/all.inl"
