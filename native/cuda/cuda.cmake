# Two libraries from the same sources:
#   alps_cuda       the kernels for NVIDIA GPUs. ALPS_CUDA=auto (default) builds it when nvcc is found, on insists, off does not.
#   alps_cuda_host  the same kernels on the processor, for tests (native/cuda/host).
set(ALPS_CUDA "auto" CACHE STRING "Build the CUDA kernels: auto, on or off")
set(ALPS_CUDA_ARCHITECTURES "80;86;89;90;100;120" CACHE STRING
  "Compute capabilities that the kernels are compiled for; the last one's PTX is kept for newer ones")

file(GLOB CUDA_KERNELS CONFIGURE_DEPENDS native/cuda/*.cu)
file(GLOB CUDA_HEADERS CONFIGURE_DEPENDS native/cuda/*.h native/core/*.h)
file(GLOB CUDA_CC CONFIGURE_DEPENDS native/cuda/*.cc)

# ---- On the processor. ------------------------------------------------------------------------------------------------
file(GLOB CUDA_HOST_SOURCES CONFIGURE_DEPENDS native/cuda/host/*.cc)
add_library(alps_cuda_host SHARED ${CUDA_HOST_SOURCES})
foreach(SOURCE ${CUDA_KERNELS} ${CUDA_CC})
  get_filename_component(NAME ${SOURCE} NAME)
  # host/ has its own of what only CUDA can do.
  if(NAME MATCHES "_(cuda|cublas)\\.cc$")
    continue()
  endif()
  # The same file twice, in two languages: the host's copy includes the original.
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/cuda_host/${NAME}.cc CONTENT "#include \"cuda/${NAME}\"\n")
  target_sources(alps_cuda_host PRIVATE ${CMAKE_BINARY_DIR}/cuda_host/${NAME}.cc)
endforeach()
target_include_directories(alps_cuda_host PRIVATE native)
target_compile_definitions(alps_cuda_host PRIVATE ALPS_CUDA_ON_HOST)
target_compile_options(alps_cuda_host PRIVATE -Wall -Wextra -Werror -Wno-unknown-pragmas -O2)
stays_loaded(alps_cuda_host)

# ---- On GPUs. ---------------------------------------------------------------------------------------------------------
# nvcc is called file by file instead of through CMake's CUDA language: a toolkit that lacks a part or is too old then
# leads to a word and not to a failed configuration, and the report of ptxas is kept beside each object.
string(TOLOWER "${ALPS_CUDA}" ALPS_CUDA)
if(ALPS_CUDA STREQUAL "off")
  return()
endif()

# Why alps_cuda is not built.
macro(without_cuda REASON)
  if(ALPS_CUDA STREQUAL "on")
    message(FATAL_ERROR "The CUDA kernels cannot be built: ${REASON}")
  endif()
  message(STATUS "The CUDA kernels are not built: ${REASON}")
  return()
endmacro()

if(DEFINED ENV{CUDACXX})
  set(ALPS_NVCC $ENV{CUDACXX})
else()
  unset(ALPS_NVCC CACHE)
  find_program(ALPS_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME ${CMAKE_SOURCE_DIR}/.cuda/nvidia/cu13
    PATHS /usr/local/cuda PATH_SUFFIXES bin)
endif()
if(NOT ALPS_NVCC)
  without_cuda("nvcc was not found (CUDACXX, CUDA_PATH, CUDA_HOME, .cuda, PATH, /usr/local/cuda)")
endif()
execute_process(COMMAND ${ALPS_NVCC} --version OUTPUT_VARIABLE NVCC_SAID ERROR_VARIABLE NVCC_SAID RESULT_VARIABLE NVCC_STATUS)
if(NOT NVCC_STATUS EQUAL 0 OR NOT NVCC_SAID MATCHES "release ([0-9]+)\\.([0-9]+)")
  without_cuda("${ALPS_NVCC} does not run")
endif()
set(NVCC_VERSION ${CMAKE_MATCH_1}.${CMAKE_MATCH_2})
if(NOT CMAKE_MATCH_1 EQUAL 13)
  without_cuda("${ALPS_NVCC} is of CUDA ${NVCC_VERSION}; CUDA 13 is needed")
endif()

# The libraries of the toolkit. find_* keep what they found, and the toolkit may be another one now.
get_filename_component(CUDA_ROOT ${ALPS_NVCC} REALPATH)
get_filename_component(CUDA_ROOT ${CUDA_ROOT} DIRECTORY)
get_filename_component(CUDA_ROOT ${CUDA_ROOT} DIRECTORY)
set(CUDA_FOLDERS lib64 lib targets/x86_64-linux/lib targets/sbsa-linux/lib)
foreach(NAME cudart_static cublas cublasLt)
  unset(ALPS_${NAME} CACHE)
  find_library(ALPS_${NAME} ${NAME} PATHS ${CUDA_ROOT} PATH_SUFFIXES ${CUDA_FOLDERS} NO_DEFAULT_PATH)
  if(NOT ALPS_${NAME})
    without_cuda("${CUDA_ROOT} has no library ${NAME}")
  endif()
endforeach()
unset(ALPS_CUDA_INCLUDE CACHE)
find_path(ALPS_CUDA_INCLUDE cublas_v2.h PATHS ${CUDA_ROOT} PATH_SUFFIXES include targets/x86_64-linux/include
  targets/sbsa-linux/include NO_DEFAULT_PATH)
if(NOT ALPS_CUDA_INCLUDE)
  without_cuda("${CUDA_ROOT} has no cublas_v2.h")
endif()
message(STATUS "The CUDA kernels are built by ${ALPS_NVCC} (CUDA ${NVCC_VERSION}) for sm_${ALPS_CUDA_ARCHITECTURES}")

set(NVCC_FLAGS -std=c++20 -O3 -DNDEBUG --expt-relaxed-constexpr --extended-lambda -ccbin ${CMAKE_CXX_COMPILER}
  -Xcompiler -Wall,-Wextra,-fPIC,-fvisibility=hidden -Werror all-warnings -Xptxas -v -I${CMAKE_SOURCE_DIR}/native)
foreach(ARCHITECTURE ${ALPS_CUDA_ARCHITECTURES})
  list(APPEND NVCC_FLAGS -gencode arch=compute_${ARCHITECTURE},code=sm_${ARCHITECTURE})
endforeach()
list(GET ALPS_CUDA_ARCHITECTURES -1 NEWEST)
list(APPEND NVCC_FLAGS -gencode arch=compute_${NEWEST},code=compute_${NEWEST})

set(CUDA_OBJECTS)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/cuda)
foreach(SOURCE ${CUDA_KERNELS})
  get_filename_component(NAME ${SOURCE} NAME_WE)
  set(OBJECT ${CMAKE_BINARY_DIR}/cuda/${NAME}.o)
  set(REPORT ${CMAKE_BINARY_DIR}/cuda/${NAME}.ptxas)
  add_custom_command(OUTPUT ${OBJECT} BYPRODUCTS ${REPORT}
    COMMAND ${CMAKE_COMMAND} -DREPORT=${REPORT} -P ${CMAKE_SOURCE_DIR}/native/cuda/nvcc.cmake --
      ${ALPS_NVCC} ${NVCC_FLAGS} -c ${SOURCE} -o ${OBJECT}
    DEPENDS ${SOURCE} ${CUDA_HEADERS} ${CMAKE_SOURCE_DIR}/native/cuda/nvcc.cmake
    COMMENT "Compiling CUDA kernels ${NAME}.cu" VERBATIM)
  list(APPEND CUDA_OBJECTS ${OBJECT})
endforeach()

add_library(alps_cuda SHARED ${CUDA_CC} ${CUDA_OBJECTS})
set_source_files_properties(${CUDA_OBJECTS} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
target_include_directories(alps_cuda PRIVATE native)
target_include_directories(alps_cuda SYSTEM PRIVATE ${ALPS_CUDA_INCLUDE})
target_compile_options(alps_cuda PRIVATE -Wall -Wextra -Werror)
target_link_libraries(alps_cuda PRIVATE ${ALPS_cudart_static} ${ALPS_cublas} ${ALPS_cublasLt} pthread rt ${CMAKE_DL_LIBS})
# The addon opens cuBLAS before this library (native/core/cuda_library.cc), so no folder of this machine is written into it.
set_target_properties(alps_cuda PROPERTIES SKIP_BUILD_RPATH TRUE)
target_link_options(alps_cuda PRIVATE -Wl,--no-undefined)
stays_loaded(alps_cuda)
