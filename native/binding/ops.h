// One template makes a JavaScript function of any op of core/backend.h: (stream, ...arguments) => undefined.
// Arguments are converted by type, checked by core/check.h, and the op is put on the stream.
#pragma once
#include <napi.h>

#include <chrono>
#include <tuple>
#include <utility>

#include "binding/handles.h"
#include "core/check.h"

namespace alps {

inline void convert(const Napi::Value& value, double& out) {
  require(value.IsNumber(), "Expected a number");
  out = value.As<Napi::Number>().DoubleValue();
}
inline void convert(const Napi::Value& value, int64_t& out) {
  require(value.IsNumber(), "Expected an integer");
  out = value.As<Napi::Number>().Int64Value();
}
inline void convert(const Napi::Value& value, bool& out) {
  require(value.IsBoolean(), "Expected a boolean");
  out = value.As<Napi::Boolean>().Value();
}
inline void convert(const Napi::Value& value, std::string& out) {
  require(value.IsString(), "Expected a string");
  out = value.As<Napi::String>().Utf8Value();
}
inline void convert(const Napi::Value& value, Counts& out) {
  require(value.IsArray(), "Expected an array of counts");
  auto array = value.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); i++) {  // its length may change: an entry may be a getter
    int64_t count = 0;
    convert(array.Get(i), count);
    require(count >= 0, "Expected counts of at least 0");
    out.push_back(static_cast<uint64_t>(count));
  }
}
inline void convert(const Napi::Value& value, Pattern& out) {
  if (value.IsNull() || value.IsUndefined()) return;
  require(value.IsObject(), "Expected a pattern");
  convert(value.As<Napi::Object>().Get("keep"), out.kept);
  convert(value.As<Napi::Object>().Get("of"), out.group);
}

// A tensor that a stream works on.
inline Tensor tensorOn(const StreamHandle& stream, const Napi::Value& value) {
  TensorHandle& handle = unwrapTensor(value);
  require(handle.device == stream.device, "Expected a tensor of the stream's device");
  return handle.tensor;
}

inline void convertFor(const StreamHandle& stream, const Napi::Value& value, Tensor& out) {
  if (!value.IsNull() && !value.IsUndefined()) out = tensorOn(stream, value);
}
template <typename T>
void convertFor(const StreamHandle&, const Napi::Value& value, T& out) {
  convert(value, out);
}

// What of an op's arguments tells its cost, in a profile: tensors and integers.
inline std::string costOf(const Tensor& tensor) { return tensor.defined() ? describe(tensor) + ";" : "-;"; }
inline std::string costOf(const int64_t& value) { return std::to_string(value) + ";"; }
template <typename T>
std::string costOf(const T&) {
  return "";
}

// Under what a call counts in the device's profile; empty where the device is not profiled.
template <typename... Args>
std::string profileKey(const StreamHandle& handle, const char* op, const Args&... args) {
  if (!handle.device->profile.on()) return "";
  return handle.phase + "\t" + op + "\t" + (std::string() + ... + costOf(args));
}

// `work`, measured where it has a key.
template <typename Work>
std::function<void(Backend&)> profiled(const StreamHandle& handle, const std::string& key, Work work) {
  if (key.empty()) return work;
  return [&profile = handle.device->profile, key, work = std::move(work)](Backend& backend) {
    auto began = std::chrono::steady_clock::now();
    work(backend);
    backend.finish();
    profile.add(key, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count());
  };
}

template <auto Method, auto Check>
struct Op;

template <typename... Args, void (Backend::*Method)(Args...), auto Check>
struct Op<Method, Check> {
  static Napi::Value call(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      require(info.Length() == sizeof...(Args) + 1, "Expected ", sizeof...(Args) + 1, " arguments but received ",
              info.Length());
      StreamHandle& handle = unwrapStream(info[0]);
      std::tuple<Args...> arguments;
      fill(info, handle, arguments, std::index_sequence_for<Args...>{});
      std::apply(Check, arguments);
      std::string key = std::apply(
          [&](const Args&... args) { return profileKey(handle, static_cast<const char*>(info.Data()), args...); },
          arguments);
      handle.stream->enqueue(profiled(handle, key, [arguments = std::move(arguments)](Backend& backend) {
        std::apply([&](const Args&... args) { (backend.*Method)(args...); }, arguments);
      }));
      return info.Env().Undefined();
    });
  }

 private:
  template <size_t... I>
  static void fill(const Napi::CallbackInfo& info, const StreamHandle& stream, std::tuple<Args...>& arguments,
                   std::index_sequence<I...>) {
    (convertFor(stream, info[I + 1], std::get<I>(arguments)), ...);
  }
};

}  // namespace alps
