// Where a device's time goes: milliseconds by phase, op and arguments, taken on the device's thread. Off until started;
// while it is on, a GPU is waited for after each op.
#pragma once
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace alps {

class Profile {
 public:
  struct Entry {
    uint64_t calls = 0;
    double milliseconds = 0;
  };
  using Entries = std::map<std::string, Entry>;

  bool on() const { return on_.load(std::memory_order_relaxed); }
  void add(const std::string& key, double milliseconds) {
    std::lock_guard lock(mutex_);
    Entry& entry = entries_[key];
    entry.calls++;
    entry.milliseconds += milliseconds;
  }
  // Turns it on or off and takes what was measured until now.
  Entries take(bool on) {
    on_ = on;
    std::lock_guard lock(mutex_);
    return std::exchange(entries_, {});
  }

 private:
  std::atomic<bool> on_{false};
  std::mutex mutex_;
  Entries entries_;  // guarded by mutex_
};

}  // namespace alps
