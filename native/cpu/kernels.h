// The hand-written loops, compiled once for each instruction set (cpu/kernels/*.inl) and chosen at run time.
// They work on plain pointers and lengths, on one thread; parallelism, shapes and dtypes are their callers' business.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/tensor.h"
#include "cpu/kernels_factor.h"
#include "cpu/kernels_int8.h"
#include "cpu/kernels_products.h"
#include "cpu/kernels_pruning.h"
#include "cpu/kernels_transformer.h"

namespace alps {

struct Kernels {
  const char* isa;  // "avx512bf16", "avx512", "avx2" or "scalar"

  // ---- kernels/elementwise.inl
  void (*f32FromBf16)(const bf16_t* from, float* out, size_t n);
  void (*bf16FromF32)(const float* from, bf16_t* out, size_t n);
  void (*f32FromF16)(const f16_t* from, float* out, size_t n);
  void (*f16FromF32)(const float* from, f16_t* out, size_t n);
  void (*axpby)(const float* x, float* y, float alpha, float beta, size_t n);
  void (*addVector)(const float* x, float* y, size_t n);                                // y += x
  void (*scale)(const float* a, float row, const float* column, float* out, size_t n);  // column may be null
  void (*applyMask)(float* x, const uint8_t* mask, size_t n);
  void (*nonZeroMask)(const float* x, uint8_t* mask, size_t n);
  size_t (*countNonFiniteF32)(const float* x, size_t n);
  size_t (*countNonFinite16)(const uint16_t* x, uint16_t exponentMask, size_t n);
  double (*dot)(const float* a, const float* b, size_t n);  // sums in double
  // sums[j] += Σᵢ x[i, j], or of its square, for rows `n` apart, over few of them.
  void (*columnSums)(const float* x, size_t rows, size_t n, double* sums);
  void (*columnSums16)(const bf16_t* x, size_t rows, size_t n, double* sums);
  void (*columnSquares)(const float* x, size_t rows, size_t n, double* sums);
  void (*columnSquares16)(const bf16_t* x, size_t rows, size_t n, double* sums);
  // Of x − y, rounded.
  void (*differenceSquares16)(const bf16_t* x, const bf16_t* y, size_t rows, size_t n, double* sums);

  FactorKernels factor;
  PruningKernels pruning;
  TransformerKernels transformer;
};

// The best set that this machine has and `isa` allows (empty: any). Fails with NO_DEVICE when the machine lacks `isa`.
const Kernels& chooseKernels(const std::string& isa);

// Whether a set's processor multiplies bfloat16.
bool hasBf16Products(const Kernels& kernels);

// The loops of bfloat16 products, null where oneDNN's are the better ones: without instructions for them, and with
// tiles (AMX). Where the scalar set was asked for, its own, so that they are tested on any machine.
const ProductKernels* chooseProducts(const std::string& asked, const Kernels& kernels);

// The loops of products of 8-bit integers, null where they would not be faster than those of bfloat16: without
// instructions for them, and with tiles for bfloat16. The scalar set has its own, for tests.
const Int8Kernels* chooseInt8(const std::string& asked, const Kernels& kernels);

}  // namespace alps
