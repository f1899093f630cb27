# The sources of core and of the CPU backend, for the addon and for the native tests, each instruction set's with its flags. Expects NATIVE, this
# folder's parent; gives ALPS_SOURCES.
file(GLOB ALPS_SOURCES CONFIGURE_DEPENDS ${NATIVE}/core/*.cc ${NATIVE}/cpu/*.cc)
list(APPEND ALPS_SOURCES ${NATIVE}/cpu/kernels/scalar.cc)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  list(APPEND ALPS_SOURCES ${NATIVE}/cpu/kernels/avx2.cc ${NATIVE}/cpu/kernels/avx512.cc
    ${NATIVE}/cpu/kernels/avx512bf16.cc ${NATIVE}/cpu/kernels/avx512vnni.cc)
  set_source_files_properties(${NATIVE}/cpu/kernels/avx2.cc PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
  set_source_files_properties(${NATIVE}/cpu/kernels/avx512.cc PROPERTIES COMPILE_OPTIONS
    "-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mprefer-vector-width=512")
  set_source_files_properties(${NATIVE}/cpu/kernels/avx512bf16.cc PROPERTIES COMPILE_OPTIONS
    "-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512bf16;-mprefer-vector-width=512")
  set_source_files_properties(${NATIVE}/cpu/kernels/avx512vnni.cc PROPERTIES COMPILE_OPTIONS
    "-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mprefer-vector-width=512")
endif()
