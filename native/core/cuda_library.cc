#include "core/cuda_library.h"

#include <dlfcn.h>

#include <map>
#include <mutex>

#include "core/stream.h"

namespace alps {

namespace {

// What libalps_cuda.so names as needed; opened first, by path, so that the loader finds them already there. In the
// order of their dependence.
constexpr const char* neededLibraries[] = {"libcublasLt.so.13", "libcublas.so.13"};

struct Library {
  std::string failure;  // empty: open
  std::vector<CudaAttempt> attempts;
  AlpsCudaProbe* probe = nullptr;
  AlpsCudaOpen* open = nullptr;
};

std::string lastError() {
  const char* text = dlerror();
  return text ? text : "unknown error";
}

// Whether a library that is needed could be opened from some folder. It stays open for good.
bool openNeeded(const char* name, const CudaLocation& where, std::vector<CudaAttempt>& attempts) {
  for (const std::string& folder : where.folders) {
    std::string path = folder.empty() ? name : folder + "/" + name;
    std::string place = folder.empty() ? "on the system's search path" : "in " + folder;
    bool found = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr;
    attempts.push_back({std::string(name) + " " + place, found ? "found" : lastError()});
    if (found) return true;
  }
  return false;
}

template <typename Function>
Function* symbol(void* handle, const char* name, std::string& failure) {
  void* found = dlsym(handle, name);
  if (!found && failure.empty()) failure = lastError();
  return reinterpret_cast<Function*>(found);
}

Library openLibrary(const CudaLocation& where) {
  Library library;
  // Not all builds need them (the kernels on the processor do not): if one is missing, opening the kernels says so.
  for (const char* name : neededLibraries) openNeeded(name, where, library.attempts);
  void* handle = dlopen(where.kernels.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) library.failure = lastError();
  library.attempts.push_back({where.kernels, handle ? "found" : library.failure});
  if (!handle) return library;
  auto* version = symbol<AlpsCudaVersion>(handle, "alpsCudaVersion", library.failure);
  library.probe = symbol<AlpsCudaProbe>(handle, "alpsCudaProbe", library.failure);
  library.open = symbol<AlpsCudaOpen>(handle, "alpsCudaOpen", library.failure);
  if (library.failure.empty() && version() != cudaInterfaceVersion)
    library.failure = where.kernels + " was built for another version of the addon";
  return library;
}

// Once a process and path; never closed.
const Library& libraryAt(const CudaLocation& where) {
  static auto* mutex = new std::mutex;
  static auto* libraries = new std::map<std::pair<std::string, std::vector<std::string>>, Library>;
  std::lock_guard lock(*mutex);
  auto key = std::pair(where.kernels, where.folders);
  auto found = libraries->find(key);
  if (found == libraries->end()) found = libraries->emplace(key, openLibrary(where)).first;
  return found->second;
}

}  // namespace

CudaProbe probeCuda(const CudaLocation& where, std::vector<CudaAttempt>& attempts) {
  const Library& library = libraryAt(where);
  attempts = library.attempts;
  CudaProbe probe;
  if (!library.failure.empty())
    probe.failure = library.failure;
  else
    library.probe(probe);
  return probe;
}

std::shared_ptr<Backend> openCudaBackend(int device, const BackendOptions& options, const CudaLocation& where) {
  const Library& library = libraryAt(where);
  std::string name = "cuda:" + std::to_string(device);
  if (!library.failure.empty()) fail("NO_DEVICE", "The device ", name, " cannot be used: ", library.failure);
  CudaProbe probe;
  library.probe(probe);
  if (!probe.failure.empty()) fail("NO_DEVICE", "The device ", name, " cannot be used: ", probe.failure);
  if (device >= static_cast<int>(probe.devices.size()))
    fail("NO_DEVICE", "There is no device ", name, ": the driver shows ", probe.devices.size(),
         probe.devices.size() == 1 ? " GPU" : " GPUs");
  std::shared_ptr<Backend> backend;
  library.open(device, options, CudaHost{runningCancelled}, backend);
  return backend;
}

}  // namespace alps
