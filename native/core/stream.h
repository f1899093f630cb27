// One thread a device. Jobs reach it through streams: first-in-first-out queues that the thread serves in turn, one op
// each.
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "core/backend.h"
#include "core/cuda_library.h"
#include "core/error.h"
#include "core/old_libstdcxx.h"
#include "core/profile.h"

namespace alps {

class DeviceThread;

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  explicit Stream(std::shared_ptr<DeviceThread> device);

  // Queues an op. When an op fails, the ops queued behind it are skipped until the next settle().
  void enqueue(std::function<void(Backend&)> op);
  // Queues a call that receives the first error since the last settle(), if any, and clears it. It always runs.
  void settle(std::function<void(Backend&, const std::optional<Error>&)> done);
  // Queues a call that runs whether or not an op before it has failed, and leaves the error standing.
  void enqueueAlways(std::function<void()> call);
  // Everything queued is dropped and the running op stops at its next look; every settle() from then on reports
  // ABORTED, those already queued at once: they do not wait for ops of other streams.
  void cancel();
  // cancel(), then waits until no op of this stream runs or can run any more. Settles still queued are dropped.
  void close();
  bool cancelled() const { return cancelled_; }

 private:
  friend class DeviceThread;
  struct Job {
    std::function<void(Backend&)> op;
    std::function<void(Backend&, const std::optional<Error>&)> done;
    std::function<void()> always;
  };
  void push(Job job);
  void run(Backend& backend, Job& job);
  // Whether what is queued first is an op that would be skipped. Device thread, with the mutex held.
  bool skipsFirst() const { return (cancelled_ || error_) && !queue_.empty() && queue_.front().op; }

  std::shared_ptr<DeviceThread> device_;
  const uint64_t id_;      // of this process's streams
  std::deque<Job> queue_;  // guarded by the device's mutex
  bool running_ = false;   // guarded by the device's mutex
  bool closed_ = false;    // guarded by the device's mutex
  std::atomic<bool> cancelled_{false};
  std::optional<Error> error_;  // device thread only
};

class DeviceThread {
 public:
  explicit DeviceThread(std::shared_ptr<Backend> backend);
  ~DeviceThread();
  Backend& backend() { return *backend_; }
  Profile profile;
  // Not on its own thread, as the destructor.
  void stop();
  bool isThisThread() const { return std::this_thread::get_id() == thread_.get_id(); }

 private:
  friend class Stream;
  void loop();

  std::shared_ptr<Backend> backend_;
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::deque<std::shared_ptr<Stream>> ready_;  // streams with queued work, in turn
  bool stopping_ = false;
  std::thread thread_;
};

// Called by long ops between their pieces, from any thread that works for the op: throws ABORTED when the stream whose
// op is running was cancelled.
void throwIfCancelled();
bool runningCancelled();

// Process-wide devices: opened once for a set of options, shared by all threads and jobs that ask for the same. The
// last few that were opened stay open, others as long as they are used. `name` is cpu or cuda:0, cuda:1, ...; `cuda`
// says where the library of the kernels is.
std::shared_ptr<DeviceThread> openDevice(const std::string& name, const BackendOptions& options,
                                         const CudaLocation& cuda);

// For good, before the process ends: running ops stop at their next look, and no thread of a device is left that could
// use a library whose static objects are gone. Work that is queued is dropped.
void stopDevices();

}  // namespace alps
