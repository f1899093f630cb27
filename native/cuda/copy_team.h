// Copies in the host's memory by several threads: one alone moves some 10 GB/s, and less into pages that were never
// touched, where a GPU takes 50.
#pragma once
#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace alps {

class CopyTeam {
 public:
  // Threads beside the one that calls copy(); as many as the system gives.
  explicit CopyTeam(unsigned helpers) {
    try {
      for (unsigned i = 0; i < helpers; i++) threads_.emplace_back([this, i] { help(i); });
    } catch (const std::system_error&) {
    }
  }
  ~CopyTeam() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  CopyTeam(const CopyTeam&) = delete;
  CopyTeam& operator=(const CopyTeam&) = delete;

  // One caller at a time.
  void copy(void* to, const void* from, size_t bytes) {
    if (bytes < smallest || threads_.empty()) {
      if (bytes > 0) std::memcpy(to, from, bytes);  // of nothing there may be no address
      return;
    }
    // Whole pages each.
    size_t share = (bytes / (threads_.size() + 1) + page) / page * page;
    {
      std::lock_guard lock(mutex_);
      to_ = static_cast<char*>(to), from_ = static_cast<const char*>(from), bytes_ = bytes, share_ = share;
      left_ = threads_.size();
      round_++;
    }
    wake_.notify_all();
    std::memcpy(to, from, std::min(bytes, share));
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return left_ == 0; });
  }

 private:
  static constexpr size_t smallest = size_t{1} << 20, page = 4096;

  void help(unsigned index) {
    size_t round = 0;
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return stopping_ || round_ != round; });
      if (stopping_) return;
      round = round_;
      size_t begin = std::min(bytes_, (index + 1) * share_), end = std::min(bytes_, begin + share_);
      char* to = to_ + begin;
      const char* from = from_ + begin;
      lock.unlock();
      if (end > begin) std::memcpy(to, from, end - begin);
      lock.lock();
      if (--left_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  // Guarded by mutex_.
  bool stopping_ = false;
  size_t round_ = 0, left_ = 0, bytes_ = 0, share_ = 0;
  char* to_ = nullptr;
  const char* from_ = nullptr;
};

}  // namespace alps
