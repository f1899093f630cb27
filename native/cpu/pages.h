// Zeroed memory straight from the system, and a few freed blocks kept for the next tensors of their size.
#pragma once
#include <cstddef>
#include <mutex>
#include <vector>

namespace alps {

class PagePool {
 public:
#if defined(ALPS_SANITIZED) || defined(__SANITIZE_ADDRESS__)
  static constexpr size_t usualMostKept = 0;  // a use after free is seen
#else
  static constexpr size_t usualMostKept = 16u << 20;
#endif
  // mostKept: bytes of freed blocks that are kept, of at most a quarter of it each.
  explicit PagePool(size_t mostKept = usualMostKept);
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;
  ~PagePool();

  // Zeroed, aligned to a page. Null when the system refuses.
  void* take(size_t bytes);
  void give(void* data, size_t bytes);
  size_t keptBytes() {
    std::lock_guard lock(mutex_);
    return keptBytes_;
  }

 private:
  struct Block {
    void* data;
    size_t reserved;
  };
  void dropOldest();

  const size_t mostKept_;
  std::mutex mutex_;
  std::vector<Block> kept_;  // the oldest first; reserved, so that giving a block back needs no memory
  size_t keptBytes_ = 0;
};

}  // namespace alps
