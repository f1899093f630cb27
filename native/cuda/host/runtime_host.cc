// The device of the kernels on the processor: its memory is the host's, with guard zones around each allocation that
// are looked at when it is given back and after each wait; new memory is filled with NaN.
#include <cstring>
#include <map>
#include <mutex>

#include "cuda/probe.h"
#include "cuda/runtime.h"

namespace alps {

namespace {

constexpr size_t guard = 256;
constexpr unsigned char pattern = 0xa5;

// "order=7,memory=65536,refuse=12": the seed of the order of blocks and threads, the bytes that the device has, and the
// number of the one allocation that it refuses.
uint64_t setting(const std::string& settings, const std::string& name, uint64_t fallback) {
  size_t at = settings.find(name + "=");
  return at == std::string::npos ? fallback : std::stoull(settings.substr(at + name.size() + 1));
}

class HostRuntime final : public Runtime {
 public:
  explicit HostRuntime(const std::string& settings)
      : settings_{setting(settings, "order", 0)}, refused_(setting(settings, "refuse", 0)) {
    properties_.name = "kernels on the processor";
    properties_.major = 9;
    properties_.multiprocessors = 4;
    properties_.memory = setting(settings, "memory", uint64_t{4} << 30);
    properties_.sharedPerBlock = 227 << 10;
    properties_.l2 = 1 << 20;
  }
  ~HostRuntime() override {
    for (auto& [data, bytes] : blocks_) ::operator delete(static_cast<char*>(data) - guard, std::align_val_t{guard});
  }
  const DeviceProperties& properties() const override { return properties_; }
  Queue queue() const override { return &settings_; }

  void* allocate(size_t bytes) override {
    take(bytes);
    char* memory = static_cast<char*>(::operator new(bytes + 2 * guard, std::align_val_t{guard}));
    std::memset(memory, pattern, guard);
    std::memset(memory + guard, 0xff, bytes);
    std::memset(memory + guard + bytes, pattern, guard);
    std::lock_guard lock(mutex_);
    blocks_[memory + guard] = bytes;
    return memory + guard;
  }

  void release(void* data, size_t bytes) noexcept override {
    std::lock_guard lock(mutex_);
    if (!intact(data, bytes)) broken_ = true;
    blocks_.erase(data);
    used_ -= bytes;
    ::operator delete(static_cast<char*>(data) - guard, std::align_val_t{guard});
  }

  void upload(const void* from, void* to, size_t bytes) override { std::memcpy(to, from, bytes); }
  void download(const void* from, void* to, size_t bytes) override {
    synchronize();
    std::memcpy(to, from, bytes);
  }
  void copy(const void* from, void* to, size_t bytes) override { std::memmove(to, from, bytes); }
  void zero(void* data, size_t bytes) override { std::memset(data, 0, bytes); }

  void synchronize() override {
    std::lock_guard lock(mutex_);
    for (auto& [data, bytes] : blocks_) broken_ |= !intact(data, bytes);
    if (std::exchange(broken_, false)) fail("DEVICE_FAILED", "A kernel wrote outside its memory");
  }

  std::unique_ptr<Graph> record(const std::function<void()>& work) override {
    class HostGraph final : public Graph {
     public:
      explicit HostGraph(std::function<void()> work) : work_(std::move(work)) {}
      void launch() override { work_(); }

     private:
      std::function<void()> work_;
    };
    return std::make_unique<HostGraph>(work);
  }

 private:
  static bool intact(const void* data, size_t bytes) {
    const unsigned char* at = static_cast<const unsigned char*>(data);
    for (size_t i = 0; i < guard; i++)
      if (at[-1 - static_cast<ptrdiff_t>(i)] != pattern || at[bytes + i] != pattern) return false;
    return true;
  }

  // Counts an allocation, or refuses it as a GPU does whose memory others have.
  void take(size_t bytes) {
    std::lock_guard lock(mutex_);
    if (++allocations_ == refused_ || used_ + bytes > properties_.memory)
      fail("OUT_OF_MEMORY", "The kernels' device could not give ", bytes, " bytes: ", used_, " of its ",
           properties_.memory, " bytes are in use");
    used_ += bytes;
  }

  DeviceProperties properties_;
  mutable host::Settings settings_;
  std::mutex mutex_;
  std::map<void*, size_t> blocks_;  // guarded by mutex_, as are the next four
  uint64_t used_ = 0;
  uint64_t allocations_ = 0;
  uint64_t refused_;
  bool broken_ = false;
};

}  // namespace

// Two, so that what several GPUs do together can be tried.
void probeDevices(CudaProbe& probe) {
  probe.devices.assign(2, {"kernels on the processor", "9.0", uint64_t{4} << 30});
  probe.driver = probe.runtime = "none";
}

std::unique_ptr<Runtime> openRuntime(int, const BackendOptions& options) {
  return std::make_unique<HostRuntime>(options.isa);
}

}  // namespace alps
