// What one JavaScript environment (the main thread or a worker) holds: its streams, and the way back to its event loop.
#pragma once
#include <napi.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <set>

#include "core/stream.h"

namespace alps {

class Context : public std::enable_shared_from_this<Context> {
 public:
  static std::shared_ptr<Context> create(Napi::Env env);
  static std::shared_ptr<Context>& of(Napi::Env env);

  void addStream(const std::shared_ptr<Stream>& stream) { streams_.insert(stream); }
  void removeStream(const std::shared_ptr<Stream>& stream) { streams_.erase(stream); }

  // JavaScript thread: a result is awaited, so the event loop stays alive until it is posted.
  void expectPost(Napi::Env env);
  // Any thread: runs `callback` on the JavaScript thread, if there still is one. Pairs with expectPost().
  void post(std::function<void(Napi::Env)> callback);

 private:
  struct Posted {
    std::function<void(Napi::Env)> callback;
  };
  static void callJs(Napi::Env env, Napi::Function, Context* context, Posted* posted);
  using Channel = Napi::TypedThreadSafeFunction<Context, Posted, callJs>;

  void close();

  std::mutex mutex_;
  bool open_ = true;                           // guarded by mutex_
  Channel channel_;                            // guarded by mutex_ once open
  int expected_ = 0;                           // JavaScript thread only
  std::set<std::shared_ptr<Stream>> streams_;  // JavaScript thread only
};

// Keeps a JavaScript typed array alive while native code reads or writes it. Released on the JavaScript thread, or with
// its environment; destroying it on another thread touches nothing.
class Pin {
 public:
  Pin(Napi::Env env, const Napi::TypedArray& array);
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  // JavaScript thread.
  void release() { reference_.Reset(); }

 private:
  Napi::ObjectReference reference_;
  void* data_;
  size_t bytes_;
};

}  // namespace alps
