#include "cpu/pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace alps {

namespace {

// A page that is touched for the first time costs more than ten times what writing it again does: most of the time of a
// method with a few passes over a small layer. So the system is asked for whole huge pages, and what is freed is kept.
constexpr size_t page = 4096, hugePage = 2u << 20;

// Kept memory that is zeroed again is so by the caller's thread; above this the system's own zeros are taken.
constexpr size_t mostZeroed = 16u << 20;

constexpr size_t mostRanges = 256;

size_t roundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }
size_t reservedFor(size_t bytes) { return roundUp(std::max<size_t>(bytes, 1), page); }

// What a block counts for among those in use: large ones for their huge pages, the rest of which nobody else had.
size_t countedFor(size_t reserved) { return reserved < hugePage ? reserved : roundUp(reserved, hugePage); }

char* map(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return data == MAP_FAILED ? nullptr : static_cast<char*>(data);
}

void unmap(char* begin, char* end) {
  if (begin >= end) return;
  size_t bytes = static_cast<size_t>(end - begin);
  // Refused where a process has too many mappings to cut one more: then its address stays, but not its memory.
  if (munmap(begin, bytes) != 0) madvise(begin, bytes, MADV_DONTNEED);
}

// A multiple of huge pages, which begins with one.
char* mapHuge(size_t bytes) {
  char* data = map(bytes + hugePage);
  if (!data) return nullptr;
  char* begin = data + (hugePage - reinterpret_cast<uintptr_t>(data) % hugePage) % hugePage;
  unmap(data, begin);
  unmap(begin + bytes, data + bytes + hugePage);
  madvise(begin, bytes, MADV_HUGEPAGE);
  return begin;
}

// For tests: memory that is promised to hold nothing in particular holds NaN.
bool poisoned() {
  static const bool set = std::getenv("ALPS_POISON") != nullptr;
  return set;
}

}  // namespace

PagePool::PagePool(size_t always, size_t most) : always_(always), most_(most) { kept_.reserve(mostRanges); }

PagePool::~PagePool() {
  for (const Range& range : kept_) unmap(range.begin, range.end());
}

size_t PagePool::mayKeep() const { return std::max(always_, asBefore()); }

// What may be kept of which no more is held than was in use before.
size_t PagePool::asBefore() const { return std::min(most_, highest_ - used_); }

// The smallest range that is large enough, the last freed of those, from its start.
char* PagePool::takeKept(size_t reserved) {
  auto best = kept_.end();
  for (auto range = kept_.begin(); range != kept_.end(); ++range)
    if (range->bytes >= reserved && (best == kept_.end() || range->bytes < best->bytes ||
                                     (range->bytes == best->bytes && range->freed > best->freed)))
      best = range;
  if (best == kept_.end()) return nullptr;
  char* data = best->begin;
  best->begin += reserved;
  best->bytes -= reserved;
  if (best->bytes == 0) kept_.erase(best);
  keptBytes_ -= reserved;
  return data;
}

// False where there is no room for one more range.
bool PagePool::keep(char* begin, size_t bytes) {
  if (bytes == 0) return true;
  auto behind =
      std::lower_bound(kept_.begin(), kept_.end(), begin, [](const Range& r, char* at) { return r.begin < at; });
  bool joinsBefore = behind != kept_.begin() && std::prev(behind)->end() == begin;
  bool joinsBehind = behind != kept_.end() && behind->begin == begin + bytes;
  if (!joinsBefore && !joinsBehind && kept_.size() == mostRanges) return false;
  keptBytes_ += bytes;
  if (joinsBefore) {
    auto before = std::prev(behind);
    before->bytes += bytes;
    before->freed = ++clock_;
    if (!joinsBehind) return true;
    before->bytes += behind->bytes;
    kept_.erase(behind);
  } else if (joinsBehind) {
    *behind = {begin, behind->bytes + bytes, ++clock_};
  } else {
    kept_.insert(behind, {begin, bytes, ++clock_});
  }
  return true;
}

// Of the oldest range as much as is too much, from its end and by whole huge pages. Empty where nothing is.
PagePool::Range PagePool::cut(size_t most) {
  if (keptBytes_ <= most) return {};
  size_t excess = keptBytes_ - most;
  auto oldest =
      std::min_element(kept_.begin(), kept_.end(), [](const Range& a, const Range& b) { return a.freed < b.freed; });
  char* end = oldest->end();
  char* from = excess < oldest->bytes ? end - excess : oldest->begin;
  from = std::max(oldest->begin, from - reinterpret_cast<uintptr_t>(from) % hugePage);
  Range range{from, static_cast<size_t>(end - from), 0};
  keptBytes_ -= range.bytes;
  oldest->bytes -= range.bytes;
  if (oldest->bytes == 0) kept_.erase(oldest);
  return range;
}

// Unmapping gigabytes takes a while, in which others get memory.
void PagePool::trim(bool all) {
  for (;;) {
    Range range{};
    {
      std::lock_guard lock(mutex_);
      range = cut(all ? 0 : mayKeep());
    }
    if (range.bytes == 0) return;
    unmap(range.begin, range.end());
  }
}

char* PagePool::mapFor(size_t reserved) {
  if (always_ == 0) return map(reserved);
  size_t bytes = roundUp(reserved, hugePage);
  char* data = mapHuge(bytes);
  if (!data) return map(reserved);
  bool kept = false;
  {
    std::lock_guard lock(mutex_);
    kept = keep(data + reserved, bytes - reserved);
  }
  if (!kept) unmap(data + reserved, data + bytes);
  return data;
}

void* PagePool::take(size_t bytes, Contents contents) {
  size_t reserved = reservedFor(bytes);
  char* data = nullptr;
  {
    std::lock_guard lock(mutex_);
    used_ += countedFor(reserved);
    highest_ = std::max(highest_, used_);
    if (contents == Contents::any || reserved <= mostZeroed) data = takeKept(reserved);
  }
  bool zero = !data;
  trim();
  if (!data) {
    data = mapFor(reserved);
    trim();
  }
  if (!data) {
    trim(true);
    data = map(reserved);
  }
  if (!data) {
    std::lock_guard lock(mutex_);
    used_ -= countedFor(reserved);
    highest_ = used_;
    return nullptr;
  }
  if (contents == Contents::zero && !zero) std::memset(data, 0, bytes);
  if (contents == Contents::any && poisoned()) std::memset(data, 0xff, bytes);
  return data;
}

void PagePool::give(void* data, size_t bytes) {
  size_t reserved = reservedFor(bytes);
  char* begin = static_cast<char*>(data);
  bool kept = false;
  {
    std::lock_guard lock(mutex_);
    used_ -= countedFor(reserved);
    if (used_ == 0) highest_ = 0;
    kept = reserved <= std::max(always_ / 4, asBefore()) && keep(begin, reserved);
  }
  if (!kept) unmap(begin, begin + reserved);
  trim();
}

}  // namespace alps
