// Opening the CPU device, its memory, and the ops that only move data.
#include "cpu/cpu_backend.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <thread>

#include "cpu/pages.h"

namespace alps {

// What storages need of the device when they are freed, which may be after it is.
struct CpuBackend::Account {
  std::atomic<uint64_t> used{0}, peak{0};
  PagePool pages;
};

namespace {

uint64_t readNumber(const char* path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : 0;
}

// The machine's memory, or the limit of its control group where that is lower.
uint64_t machineMemory() {
  uint64_t bytes = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGE_SIZE));
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"})
    if (uint64_t limit = readNumber(path)) bytes = std::min(bytes, limit);
  return bytes;
}

constexpr size_t alignment = 64;
constexpr int64_t grain = 1 << 16;  // elements a task, for loops bound by memory

}  // namespace

CpuBackend::CpuBackend(const BackendOptions& options)
    : options_(options),
      account_(std::make_shared<Account>()),
      kernels_(chooseKernels(options.isa)),
      products_(chooseProducts(options.isa, kernels_)),
      int8_(chooseInt8(options.isa, kernels_)),
      pool_(options.threads > 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency())) {
  if (options_.memoryLimit == 0) options_.memoryLimit = machineMemory() / 10 * 9;
}

DeviceInfo CpuBackend::info() const {
  DeviceInfo info;
  info.name = "cpu";
  info.isa = kernels_.isa;
  info.bf16Products = bf16InHardware();
  info.int8Products = int8_ && kernels_.isa != std::string("scalar");
  info.threads = pool_.threads();
  info.memoryLimit = options_.memoryLimit;
  info.memoryUsed = account_->used;
  info.memoryPeak = account_->peak;
  info.details = info.isa + (info.bf16Products ? ", bfloat16 products" : "") +
                 (info.int8Products ? ", int8 products, " : ", ") + std::to_string(info.threads) +
                 (info.threads == 1 ? " thread" : " threads");
  return info;
}

void CpuBackend::resetPeak() { account_->peak = account_->used.load(); }

std::shared_ptr<Storage> CpuBackend::allocate(size_t bytes, Contents contents) {
  class CpuStorage final : public Storage {
   public:
    CpuStorage(void* data, size_t bytes, std::shared_ptr<Account> account)
        : data_(data), bytes_(bytes), account_(std::move(account)) {}
    ~CpuStorage() override {
      account_->pages.give(data_, bytes_);
      account_->used -= bytes_;
    }
    void* data() override { return data_; }
    size_t bytes() const override { return bytes_; }

   private:
    void* data_;
    size_t bytes_;
    std::shared_ptr<Account> account_;
  };
  static_assert(alignment <= 4096, "mmap aligns to pages");
  uint64_t used = account_->used += bytes;
  if (used > options_.memoryLimit) {
    account_->used -= bytes;
    fail("OUT_OF_MEMORY", bytes, " bytes would exceed the device's limit of ", options_.memoryLimit,
         " bytes, of which ", used - bytes, " are in use");
  }
  void* data = account_->pages.take(bytes, contents);
  if (!data) {
    account_->used -= bytes;
    fail("OUT_OF_MEMORY", "the system refused ", bytes, " bytes: ", std::strerror(errno));
  }
  uint64_t peak = account_->peak;
  while (used > peak && !account_->peak.compare_exchange_weak(peak, used)) {
  }
  try {
    return std::make_shared<CpuStorage>(data, bytes, account_);
  } catch (...) {
    account_->pages.give(data, bytes);
    account_->used -= bytes;
    throw;
  }
}

void CpuBackend::upload(const void* from, Tensor out) {
  pool_.ranges(static_cast<int64_t>(out.bytes()), grain * 16, [&](int64_t begin, int64_t end) {
    std::memcpy(out.as<char>() + begin, static_cast<const char*>(from) + begin, static_cast<size_t>(end - begin));
  });
}

void CpuBackend::download(Tensor from, void* out) {
  pool_.ranges(static_cast<int64_t>(from.bytes()), grain * 16, [&](int64_t begin, int64_t end) {
    std::memcpy(static_cast<char*>(out) + begin, from.as<char>() + begin, static_cast<size_t>(end - begin));
  });
}

std::shared_ptr<Backend> makeCpuBackend(const BackendOptions& options) { return std::make_shared<CpuBackend>(options); }

}  // namespace alps
