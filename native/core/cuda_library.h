// Opening the library of the CUDA kernels, on first use. The addon never links CUDA: where the library or what it needs
// is missing, everything else works, and what was tried can be told.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/cuda_interface.h"

namespace alps {

// Where to look.
struct CudaLocation {
  std::string kernels;               // path of libalps_cuda.so
  std::vector<std::string> folders;  // of CUDA's own libraries, in order; "" is the system's search path
};

// One step of opening the library, for people.
struct CudaAttempt {
  std::string what;     // "libcublas.so.13 in /usr/local/cuda/lib64"
  std::string outcome;  // "found", or the system's words
};

// Opens the library (once a process and path) and looks for devices. Never throws: what went wrong stands in
// probe.failure.
CudaProbe probeCuda(const CudaLocation& where, std::vector<CudaAttempt>& attempts);

// NO_DEVICE when the library cannot be opened or lacks the device, with the reason.
std::shared_ptr<Backend> openCudaBackend(int device, const BackendOptions& options, const CudaLocation& where);

}  // namespace alps
