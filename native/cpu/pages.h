// Memory of tensors, straight from the system, and what was freed of it for the next ones.
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "core/backend.h"

namespace alps {

class PagePool {
 public:
#if defined(ALPS_SANITIZED) || defined(__SANITIZE_ADDRESS__)
  static constexpr size_t usualAlways = 0, usualMost = 0;  // a use after free is seen
#else
  static constexpr size_t usualAlways = 16u << 20, usualMost = 256u << 20;
#endif
  // Bytes of freed memory that are kept: `always`, and up to `most` where no more is held with them than was in use at
  // once before (since nothing was). Blocks from 2 MB on count for whole huge pages.
  explicit PagePool(size_t always = usualAlways, size_t most = usualMost);
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;
  ~PagePool();

  // Aligned to a page. Null when the system refuses.
  void* take(size_t bytes, Contents contents);
  void give(void* data, size_t bytes);
  size_t keptBytes() {
    std::lock_guard lock(mutex_);
    return keptBytes_;
  }

 private:
  struct Range {
    char* begin;
    size_t bytes;
    uint64_t freed;  // when the last of it was
    char* end() const { return begin + bytes; }
  };
  size_t asBefore() const;
  size_t mayKeep() const;
  char* takeKept(size_t reserved);
  bool keep(char* begin, size_t bytes);
  Range cut(size_t most);
  void trim(bool all = false);
  char* mapFor(size_t reserved);

  const size_t always_, most_;
  std::mutex mutex_;
  std::vector<Range> kept_;  // by address, no two of them adjacent; reserved, so that giving back needs no memory
  size_t keptBytes_ = 0;
  size_t used_ = 0, highest_ = 0;  // bytes; the highest since nothing was used
  uint64_t clock_ = 0;
};

}  // namespace alps
