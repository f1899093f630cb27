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
#include <utility>
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

// Calls block(i, rows, j, columns) for blocks that cover the upper triangle of [n, n], of several panels that begin
// with one, or with a third of one on the diagonal, below which little is covered.
template <typename Block>
void forTriangle(ThreadPool& pool, int64_t n, int64_t panel, const Block& block) {
  // Few and large enough to read packed factors seldom, many enough for the threads.
  int64_t size = n < 24 * panel ? 2 * panel : 6 * panel;
  for (int64_t smaller : {3 * panel, 2 * panel, panel}) {
    int64_t count = (n + size - 1) / size;
    if (count * (count + 1) / 2 < pool.enoughTasks()) size = std::min(size, smaller);
  }
  std::vector<std::pair<int64_t, int64_t>> tiles;  // those on the diagonal last, they take less time
  for (int64_t i = 0; i < n; i += size)
    for (int64_t j = i + size; j < n; j += size) tiles.emplace_back(i, j);
  for (int64_t i = 0; i < n; i += size) tiles.emplace_back(i, i);
  pool.run(static_cast<int64_t>(tiles.size()), [&](int64_t task) {
    auto [i, j] = tiles[static_cast<size_t>(task)];
    int64_t end = std::min(j + size, n), part = panel / 3;
    if (i != j) return block(i, size, j, end - j);
    for (int64_t at = j; at < end; at += panel) {
      int64_t width = std::min(panel, end - at);
      if (at > i) block(i, at - i, at, width);
      for (int64_t c = 0; c < width; c += part) block(at + c, std::min(part, width - c), at + c, width - c);
    }
  });
}

}  // namespace alps
