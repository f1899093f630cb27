#include "cpu/kernels.h"

#include <vector>

#include "core/error.h"
#include "cpu/sgemm.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace alps {

namespace scalar {
extern const Kernels table;
extern const ProductKernels products;
extern const Int8Kernels int8Products;
}  // namespace scalar
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512bf16 {
extern const Kernels table;
extern const ProductKernels products;
}  // namespace avx512bf16
namespace avx512vnni {
extern const Int8Kernels products;
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
  std::vector<const Kernels*> sets = {&scalar::table};  // the machine's, ascending
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && hasF16c()) {
    sets.push_back(&avx2::table);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      sets.push_back(&avx512::table);
      if (__builtin_cpu_supports("avx512bf16")) sets.push_back(&avx512bf16::table);
    }
  }
#endif
  if (isa.empty()) return *sets.back();
  for (const Kernels* set : sets)
    if (set->isa == isa) return *set;
  require(isa == "avx512bf16" || isa == "avx512" || isa == "avx2",
          "Expected avx512bf16, avx512, avx2 or scalar for isa but received ", isa);
  fail("NO_DEVICE", "This processor has no ", isa);
}

bool hasBf16Products(const Kernels& kernels) { return kernels.isa == std::string("avx512bf16"); }

const ProductKernels* chooseProducts(const std::string& asked, [[maybe_unused]] const Kernels& kernels) {
  if (asked == "scalar") return &scalar::products;
#if defined(__x86_64__)
  if (hasBf16Products(kernels) && !multipliesTiles()) return &avx512bf16::products;
#endif
  return nullptr;
}

const Int8Kernels* chooseInt8(const std::string& asked, [[maybe_unused]] const Kernels& kernels) {
  if (asked == "scalar") return &scalar::int8Products;
#if defined(__x86_64__)
  bool has512 = kernels.isa == std::string("avx512") || hasBf16Products(kernels);
  if (has512 && __builtin_cpu_supports("avx512vnni") && !multipliesTiles()) return &avx512vnni::products;
#endif
  return nullptr;
}

}  // namespace alps
