#include "binding/memory.h"

#include <sys/file.h>

#include <cerrno>
#include <chrono>
#include <limits>

#include "binding/handles.h"
#include "binding/ops.h"

namespace alps {

namespace {

Napi::Object objectOf(const Napi::Value& value, const char* what) {
  require(value.IsObject(), "Expected an object of ", what);
  return value.As<Napi::Object>();
}

CudaLocation cudaLocation(const Napi::Value& value) {
  Napi::Object object = objectOf(value, "kernels and folders");
  CudaLocation where;
  convert(object.Get("kernels"), where.kernels);
  Napi::Value list = object.Get("folders");
  require(list.IsArray(), "Expected an array of folders");
  auto folders = list.As<Napi::Array>();
  for (uint32_t i = 0; i < folders.Length(); i++) {
    std::string folder;
    convert(folders.Get(i), folder);
    where.folders.push_back(folder);
  }
  return where;
}

}  // namespace

Napi::Value probeCudaDevices(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    std::vector<CudaAttempt> attempts;
    CudaProbe probe = probeCuda(cudaLocation(info[0]), attempts);
    auto object = Napi::Object::New(info.Env());
    auto devices = Napi::Array::New(info.Env());
    for (const CudaDevice& device : probe.devices) {
      auto entry = Napi::Object::New(info.Env());
      entry.Set("name", device.name);
      entry.Set("capability", device.capability);
      entry.Set("memory", static_cast<double>(device.memory));
      devices.Set(devices.Length(), entry);
    }
    auto tried = Napi::Array::New(info.Env());
    for (const CudaAttempt& attempt : attempts) {
      auto entry = Napi::Object::New(info.Env());
      entry.Set("what", attempt.what);
      entry.Set("outcome", attempt.outcome);
      tried.Set(tried.Length(), entry);
    }
    object.Set("devices", devices);
    object.Set("driver", probe.driver);
    object.Set("runtime", probe.runtime);
    object.Set("failure", probe.failure);
    object.Set("tried", tried);
    return object;
  });
}

Napi::Value openDeviceHandle(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    std::string name;
    convert(info[0], name);
    Napi::Object object = objectOf(info[1], "options");
    BackendOptions options;
    int64_t threads = 0, limit = 0;
    convert(object.Get("threads"), threads);
    convert(object.Get("memoryLimit"), limit);
    convert(object.Get("isa"), options.isa);
    require(threads >= 0 && threads <= largestThreads, "Expected 0 to ", largestThreads, " threads but received ",
            threads);
    require(limit >= 0, "Expected a memory limit of at least 0 but received ", limit);
    options.threads = static_cast<int>(threads);
    options.memoryLimit = static_cast<uint64_t>(limit);
    return wrap(info.Env(), new DeviceHandle{openDevice(name, options, cudaLocation(info[2]))}, deviceTag);
  });
}

Napi::Value claimExit(const Napi::CallbackInfo& info) {
  static std::atomic<bool> claimed{false};
  return Napi::Boolean::New(info.Env(), !claimed.exchange(true));
}

// By flock(2): the system lets go of it with the last descriptor of its opening, whatever ends the process.
Napi::Value lockFile(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    int64_t descriptor = -1;
    convert(info[0], descriptor);
    require(descriptor >= 0 && descriptor <= std::numeric_limits<int>::max(),
            "Expected a file descriptor but received ", descriptor);
    const bool locked = flock(static_cast<int>(descriptor), LOCK_EX | LOCK_NB) == 0;
    const char* state = locked ? "locked" : errno == EWOULDBLOCK ? "held" : "unknown";
    return Napi::String::New(info.Env(), state);
  });
}

Napi::Value stopAllDevices(const Napi::CallbackInfo& info) {
  stopDevices();
  return info.Env().Undefined();
}

Napi::Value deviceInfo(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    DeviceInfo device = unwrapDevice(info[0]).thread->backend().info();
    auto object = Napi::Object::New(info.Env());
    object.Set("name", device.name);
    object.Set("details", device.details);
    object.Set("isa", device.isa);
    object.Set("bf16Products", device.bf16Products);
    object.Set("int8Products", device.int8Products);
    object.Set("threads", device.threads);
    object.Set("memoryLimit", static_cast<double>(device.memoryLimit));
    object.Set("memoryUsed", static_cast<double>(device.memoryUsed));
    object.Set("memoryPeak", static_cast<double>(device.memoryPeak));
    return object;
  });
}

Napi::Value resetPeak(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    unwrapDevice(info[0]).thread->backend().resetPeak();
    return info.Env().Undefined();
  });
}

Napi::Value profileDevice(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    bool on = false;
    convert(info[1], on);
    auto list = Napi::Array::New(info.Env());
    for (const auto& [key, entry] : unwrapDevice(info[0]).thread->profile.take(on)) {
      auto object = Napi::Object::New(info.Env());
      object.Set("key", key);
      object.Set("calls", static_cast<double>(entry.calls));
      object.Set("milliseconds", entry.milliseconds);
      list.Set(list.Length(), object);
    }
    return list;
  });
}

Napi::Value openStream(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto device = unwrapDevice(info[0]).thread;
    auto stream = std::make_shared<Stream>(device);
    Context::of(info.Env())->addStream(stream);
    return wrap(info.Env(), new StreamHandle{device, stream}, streamTag);
  });
}

Napi::Value cancelStream(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    unwrapStream(info[0]).stream->cancel();
    return info.Env().Undefined();
  });
}

Napi::Value setPhase(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    convert(info[1], unwrapStream(info[0]).phase);
    return info.Env().Undefined();
  });
}

// A GPU is waited for, as it would be at a sync, but nobody has to be told.
Napi::Value markStream(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto& stream = unwrapStream(info[0]).stream;
    auto time = std::make_shared<std::atomic<double>>(std::numeric_limits<double>::quiet_NaN());
    stream->enqueue([](Backend& backend) { backend.finish(); });
    stream->enqueueAlways([time] {
      *time = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
    });
    return wrap(info.Env(), new MarkHandle{time}, markTag);
  });
}

Napi::Value markedTime(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const MarkHandle& mark = unwrap<MarkHandle>(info[0], markTag, "mark");
    return Napi::Number::New(info.Env(), *mark.milliseconds);
  });
}

// Queued ops keep their tensors alive until they have run, so a stream that is let go of still does its work.
Napi::Value closeStream(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto stream = unwrapStream(info[0]).stream;
    auto context = Context::of(info.Env());
    context->expectPost(info.Env());
    stream->settle([stream, context](Backend&, const std::optional<Error>&) {
      context->post([stream, context](Napi::Env) { context->removeStream(stream); });
    });
    return info.Env().Undefined();
  });
}

namespace {

std::vector<int64_t> shapeOf(const Counts& sizes, const std::string& label) {
  std::vector<int64_t> shape;
  uint64_t elements = 1;
  for (uint64_t d : sizes) {
    require(d == 0 || elements <= (uint64_t{1} << 52) / d, "Expected fewer than 2^52 elements for ", label);
    elements *= d;
    shape.push_back(static_cast<int64_t>(d));
  }
  return shape;
}

}  // namespace

Napi::Value makeTensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    DeviceHandle& device = unwrapDevice(info[0]);
    std::string dtype, label;
    Counts shape;
    bool zero = true;
    convert(info[1], dtype);
    convert(info[2], shape);
    convert(info[3], label);
    convert(info[4], zero);
    auto handle = std::make_unique<TensorHandle>();
    Tensor& tensor = handle->tensor;
    handle->device = device.thread;
    tensor.dtype = parseDType(dtype);
    tensor.shape = shapeOf(shape, label);
    try {
      tensor.storage = device.thread->backend().allocate(tensor.bytes(), zero ? Contents::zero : Contents::any);
    } catch (const Error& error) {
      fail(error.code().c_str(), "Could not allocate ", label.empty() ? "a tensor" : label, ", ", describe(tensor),
           ": ", error.what());
    }
    handle->memory = Context::of(info.Env())->memory();
    auto [memory, bytes] = std::pair{handle->memory, static_cast<int64_t>(tensor.bytes())};
    auto external = wrapOwned(info.Env(), std::move(handle), tensorTag, [](Napi::BasicEnv env, TensorHandle* h) {
      if (!h->disposed) h->memory->change(env, -static_cast<int64_t>(h->tensor.bytes()));
      delete h;
    });
    memory->change(info.Env(), bytes);
    return external;
  });
}

Napi::Value viewTensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    int64_t first = 0;
    Counts shape;
    convert(info[1], first);
    convert(info[2], shape);
    const TensorHandle& whole = unwrapTensor(info[0]);  // last: an entry of the shape may be a getter that disposes it
    const Tensor& from = whole.tensor;
    auto handle = std::make_unique<TensorHandle>();
    handle->device = whole.device;
    Tensor& tensor = handle->tensor;
    tensor = from;
    tensor.shape = shapeOf(shape, "a view");
    require(first >= 0 && first <= from.size() && tensor.size() <= from.size() - first, "Expected a view inside ",
            describe(from), " but received ", describe(tensor), " at element ", first);
    tensor.byteOffset += static_cast<size_t>(first) * sizeOf(from.dtype);
    return wrap(info.Env(), handle.release(), tensorTag);
  });
}

Napi::Value disposeTensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    TensorHandle& handle = unwrap<TensorHandle>(info[0], tensorTag, "tensor");
    if (!handle.disposed) {
      handle.disposed = true;
      handle.tensor.storage.reset();
      if (handle.memory) handle.memory->change(info.Env(), -static_cast<int64_t>(handle.tensor.bytes()));
    }
    return info.Env().Undefined();
  });
}

namespace {

Pin pin(const Napi::CallbackInfo& info, size_t index, const Tensor& tensor) {
  require(info[index].IsTypedArray(), "Expected a typed array");
  auto array = info[index].As<Napi::TypedArray>();
  require(array.ArrayBuffer().IsArrayBuffer(), "Expected a typed array over an ArrayBuffer");
  // Shrinking would take the memory away while the device's thread uses it.
  require(!array.ArrayBuffer().Get("resizable").ToBoolean(), "Expected an array of fixed length");
  require(array.ByteLength() == tensor.bytes(), "Expected ", tensor.bytes(), " bytes for ", describe(tensor),
          " but received ", array.ByteLength());
  char* data = static_cast<char*>(array.ArrayBuffer().Data()) + array.ByteOffset();
  return {Context::of(info.Env())->keep(array), data};
}

// Calls back with null or an error when the stream gets here; `before` runs on the device's thread when there was no
// error.
void settleWith(const Napi::CallbackInfo& info, const std::shared_ptr<Stream>& stream, const Napi::Function& callback,
                std::function<void(Backend&)> before, std::shared_ptr<Kept> pinned) {
  auto context = Context::of(info.Env());
  auto function = context->keep(callback);
  context->expectPost(info.Env());
  stream->settle([context, function, before, pinned](Backend& backend, const std::optional<Error>& error) mutable {
    std::optional<Error> failure = error;
    if (!failure && before) {
      try {
        before(backend);
      } catch (const Error& thrown) {
        failure = thrown;
      } catch (const std::exception& thrown) {
        failure = Error("INTERNAL", thrown.what());
      }
    }
    before = nullptr;  // what it holds of the device goes back before the caller knows that it is done
    context->post([context, function, pinned, failure](Napi::Env env) {
      if (pinned) context->release(pinned);
      auto call = function->value().As<Napi::Function>();
      context->release(function);
      call.Call({failure ? toJs(env, *failure).Value() : env.Null()});
    });
  });
}

}  // namespace

Napi::Value writeTensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const StreamHandle& handle = unwrapStream(info[0]);
    auto stream = handle.stream;
    Tensor tensor = tensorOn(handle, info[1]);
    auto pinned = pin(info, 2, tensor);
    auto context = Context::of(info.Env());
    context->expectPost(info.Env());
    // A settle, not an op: the pin is released even when an op before it has failed.
    stream->enqueue(profiled(handle, profileKey(handle, "upload", tensor),
                             [tensor, pinned](Backend& backend) { backend.upload(pinned.data, tensor); }));
    stream->enqueueAlways(
        [context, kept = pinned.kept] { context->post([context, kept](Napi::Env) { context->release(kept); }); });
    return info.Env().Undefined();
  });
}

Napi::Value readTensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const StreamHandle& handle = unwrapStream(info[0]);
    auto stream = handle.stream;
    Tensor tensor = tensorOn(handle, info[1]);
    auto pinned = pin(info, 2, tensor);
    require(info[3].IsFunction(), "Expected a callback");
    settleWith(info, stream, info[3].As<Napi::Function>(),
               profiled(handle, profileKey(handle, "download", tensor),
                        [tensor, pinned](Backend& backend) { backend.download(tensor, pinned.data); }),
               pinned.kept);
    return info.Env().Undefined();
  });
}

Napi::Value syncStream(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto stream = unwrapStream(info[0]).stream;
    require(info[1].IsFunction(), "Expected a callback");
    settleWith(info, stream, info[1].As<Napi::Function>(), nullptr, nullptr);
    return info.Env().Undefined();
  });
}

}  // namespace alps
