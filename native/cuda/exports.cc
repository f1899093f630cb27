// What the addon finds in this library by name.
#include "core/cuda_interface.h"
#include "cuda/cuda_backend.h"
#include "cuda/probe.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int alpsCudaVersion() { return alps::cudaInterfaceVersion; }

EXPORT void alpsCudaProbe(alps::CudaProbe& probe) { alps::probeDevices(probe); }

EXPORT void alpsCudaOpen(int device, const alps::BackendOptions& options, const alps::CudaHost& host,
                         std::shared_ptr<alps::Backend>& backend) {
  backend = std::make_shared<alps::CudaBackend>(device, options, host);
}
