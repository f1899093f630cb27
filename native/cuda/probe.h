#pragma once
#include "core/cuda_interface.h"

namespace alps {

// Fills in what the driver shows. In probe_cuda.cc, and for the kernels on the processor in host/runtime_host.cc.
void probeDevices(CudaProbe& probe);

}  // namespace alps
