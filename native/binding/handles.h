// Tensors and streams as JavaScript sees them: opaque handles. The classes around them are made in TypeScript
// (src/device).
#pragma once
#include <napi.h>

#include <atomic>
#include <memory>

#include "binding/context.h"
#include "core/stream.h"

namespace alps {

struct DeviceHandle {
  std::shared_ptr<DeviceThread> thread;
};

struct StreamHandle {
  std::shared_ptr<DeviceThread> device;
  std::shared_ptr<Stream> stream;
  std::string phase = {};  // of what is queued from here on, in a profile
};

// When a stream got to a place in its queue.
struct MarkHandle {
  std::shared_ptr<std::atomic<double>> milliseconds;
};

struct TensorHandle {
  Tensor tensor;
  std::shared_ptr<DeviceThread> device;  // whose memory it is
  bool disposed = false;
  std::shared_ptr<ReportedMemory> memory = {};  // which counts its bytes; null for views
};

inline constexpr napi_type_tag deviceTag = {0x616c70732d707275, 0x6e652d6465766963};
inline constexpr napi_type_tag streamTag = {0x616c70732d707275, 0x6e652d7374726561};
inline constexpr napi_type_tag tensorTag = {0x616c70732d707275, 0x6e652d74656e736f};
inline constexpr napi_type_tag markTag = {0x616c70732d707275, 0x6e652d6d61726b00};

// The native object behind a handle; INVALID_ARGUMENT when the value is no such handle.
template <typename Handle>
Handle& unwrap(const Napi::Value& value, const napi_type_tag& tag, const char* what) {
  if (!value.IsExternal() || !value.As<Napi::External<Handle>>().CheckTypeTag(&tag))
    fail("INVALID_ARGUMENT", "Expected a ", what, " handle");
  return *value.As<Napi::External<Handle>>().Data();
}

inline DeviceHandle& unwrapDevice(const Napi::Value& v) { return unwrap<DeviceHandle>(v, deviceTag, "device"); }
inline StreamHandle& unwrapStream(const Napi::Value& v) { return unwrap<StreamHandle>(v, streamTag, "stream"); }

inline TensorHandle& unwrapTensor(const Napi::Value& v) {
  TensorHandle& handle = unwrap<TensorHandle>(v, tensorTag, "tensor");
  if (handle.disposed) fail("DISPOSED", "The tensor was disposed");
  return handle;
}

// In an environment that is being terminated it cannot be made: then `handle` is freed here, and with it what it holds.
template <typename Handle, typename Finalizer>
Napi::Value wrapOwned(Napi::Env env, std::unique_ptr<Handle> handle, const napi_type_tag& tag, Finalizer finalizer) {
  auto external = Napi::External<Handle>::New(env, handle.get(), finalizer);
  handle.release();  // the finalizer's from here on
  external.TypeTag(&tag);
  return external;
}

template <typename Handle>
Napi::Value wrap(Napi::Env env, Handle* handle, const napi_type_tag& tag) {
  return wrapOwned(env, std::unique_ptr<Handle>(handle), tag, [](Napi::BasicEnv, Handle* h) { delete h; });
}

// An error as TypeScript turns it into an AlpsError: an Error with a code.
inline Napi::Error toJs(Napi::Env env, const Error& error) {
  Napi::Error js = Napi::Error::New(env, error.what());
  js.Value().Set("code", error.code());
  return js;
}

// Runs a binding's body; native errors leave it as JavaScript errors with a code.
template <typename Body>
Napi::Value guarded(Napi::Env env, const Body& body) {
  try {
    return body();
  } catch (const Error& error) {
    throw toJs(env, error);
  } catch (const std::bad_alloc&) {
    throw toJs(env, Error("OUT_OF_MEMORY", "The system has no memory left"));
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::exception& error) {
    throw toJs(env, Error("INTERNAL", error.what()));
  }
}

}  // namespace alps
