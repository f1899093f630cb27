// Opening a CUDA device, its memory, and how failures found on it come back.
#include "cuda/cuda_backend.h"

#include <algorithm>

namespace alps {

namespace {
constexpr int failureSlots = 1024;  // jobs with unsettled ops at a time
}  // namespace

struct CudaBackend::Account {
  std::atomic<uint64_t> used{0}, peak{0};
};

CudaBackend::CudaBackend(int device, const BackendOptions& options, const CudaHost& host)
    : device_(device),
      options_(options),
      host_(host),
      runtime_(openRuntime(device, options)),
      products_(openProducts(*runtime_)),
      account_(std::make_shared<Account>()) {
  if (options_.memoryLimit == 0) options_.memoryLimit = runtime_->properties().memory / 10 * 9;
  // "block=64": for tests.
  if (size_t at = options.isa.find("block="); at != std::string::npos)
    blockSize_ = std::stoi(options.isa.substr(at + 6));
  // "split": products of any size.
  splitsAlways_ = options_.isa.find("split") != std::string::npos;
  failures_ = static_cast<Failure*>(runtime_->allocate(failureSlots * sizeof(Failure)));
  try {
    clearFailures(failureSlots);
    runtime_->synchronize();
  } catch (const Error& error) {
    runtime_->release(failures_, failureSlots * sizeof(Failure));
    fail("NO_DEVICE", "The kernels do not run on ", info().details, ": ", error.what());
  }
  for (int slot = failureSlots; slot-- > 0;) freeSlots_.push_back(slot);
}

CudaBackend::~CudaBackend() { runtime_->release(failures_, failureSlots * sizeof(Failure)); }

DeviceInfo CudaBackend::info() const {
  const DeviceProperties& properties = runtime_->properties();
  DeviceInfo info;
  info.name = "cuda:" + std::to_string(device_);
  info.isa = "sm_" + std::to_string(properties.major) + std::to_string(properties.minor);
  info.bf16Products = true;
  info.threads = properties.multiprocessors;
  info.memoryLimit = options_.memoryLimit;
  info.memoryUsed = account_->used;
  info.memoryPeak = account_->peak;
  info.details = properties.name + ", " + info.isa + ", " + std::to_string(properties.memory >> 30) + " GiB";
  return info;
}

void CudaBackend::resetPeak() { account_->peak = account_->used.load(); }

std::shared_ptr<Storage> CudaBackend::allocate(size_t bytes, Contents contents) {
  class CudaStorage final : public Storage {
   public:
    CudaStorage(std::shared_ptr<Runtime> runtime, std::shared_ptr<Account> account, void* data, size_t bytes)
        : runtime_(std::move(runtime)), account_(std::move(account)), data_(data), bytes_(bytes) {}
    ~CudaStorage() override {
      runtime_->release(data_, bytes_);
      account_->used -= bytes_;
    }
    void* data() override { return data_; }
    size_t bytes() const override { return bytes_; }

   private:
    std::shared_ptr<Runtime> runtime_;
    std::shared_ptr<Account> account_;
    void* data_;
    size_t bytes_;
  };
  uint64_t used = account_->used += bytes;
  void* data = nullptr;
  try {
    if (used > options_.memoryLimit)
      fail("OUT_OF_MEMORY", bytes, " bytes would exceed the device's limit of ", options_.memoryLimit,
           " bytes, of which ", used - bytes, " are in use");
    data = runtime_->allocate(bytes);
  } catch (...) {
    account_->used -= bytes;
    throw;
  }
  auto storage = std::make_shared<CudaStorage>(runtime_, account_, data, bytes);
  if (bytes > 0 && contents == Contents::zero) runtime_->zero(data, bytes);
  uint64_t peak = account_->peak;
  while (used > peak && !account_->peak.compare_exchange_weak(peak, used)) {
  }
  return storage;
}

void CudaBackend::upload(const void* from, Tensor out) { runtime_->upload(from, out.as<void>(), out.bytes()); }

void CudaBackend::download(Tensor from, void* out) { runtime_->download(from.as<void>(), out, from.bytes()); }

void CudaBackend::enter(uint64_t job) { job_ = job; }

Failure* CudaBackend::failure() {
  auto found = slots_.find(job_);
  if (found == slots_.end()) {
    if (freeSlots_.empty()) {
      // Jobs whose stream was closed without a last wait (a worker that was terminated) never gave theirs back. Those
      // that have not failed so far need none until their next op.
      std::vector<Failure> failures(failureSlots);
      runtime_->download(failures_, failures.data(), failureSlots * sizeof(Failure));
      for (auto slot = slots_.begin(); slot != slots_.end();) {
        bool failed = failures[static_cast<size_t>(slot->second)].kind != noFailure;
        if (!failed) freeSlots_.push_back(slot->second);
        slot = failed ? std::next(slot) : slots_.erase(slot);
      }
    }
    if (freeSlots_.empty()) {  // all have: the oldest one makes room
      auto oldest = slots_.begin();
      runtime_->zero(failures_ + oldest->second, sizeof(Failure));
      freeSlots_.push_back(oldest->second);
      slots_.erase(oldest);
    }
    found = slots_.emplace(job_, freeSlots_.back()).first;
    freeSlots_.pop_back();
  }
  return failures_ + found->second;
}

namespace {
void throwFailure(const Failure& failure) {
  switch (failure.kind) {
    case noFailure:
      return;
    case notPositiveDefinite:
      fail("NOT_POSITIVE_DEFINITE", "The matrix [", failure.limit, ", ", failure.limit,
           "] is not positive definite: pivot ", failure.value);
    case zeroPivot:
      fail("NOT_POSITIVE_DEFINITE", "The Cholesky factor has a zero on its diagonal");
    case supportNotPositive:
      fail("NOT_POSITIVE_DEFINITE", "The Gram matrix on the support of row ", failure.value,
           " is not positive definite");
    case idPastTable:
      fail("INVALID_ARGUMENT", "Expected token ids below ", failure.limit, " but received ", failure.value);
    case targetPastTable:
      fail("INVALID_ARGUMENT", "Expected target ids below ", failure.limit, " but received ", failure.value);
    case rowPastTable:
      fail("INVALID_ARGUMENT", "Expected row ids below ", failure.limit, " but received ", failure.value);
    default:
      fail("INTERNAL", "A kernel reported a failure of unknown kind ", failure.kind);
  }
}
}  // namespace

void CudaBackend::finish() {
  auto found = slots_.find(job_);
  if (found == slots_.end()) return runtime_->synchronize();
  Failure* slot = failures_ + found->second;
  Failure failure;
  runtime_->download(slot, &failure, sizeof failure);
  if (failure.kind != noFailure) runtime_->zero(slot, sizeof failure);
  freeSlots_.push_back(found->second);
  slots_.erase(found);
  throwFailure(failure);
}

Grid CudaBackend::blocksFor(int64_t count) const {
  int64_t most = int64_t{runtime_->properties().multiprocessors} * (2048 / blockSize_) * 4;
  return {std::clamp<int64_t>((count + blockSize_ - 1) / blockSize_, count > 0, most)};
}

void CudaBackend::throwIfCancelled() const {
  if (host_.cancelled()) fail("ABORTED", "The operation was aborted");
}

}  // namespace alps
