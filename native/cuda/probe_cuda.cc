// What the NVIDIA driver shows. CUDA's runtime is linked statically and looks for the driver by itself, so that this
// library opens, and can say what is missing, without one.
#include <cuda_runtime.h>

#include "cuda/probe.h"

namespace alps {

namespace {

// 13020 is CUDA 13.2.
std::string versionName(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string words(cudaError_t status) {
  return std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ")";
}

// Why there are no devices; empty when there are.
std::string findDevices(CudaProbe& probe) {
  int runtime = 0, driver = 0, count = 0;
  cudaRuntimeGetVersion(&runtime);
  probe.runtime = versionName(runtime);
  // A driver runs programs of its own major version, whatever their minor one.
  std::string needed = "one for CUDA " + std::to_string(runtime / 1000) + ".0 or newer (580 or newer) is needed";
  cudaError_t status = cudaDriverGetVersion(&driver);
  if (status != cudaSuccess || driver == 0) return "there is no NVIDIA driver (libcuda.so.1); " + needed;
  probe.driver = versionName(driver);
  std::string tooOld = "the NVIDIA driver is too old, it supports CUDA " + probe.driver + "; " + needed;
  if (driver / 1000 < runtime / 1000) return tooOld;
  status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver) return tooOld;
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) return "the NVIDIA driver shows no GPU";
  if (status != cudaSuccess) return "the NVIDIA driver failed: " + words(status);
  for (int i = 0; i < count; i++) {
    cudaDeviceProp properties{};
    status = cudaGetDeviceProperties(&properties, i);
    if (status != cudaSuccess) {
      probe.devices.clear();
      return "the NVIDIA driver could not describe cuda:" + std::to_string(i) + ": " + words(status);
    }
    std::string capability = std::to_string(properties.major) + "." + std::to_string(properties.minor);
    probe.devices.push_back({properties.name, capability, properties.totalGlobalMem});
  }
  return "";
}

}  // namespace

void probeDevices(CudaProbe& probe) {
  probe.failure = findDevices(probe);
  cudaGetLastError();
}

}  // namespace alps
