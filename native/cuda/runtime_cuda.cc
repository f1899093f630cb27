// A GPU through CUDA's runtime: the driver's stream-ordered memory pool, one stream, pinned staging for copies,
// recorded graphs.
#include <cuda_runtime.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <type_traits>

#include "cuda/copy_team.h"
#include "cuda/runtime.h"

namespace alps {

namespace {

// Kernels are compiled for this compute capability and newer ones.
constexpr int oldestMajor = 8;

struct StreamDeleter {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
struct EventDeleter {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
struct PinnedDeleter {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};
struct GraphDeleter {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};
struct GraphExecDeleter {
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};

// Owns one of CUDA's handles, which are pointers to hidden types.
template <typename Handle, typename Deleter>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Deleter>;
using OwnedStream = Owned<cudaStream_t, StreamDeleter>;
using OwnedEvent = Owned<cudaEvent_t, EventDeleter>;

OwnedStream makeStream() {
  cudaStream_t stream = nullptr;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return OwnedStream(stream);
}

OwnedEvent makeEvent() {
  cudaEvent_t event = nullptr;
  CHECK_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return OwnedEvent(event);
}

// Pinned memory that copies pass through. Pieces are cut from a ring of slots; a slot is cut again once all copies
// through it are over, so that many small copies fit into one slot and nothing waits for them.
class Staging {
 public:
  struct Piece {
    char* data;
    size_t bytes;
    int slot;
  };
  static constexpr int slotCount = 4;

  Staging() {
    void* memory = nullptr;
    CHECK_CUDA(cudaHostAlloc(&memory, slotCount * slotBytes, cudaHostAllocPortable));
    memory_.reset(static_cast<char*>(memory));
    for (OwnedEvent& event : events_) event = makeEvent();
  }

  // At most `bytes`, at least one of them.
  Piece cut(size_t bytes) {
    if (used_ == slotBytes) {
      slot_ = (slot_ + 1) % slotCount;
      wait(slot_);
      used_ = 0;
    }
    Piece piece{memory_.get() + slot_ * slotBytes + used_, std::min(bytes, slotBytes - used_), slot_};
    used_ = std::min(slotBytes, (used_ + piece.bytes + alignment - 1) / alignment * alignment);
    return piece;
  }
  // After each copy through a piece was queued.
  void queued(const Piece& piece, cudaStream_t stream) {
    CHECK_CUDA(cudaEventRecord(events_[piece.slot].get(), stream));
  }
  // Until all copies through a slot are over.
  void wait(int slot) { CHECK_CUDA(cudaEventSynchronize(events_[slot].get())); }

 private:
  static constexpr size_t slotBytes = size_t{8} << 20, alignment = 256;
  std::unique_ptr<char, PinnedDeleter> memory_;
  std::array<OwnedEvent, slotCount> events_;
  int slot_ = 0;
  size_t used_ = 0;  // of the slot
};

// Memory that is filled for the first time comes page by page, which takes longer than the copy: larger pages where the
// system has them. Only a hint.
void preferLargePages(void* data, size_t bytes) {
#ifdef __linux__
  constexpr uintptr_t large = uintptr_t{2} << 20;
  uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + large - 1) / large * large;
  uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / large * large;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

class CudaGraph final : public Graph {
 public:
  CudaGraph(int device, Owned<cudaGraphExec_t, GraphExecDeleter> graph, cudaStream_t stream)
      : device_(device), graph_(std::move(graph)), stream_(stream) {}
  void launch() override {
    CHECK_CUDA(cudaSetDevice(device_));
    CHECK_CUDA(cudaGraphLaunch(graph_.get(), stream_));
  }

 private:
  int device_;
  Owned<cudaGraphExec_t, GraphExecDeleter> graph_;
  cudaStream_t stream_;
};

class CudaRuntime;
// The runtime that this thread records a graph for, if any: its launches go to the stream that is recorded, while other
// threads allocate and release on the usual one.
thread_local const CudaRuntime* recording = nullptr;

class CudaRuntime final : public Runtime {
 public:
  explicit CudaRuntime(int device) : device_(device) {
    use();
    readProperties();
    CHECK_CUDA(cudaDeviceGetDefaultMemPool(&pool_, device_));
    // What is freed stays in the pool and is handed out again without a call to the driver.
    uint64_t threshold = UINT64_MAX;
    CHECK_CUDA(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &threshold));
    stream_ = makeStream();
    recorded_ = makeStream();
    staging_ = std::make_unique<Staging>();
  }

  ~CudaRuntime() override {
    // Copies in flight read and write the staging memory.
    if (cudaSetDevice(device_) == cudaSuccess) cudaStreamSynchronize(stream_.get());
    cudaGetLastError();
  }

  const DeviceProperties& properties() const override { return properties_; }

  // The calling thread is about to launch, so the stream's device must be current there.
  Queue queue() const override {
    use();
    return stream();
  }

  void* allocate(size_t bytes) override {
    use();
    bytes = std::max<size_t>(bytes, 1);
    void* data = nullptr;
    cudaError_t status = cudaMallocAsync(&data, bytes, stream());
    if (status == cudaErrorMemoryAllocation && recording != this) {
      // What other sizes have left in the pool goes back to the driver, which can then give it out in one piece.
      cudaGetLastError();
      CHECK_CUDA(cudaStreamSynchronize(stream()));
      CHECK_CUDA(cudaMemPoolTrimTo(pool_, 0));
      status = cudaMallocAsync(&data, bytes, stream());
    }
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      size_t free = 0, total = 0;
      if (cudaMemGetInfo(&free, &total) != cudaSuccess) cudaGetLastError();
      fail("OUT_OF_MEMORY", "The GPU could not give ", bytes, " bytes: ", free, " of its ", total, " bytes are free");
    }
    check(status, "allocate memory");
    return data;
  }

  void release(void* data, size_t) noexcept override {
    // On a GPU that has failed nothing can be given back.
    if (cudaSetDevice(device_) != cudaSuccess || cudaFreeAsync(data, stream()) != cudaSuccess) cudaGetLastError();
  }

  void upload(const void* from, void* to, size_t bytes) override {
    use();
    refuseWhileRecording();
    const char* source = static_cast<const char*>(from);
    for (size_t done = 0; done < bytes;) {
      Staging::Piece piece = staging_->cut(bytes - done);
      copies_.copy(piece.data, source + done, piece.bytes);
      check(cudaMemcpyAsync(static_cast<char*>(to) + done, piece.data, piece.bytes, cudaMemcpyHostToDevice, stream()),
            "copy to the GPU");
      staging_->queued(piece, stream());
      done += piece.bytes;
    }
  }

  void download(const void* from, void* to, size_t bytes) override {
    use();
    refuseWhileRecording();
    struct Copy {
      Staging::Piece piece;
      char* to;
    };
    preferLargePages(to, bytes);
    std::deque<Copy> copies;  // queued, oldest first; always fewer than there are slots, so that none is cut again
    auto finish = [&] {
      const Copy& copy = copies.front();
      staging_->wait(copy.piece.slot);
      copies_.copy(copy.to, copy.piece.data, copy.piece.bytes);
      copies.pop_front();
    };
    for (size_t done = 0; done < bytes;) {
      if (copies.size() == Staging::slotCount - 1) finish();
      Staging::Piece piece = staging_->cut(bytes - done);
      check(cudaMemcpyAsync(piece.data, static_cast<const char*>(from) + done, piece.bytes, cudaMemcpyDeviceToHost,
                            stream()),
            "copy from the GPU");
      staging_->queued(piece, stream());
      copies.push_back({piece, static_cast<char*>(to) + done});
      done += piece.bytes;
    }
    while (!copies.empty()) finish();
  }

  void copy(const void* from, void* to, size_t bytes) override {
    use();
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream()), "copy on the GPU");
  }

  void zero(void* data, size_t bytes) override {
    use();
    check(cudaMemsetAsync(data, 0, bytes, stream()), "clear memory");
  }

  void synchronize() override {
    use();
    refuseWhileRecording();
    check(cudaStreamSynchronize(stream_.get()), "finish its work");
  }

  std::unique_ptr<Graph> record(const std::function<void()>& work) override {
    use();
    if (recording || cudaStreamBeginCapture(recorded_.get(), cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
      cudaGetLastError();
      return nullptr;
    }
    recording = this;
    cudaGraph_t raw = nullptr;
    auto end = [&] {
      recording = nullptr;
      cudaError_t status = cudaStreamEndCapture(recorded_.get(), &raw);
      cudaGetLastError();
      return status == cudaSuccess;
    };
    try {
      work();
    } catch (...) {
      // A launch that cannot be recorded fails like one on a broken GPU; only the latter fails again outside.
      end();
      Owned<cudaGraph_t, GraphDeleter> dropped(raw);
      return nullptr;
    }
    bool complete = end();
    Owned<cudaGraph_t, GraphDeleter> graph(raw);
    cudaGraphExec_t executable = nullptr;
    if (!complete || cudaGraphInstantiate(&executable, graph.get(), 0) != cudaSuccess) {
      cudaGetLastError();
      return nullptr;
    }
    return std::make_unique<CudaGraph>(device_, Owned<cudaGraphExec_t, GraphExecDeleter>(executable), stream_.get());
  }

 private:
  // The current device is a property of a thread.
  void use() const { check(cudaSetDevice(device_), "be used"); }

  // A graph that is launched again would find other data in the staging memory.
  void refuseWhileRecording() const {
    if (recording == this) fail("INTERNAL", "Work that waits for the host cannot be recorded");
  }

  cudaStream_t stream() const { return recording == this ? recorded_.get() : stream_.get(); }

  // "cuda:0 (NVIDIA H100) could not finish its work: an illegal memory access was encountered
  // (cudaErrorIllegalAddress)"
  void check(cudaError_t status, const char* what) const {
    if (status == cudaSuccess) return;
    cudaGetLastError();
    fail("DEVICE_FAILED", name(), " could not ", what, ": ", cudaGetErrorString(status), " (", cudaGetErrorName(status),
         ")");
  }
  std::string name() const {
    std::string text = "cuda:" + std::to_string(device_);
    return properties_.name.empty() ? text : text + " (" + properties_.name + ")";
  }

  void readProperties() {
    cudaDeviceProp properties{};
    CHECK_CUDA(cudaGetDeviceProperties(&properties, device_));
    properties_.name = properties.name;
    properties_.major = properties.major;
    properties_.minor = properties.minor;
    properties_.multiprocessors = properties.multiProcessorCount;
    properties_.memory = properties.totalGlobalMem;
    properties_.sharedPerBlock = properties.sharedMemPerBlockOptin;
    properties_.l2 = static_cast<size_t>(properties.l2CacheSize);
    int pools = 0;
    CHECK_CUDA(cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, device_));
    if (properties_.major < oldestMajor)
      fail("NO_DEVICE", name(), " has compute capability ", properties_.major, ".", properties_.minor,
           "; the kernels need ", oldestMajor, ".0 or newer");
    if (!pools) fail("NO_DEVICE", name(), " has no stream-ordered memory pools");
  }

  int device_;
  DeviceProperties properties_;
  cudaMemPool_t pool_ = nullptr;  // the device's own
  OwnedStream stream_;            // all work
  OwnedStream recorded_;          // never runs anything: what is launched on it is recorded
  std::unique_ptr<Staging> staging_;
  CopyTeam copies_{std::clamp(std::thread::hardware_concurrency() / 2, 1u, 4u) - 1};
};

}  // namespace

std::unique_ptr<Runtime> openRuntime(int device, const BackendOptions&) {
  return std::make_unique<CudaRuntime>(device);
}

}  // namespace alps
