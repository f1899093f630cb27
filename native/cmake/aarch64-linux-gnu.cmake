# Toolchain file: the addon for 64-bit ARM, compiled on another machine by Debian's cross compiler. ALPS_SYSROOT is a folder with Debian's
# arm64 packages of oneDNN and OpenBLAS unpacked in it; scripts/cross-arm64.mjs makes one.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ALPS_SYSROOT)
set(CMAKE_FIND_ROOT_PATH ${ALPS_SYSROOT})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(LIBRARIES ${ALPS_SYSROOT}/usr/lib/aarch64-linux-gnu)
# Without Debian's alternatives system there is no link to OpenBLAS in the usual folder.
set(CMAKE_LIBRARY_PATH ${LIBRARIES} ${LIBRARIES}/openblas-pthread)
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-Wl,-rpath-link,${LIBRARIES}")
