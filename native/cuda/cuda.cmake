# Two libraries from the same sources:
#   alps_cuda       the kernels for NVIDIA GPUs. ALPS_CUDA=auto (default) builds it when nvcc is found, on insists, off does not.
#   alps_cuda_host  the same kernels on the processor, for tests (native/cuda/host).
set(ALPS_CUDA "auto" CACHE STRING "Build the CUDA kernels: auto, on or off")
set(ALPS_CUDA_ARCHITECTURES "80-real;86-real;89-real;90-real;100-real;120" CACHE STRING "Their architectures")

file(GLOB CUDA_KERNELS CONFIGURE_DEPENDS native/cuda/*.cu)
set(CUDA_SOURCES ${CUDA_KERNELS} native/cuda/cuda_backend.cc native/cuda/exports.cc native/cuda/pending.cc)

file(GLOB CUDA_HOST_SOURCES CONFIGURE_DEPENDS native/cuda/host/*.cc)
add_library(alps_cuda_host SHARED ${CUDA_HOST_SOURCES})
foreach(SOURCE ${CUDA_SOURCES})
  # The same file twice, in two languages: the host's copy includes the original.
  get_filename_component(NAME ${SOURCE} NAME)
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/cuda_host/${NAME}.cc CONTENT "#include \"cuda/${NAME}\"\n")
  target_sources(alps_cuda_host PRIVATE ${CMAKE_BINARY_DIR}/cuda_host/${NAME}.cc)
endforeach()
target_include_directories(alps_cuda_host PRIVATE native)
target_compile_definitions(alps_cuda_host PRIVATE ALPS_CUDA_ON_HOST)
target_compile_options(alps_cuda_host PRIVATE -Wall -Wextra -Werror -Wno-unknown-pragmas -O2)
