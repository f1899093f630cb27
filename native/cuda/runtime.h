// What the backend needs of a device beside launches: memory in the order of the queue, copies, waiting, graphs. Two
// implementations: runtime_cuda.cc, and host/runtime_host.cc for the kernels on the processor.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"
#include "cuda/platform.h"

namespace alps {

struct DeviceProperties {
  std::string name;          // "NVIDIA H100 80GB HBM3"
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 1;
  uint64_t memory = 0;        // bytes
  size_t sharedPerBlock = 0;  // bytes that a block may ask for
  size_t l2 = 0;              // bytes
};

// A recorded sequence of launches.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual void launch() = 0;
};

class Runtime {
 public:
  virtual ~Runtime() = default;
  virtual const DeviceProperties& properties() const = 0;
  virtual Queue queue() const = 0;

  // Any thread. Memory that is valid for everything queued after this call, and given back behind everything queued
  // before release(). OUT_OF_MEMORY when the device refuses. release() never throws.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* data, size_t bytes) noexcept = 0;

  // Device thread, all of them. The memory at `from` may change once upload() has returned; download() waits for it.
  virtual void upload(const void* from, void* to, size_t bytes) = 0;
  virtual void download(const void* from, void* to, size_t bytes) = 0;
  virtual void copy(const void* from, void* to, size_t bytes) = 0;
  virtual void zero(void* data, size_t bytes) = 0;
  // Waits until everything queued has run. DEVICE_FAILED when something went wrong on the device.
  virtual void synchronize() = 0;
  // Records what `work` launches instead of running it; nullptr where the device cannot.
  virtual std::unique_ptr<Graph> record(const std::function<void()>& work) = 0;
};

std::unique_ptr<Runtime> openRuntime(int device, const BackendOptions& options);

// Device memory for the length of a scope. Given back in the order of the queue, so it may go out of scope right after
// the last launch that uses it.
template <typename T>
class Scratch {
 public:
  Scratch(Runtime& runtime, int64_t count)
      : runtime_(&runtime),
        bytes_(static_cast<size_t>(count) * sizeof(T)),
        data_(static_cast<T*>(runtime.allocate(bytes_))) {}
  ~Scratch() {
    if (data_) runtime_->release(data_, bytes_);
  }
  Scratch(Scratch&& other) noexcept
      : runtime_(other.runtime_), bytes_(other.bytes_), data_(std::exchange(other.data_, nullptr)) {}
  Scratch& operator=(Scratch&&) = delete;
  T* data() const { return data_; }
  operator T*() const { return data_; }
  void zero() { runtime_->zero(data_, bytes_); }

 private:
  Runtime* runtime_;
  size_t bytes_;
  T* data_;
};

}  // namespace alps
