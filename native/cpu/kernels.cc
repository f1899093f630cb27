#include "cpu/kernels.h"

#include "core/error.h"
#include "cpu/sgemm.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace alps {

namespace scalar {
extern const Kernels table;
extern const ProductKernels products;
}  // namespace scalar
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512bf16 {
extern const ProductKernels products;
}

namespace {
// __builtin_cpu_supports() of Clang does not know it.
bool hasF16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
}  // namespace
#endif

const Kernels& chooseKernels(const std::string& isa) {
  require(isa.empty() || isa == "avx512" || isa == "avx2" || isa == "scalar",
          "Expected avx512, avx2 or scalar for isa but received ", isa);
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool hasAvx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && hasF16c();
  bool hasAvx512 = hasAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if ((isa == "avx512" && !hasAvx512) || (isa == "avx2" && !hasAvx2)) fail("NO_DEVICE", "This processor has no ", isa);
  if (hasAvx512 && (isa.empty() || isa == "avx512")) return avx512::table;
  if (hasAvx2 && isa != "scalar") return avx2::table;
#else
  if (isa == "avx512" || isa == "avx2") fail("NO_DEVICE", "This processor has no ", isa);
#endif
  return scalar::table;
}

bool machineHasBf16Products() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

const ProductKernels* chooseProducts(const std::string& asked, [[maybe_unused]] const Kernels& kernels) {
  if (asked == "scalar") return &scalar::products;
#if defined(__x86_64__)
  if (std::string(kernels.isa) == "avx512" && machineHasBf16Products() && !multipliesTiles())
    return &avx512bf16::products;
#endif
  return nullptr;
}

}  // namespace alps
