#include "core/stream.h"

#include <map>
#include <system_error>
#include <tuple>

namespace alps {

namespace {
// The stream whose op runs on some device thread. Worker threads of a backend copy it from the thread that hands them
// work.
std::atomic<bool> noFlag{false};
std::atomic<bool> exiting{false};
}  // namespace

thread_local const std::atomic<bool>* runningFlag = &noFlag;

bool runningCancelled() {
  return runningFlag->load(std::memory_order_relaxed) || exiting.load(std::memory_order_relaxed);
}

void throwIfCancelled() {
  if (runningCancelled()) fail("ABORTED", "The operation was aborted");
}

std::string describe(const Tensor& tensor) {
  std::string text = std::string(nameOf(tensor.dtype)) + " [";
  for (size_t i = 0; i < tensor.shape.size(); i++) text += (i ? ", " : "") + std::to_string(tensor.shape[i]);
  return text + "]";
}

namespace {
uint64_t nextStreamId() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}
}  // namespace

Stream::Stream(std::shared_ptr<DeviceThread> device) : device_(std::move(device)), id_(nextStreamId()) {}

void Stream::push(Job job) {
  std::lock_guard lock(device_->mutex_);
  if (closed_ || device_->stopping_) return;
  queue_.push_back(std::move(job));
  if (!running_ && queue_.size() == 1) device_->ready_.push_back(shared_from_this());
  device_->wake_.notify_one();
}

void Stream::enqueue(std::function<void(Backend&)> op) { push({std::move(op), nullptr, nullptr}); }

void Stream::settle(std::function<void(Backend&, const std::optional<Error>&)> done) {
  push({nullptr, std::move(done), nullptr});
}

void Stream::enqueueAlways(std::function<void()> call) { push({nullptr, nullptr, std::move(call)}); }

void Stream::cancel() {
  cancelled_ = true;
  std::deque<Job> dropped;
  {
    std::lock_guard lock(device_->mutex_);
    if (running_) return;  // the device's thread goes on with this stream as soon as its op has stopped
    dropped.swap(queue_);
  }
  for (Job& job : dropped) {
    if (job.always) job.always();
    if (job.done) job.done(device_->backend(), Error("ABORTED", "The operation was aborted"));
  }
}

void Stream::close() {
  std::deque<Job> dropped;  // destroyed after the lock: a job may own the last reference to a tensor
  std::unique_lock lock(device_->mutex_);
  cancelled_ = true;
  closed_ = true;
  dropped.swap(queue_);
  device_->idle_.wait(lock, [&] { return !running_; });
}

void Stream::run(Backend& backend, Job& job) {
  if (job.always) return job.always();
  if (job.done) {
    if (cancelled_ && !error_) error_ = Error("ABORTED", "The operation was aborted");
    backend.enter(id_);
    try {
      backend.finish();
    } catch (const Error& error) {
      if (!error_) error_ = error;
    }
    std::optional<Error> error;
    error.swap(error_);
    job.done(backend, error);
    return;
  }
  if (error_ || cancelled_) return;
  runningFlag = &cancelled_;
  try {
    backend.enter(id_);
    job.op(backend);
  } catch (const Error& error) {
    error_ = error;
  } catch (const std::bad_alloc&) {
    error_ = Error("OUT_OF_MEMORY", "The system has no memory left for a work buffer");
  } catch (const std::exception& error) {
    error_ = Error("INTERNAL", error.what());
  }
  runningFlag = &noFlag;
}

DeviceThread::DeviceThread(std::shared_ptr<Backend> backend) : backend_(std::move(backend)) {
  try {
    thread_ = std::thread([this] { loop(); });
  } catch (const std::system_error& error) {  // the system's limit of threads
    fail("NO_DEVICE", "The system gave no thread for the device: ", error.what());
  }
}

DeviceThread::~DeviceThread() { stop(); }

void DeviceThread::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  std::deque<std::shared_ptr<Stream>> dropped;  // they hold this device, and it would hold them for ever
  std::lock_guard lock(mutex_);
  dropped.swap(ready_);
}

void DeviceThread::loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return stopping_ || !ready_.empty(); });
    if (stopping_) return;
    std::shared_ptr<Stream> stream = std::move(ready_.front());
    ready_.pop_front();
    if (stream->queue_.empty()) continue;
    stream->running_ = true;
    {
      std::deque<Stream::Job> skipped;
      std::optional<Stream::Job> next;  // the one behind them
      while (!next && !stream->queue_.empty()) {
        if (stream->skipsFirst())
          skipped.push_back(std::move(stream->queue_.front()));
        else
          next = std::move(stream->queue_.front());
        stream->queue_.pop_front();
      }
      lock.unlock();
      skipped.clear();  // what they held is free when those who wait for them are told
      if (next) stream->run(*backend_, *next);
    }  // tensors are freed before the stream counts as idle
    lock.lock();
    stream->running_ = false;
    // A cancelled stream has no work left, only those who wait for it: they come first.
    if (!stream->queue_.empty()) stream->cancelled_ ? ready_.push_front(stream) : ready_.push_back(stream);
    idle_.notify_all();
  }
}

namespace {

// The number behind "cuda:"; −1 for another device's name.
int cudaIndex(const std::string& name) {
  if (name.rfind("cuda:", 0) != 0 || name.size() == 5 || name.size() > 8) return -1;
  int index = 0;
  for (char c : name.substr(5)) {
    if (c < '0' || c > '9') return -1;
    index = index * 10 + (c - '0');
  }
  return index;
}

std::shared_ptr<Backend> openBackend(const std::string& name, const BackendOptions& options, const CudaLocation& cuda) {
  if (name == "cpu") return makeCpuBackend(options);
  if (int index = cudaIndex(name); index >= 0) return openCudaBackend(index, options, cuda);
  fail("NO_DEVICE", "Expected the device cpu or cuda:N but received ", name);
}

}  // namespace

namespace {

using DeviceKey = std::tuple<std::string, int, uint64_t, std::string, std::string>;

constexpr size_t mostKept = 4;

// Never destroyed: a device thread may outlive static destruction where stopDevices() was not called.
struct OpenDevices {
  std::mutex mutex;
  std::map<DeviceKey, std::weak_ptr<DeviceThread>> all;  // guarded by mutex, as is the next
  std::deque<std::shared_ptr<DeviceThread>> kept;        // those opened last, the last one first
  std::mutex retiredMutex;                               // taken last
  std::vector<DeviceThread*> retired;                    // guarded by it: nobody's, but their own thread found that out
};
OpenDevices& openDevices() {
  static auto* devices = new OpenDevices;
  return *devices;
}

// The last reference is gone. It may have been a stream's, let go of by the device's own thread, which cannot wait for
// itself.
void retire(DeviceThread* device) {
  if (!device->isThisThread()) return delete device;
  OpenDevices& devices = openDevices();
  std::lock_guard lock(devices.retiredMutex);
  devices.retired.push_back(device);
}

void deleteRetired() {
  OpenDevices& devices = openDevices();
  std::vector<DeviceThread*> retired;
  {
    std::lock_guard lock(devices.retiredMutex);
    retired.swap(devices.retired);
  }
  for (DeviceThread* device : retired) delete device;
}

}  // namespace

std::shared_ptr<DeviceThread> openDevice(const std::string& name, const BackendOptions& options,
                                         const CudaLocation& cuda) {
  deleteRetired();
  OpenDevices& devices = openDevices();
  std::shared_ptr<DeviceThread> dropped;  // which takes its time to end, without the lock
  std::lock_guard lock(devices.mutex);
  std::erase_if(devices.all, [](const auto& entry) { return entry.second.expired(); });
  DeviceKey key{name, options.threads, options.memoryLimit, options.isa, name == "cpu" ? "" : cuda.kernels};
  std::weak_ptr<DeviceThread>& known = devices.all[key];
  std::shared_ptr<DeviceThread> device = known.lock();
  if (!device) {
    device.reset(new DeviceThread(openBackend(name, options, cuda)), retire);
    known = device;
  }
  std::erase(devices.kept, device);
  devices.kept.push_front(device);
  if (devices.kept.size() > mostKept) {
    dropped = std::move(devices.kept.back());
    devices.kept.pop_back();
  }
  return device;
}

void stopDevices() {
  exiting = true;
  OpenDevices& devices = openDevices();
  {
    std::lock_guard lock(devices.mutex);
    for (auto& [key, known] : devices.all)
      if (auto device = known.lock()) device->stop();
  }
  deleteRetired();
}

}  // namespace alps
