// A pool of worker threads for one device. Each output element belongs to one task, and the bounds of tasks do not
// depend on the number of threads, or an element does not depend on those bounds (tiles of products, stripes), so
// results do not depend on it either. Reductions go into one slot a task and are summed in order by the caller.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "core/old_libstdcxx.h"

namespace alps {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  // Tasks, of about one size, that keep all threads busy nearly to the end.
  int64_t enoughTasks() const { return 4 * int64_t{threads()}; }

  // Runs task(0) ... task(count − 1) on all threads, the caller's among them, and returns when all are done. Between
  // tasks the running stream's cancellation is looked at. The first exception is thrown again here. Not reentrant.
  void run(int64_t count, const std::function<void(int64_t)>& task);

  // Cuts [0, size) into pieces of `grain` and runs piece(begin, end).
  template <typename Piece>
  void ranges(int64_t size, int64_t grain, const Piece& piece) {
    run((size + grain - 1) / grain, [&](int64_t i) { piece(i * grain, std::min(size, (i + 1) * grain)); });
  }

 private:
  void work(const std::function<void(int64_t)>& task);
  void loop();
  void stop();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable start_, done_;
  const std::function<void(int64_t)>* task_ = nullptr;  // this and flag_, count_, failure_: set while no worker is busy
  const std::atomic<bool>* flag_ = nullptr;             // the running stream's cancellation
  int64_t count_ = 0;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> busy_{0};
  bool stopping_ = false;  // guarded by mutex_
  std::atomic<int64_t> next_{0};
  std::exception_ptr failure_;
};

// Cuts [rows, columns] into tiles, down and across multiples of a panel, as large as leaves enough of them, and runs
// tile(row, column, height, width). Large tiles read packed panels seldom.
template <typename Tile>
void forTiles(ThreadPool& pool, int64_t rows, int64_t columns, int64_t panel, const Tile& tile) {
  const int64_t enough = std::max<int64_t>(32, pool.enoughTasks());
  int64_t height = 4 * panel, width = 4 * panel;
  auto count = [](int64_t size, int64_t piece) { return (size + piece - 1) / piece; };
  while (count(rows, height) * count(columns, width) < enough && height > panel) (height < width ? width : height) /= 2;
  int64_t down = count(rows, height);
  pool.run(down * count(columns, width), [&](int64_t task) {
    int64_t i = task % down * height, j = task / down * width;
    tile(i, j, std::min(height, rows - i), std::min(width, columns - j));
  });
}

}  // namespace alps
