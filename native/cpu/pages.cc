#include "cpu/pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace alps {

namespace {

// A page that is touched for the first time costs more than ten times what writing it again does: most of the time of a
// method with a few passes over a small layer. Larger blocks get huge pages, and go back to the system at once, however
// large the heap around them has grown.
constexpr size_t page = 4096, hugePage = 2u << 20;

constexpr size_t mostBlocks = 256;

size_t reservedFor(size_t bytes) { return (std::max<size_t>(bytes, 1) + page - 1) / page * page; }

}  // namespace

PagePool::PagePool(size_t mostKept) : mostKept_(mostKept) { kept_.reserve(mostBlocks); }

PagePool::~PagePool() {
  while (!kept_.empty()) dropOldest();
}

void PagePool::dropOldest() {
  munmap(kept_.front().data, kept_.front().reserved);
  keptBytes_ -= kept_.front().reserved;
  kept_.erase(kept_.begin());
}

void* PagePool::take(size_t bytes) {
  size_t reserved = reservedFor(bytes);
  {
    std::unique_lock lock(mutex_);
    auto found = std::find_if(kept_.rbegin(), kept_.rend(), [&](const Block& b) { return b.reserved == reserved; });
    if (found != kept_.rend()) {
      void* data = found->data;
      kept_.erase(std::next(found).base());
      keptBytes_ -= reserved;
      lock.unlock();
      std::memset(data, 0, bytes);
      return data;
    }
  }
  void* data = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  if (reserved >= hugePage) madvise(data, reserved, MADV_HUGEPAGE);
  return data;
}

void PagePool::give(void* data, size_t bytes) {
  size_t reserved = reservedFor(bytes);
  if (reserved > mostKept_ / 4) {
    munmap(data, reserved);
    return;
  }
  std::lock_guard lock(mutex_);
  if (kept_.size() == mostBlocks) dropOldest();
  kept_.push_back({data, reserved});
  keptBytes_ += reserved;
  while (keptBytes_ > mostKept_) dropOldest();
}

}  // namespace alps
