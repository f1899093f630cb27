// Vectors of numbers from the start of a line of the cache on: what is loaded and stored 64 bytes at a time never
// crosses one.
#pragma once
#include <cstddef>
#include <new>
#include <vector>

namespace alps {

template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t line{64};

  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), line)); }
  void deallocate(T* at, size_t) { ::operator delete(at, line); }
  bool operator==(const LineAllocator&) const { return true; }
};

template <typename T>
using Lines = std::vector<T, LineAllocator<T>>;

}  // namespace alps
