// A tensor: dtype and shape over memory that a device owns. Row-major and contiguous, always.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"

namespace alps {

enum class DType : uint8_t { f32, bf16, f16, f64, u32, u8 };

inline size_t sizeOf(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 8;
    case DType::f32:
    case DType::u32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

inline const char* nameOf(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "float64";
    case DType::f32:
      return "float32";
    case DType::u32:
      return "uint32";
    case DType::bf16:
      return "bfloat16";
    case DType::f16:
      return "float16";
    case DType::u8:
      return "uint8";
  }
  return "?";
}

inline DType parseDType(const std::string& name) {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::u32, DType::u8})
    if (name == nameOf(dtype)) return dtype;
  fail("INVALID_ARGUMENT", "Expected a dtype (float32, bfloat16, float16, float64, uint32, uint8) but received ", name);
}

// bfloat16 and float16 are carried as raw bits; the type keeps them apart from integers.
struct bf16_t {
  uint16_t bits;
};
struct f16_t {
  uint16_t bits;
};

// One allocation of a device. Freed, and its bytes given back to the device's account, by the destructor.
class Storage {
 public:
  virtual ~Storage() = default;
  virtual void* data() = 0;
  virtual size_t bytes() const = 0;
};

struct Tensor {
  std::shared_ptr<Storage> storage;
  size_t byteOffset = 0;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;

  bool defined() const { return storage != nullptr; }
  int rank() const { return static_cast<int>(shape.size()); }
  int64_t dim(int i) const { return shape[i]; }
  int64_t size() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
  // A tensor read as a matrix: every leading dimension is rows, the last one is columns.
  int64_t columns() const { return shape.empty() ? 1 : shape.back(); }
  int64_t rows() const { return columns() == 0 ? 0 : size() / columns(); }
  // The last two dimensions are a matrix; how many of them there are.
  int64_t matrices() const {
    int64_t n = 1;
    for (int i = 0; i + 2 < rank(); i++) n *= dim(i);
    return n;
  }
  size_t bytes() const { return static_cast<size_t>(size()) * sizeOf(dtype); }
  template <typename T = float>
  T* as() const {
    return reinterpret_cast<T*>(static_cast<char*>(storage->data()) + byteOffset);
  }
};

std::string describe(const Tensor& tensor);  // "float32 [3, 4]"

}  // namespace alps
