#define ALPS_ISA scalar
#include "cpu/kernels/all.inl"
