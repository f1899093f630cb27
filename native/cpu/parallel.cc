#include "cpu/parallel.h"

#include <exception>

#include "core/stream.h"

extern "C" void omp_set_num_threads(int);  // of the OpenMP that oneDNN runs on; not every compiler brings omp.h

namespace alps {

namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

// Whether the condition holds within some 20 to 50 µs. Most of an iteration's loops follow one another faster than a
// thread wakes up.
template <typename Condition>
bool soon(const Condition& condition) {
  for (int i = 0; i < 1000; i++) {
    if (condition()) return true;
    pause();
  }
  return false;
}

}  // namespace

extern thread_local const std::atomic<bool>* runningFlag;  // core/stream.cc

ThreadPool::ThreadPool(int threads) {
  try {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this] { loop(); });
  } catch (const std::exception& error) {  // the system's limit of threads, or no memory for one
    size_t started = workers_.size();
    stop();
    fail("NO_DEVICE", "The system gave ", started, " of ", threads - 1, " worker threads: ", error.what());
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  start_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::work(const std::function<void(int64_t)>& task) {
  try {
    for (int64_t i; (i = next_.fetch_add(1)) < count_;) {
      throwIfCancelled();
      task(i);
    }
  } catch (...) {
    next_ = count_;
    std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
}

void ThreadPool::run(int64_t count, const std::function<void(int64_t)>& task) {
  omp_set_num_threads(1);  // oneDNN's own parallelism, per calling thread: our tasks are its only source of threads
  if (count <= 1 || workers_.empty()) {
    for (int64_t i = 0; i < count; i++) {
      throwIfCancelled();
      task(i);
    }
    return;
  }
  task_ = &task;
  flag_ = runningFlag;
  count_ = count;
  next_ = 0;
  failure_ = nullptr;
  busy_ = static_cast<int>(workers_.size());
  {
    std::lock_guard lock(mutex_);  // a worker that found nothing new is asleep when it lets go of it
    generation_++;
  }
  start_.notify_all();
  work(task);
  if (!soon([&] { return busy_ == 0; })) {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return busy_ == 0; });
  }
  task_ = nullptr;
  if (failure_) std::rethrow_exception(failure_);
}

void ThreadPool::loop() {
  omp_set_num_threads(1);
  uint64_t seen = 0;
  while (true) {
    if (!soon([&] { return generation_ != seen; })) {
      std::unique_lock lock(mutex_);
      start_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
    }
    seen = generation_;
    runningFlag = flag_;
    work(*task_);
    if (--busy_ == 0) {
      std::lock_guard lock(mutex_);
      done_.notify_one();
    }
  }
}

}  // namespace alps
