// Between the addon and the library of the CUDA kernels (libalps_cuda.so), which is opened on first use. Both are built
// together, by one compiler.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"

namespace alps {

// Changes with anything that both sides see.
constexpr int cudaInterfaceVersion = 15;

struct CudaDevice {
  std::string name;
  std::string capability;  // "9.0"
  uint64_t memory = 0;     // bytes
};

struct CudaProbe {
  std::vector<CudaDevice> devices;
  std::string driver;   // newest CUDA version that the driver supports, "13.0"; empty without a driver
  std::string runtime;  // CUDA version that the kernels were built with
  std::string failure;  // why there are no devices, in words; empty when there are
};

// What the library needs from the process that opens it.
struct CudaHost {
  bool (*cancelled)();  // whether the job whose op is running was cancelled
};

// The library's exports, by these names.
using AlpsCudaVersion = int();
using AlpsCudaProbe = void(CudaProbe& probe);
// Opens a device; failures arrive as Error.
using AlpsCudaOpen = void(int device, const BackendOptions& options, const CudaHost& host,
                          std::shared_ptr<Backend>& backend);

}  // namespace alps
