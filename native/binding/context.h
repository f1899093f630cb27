// What one JavaScript environment (the main thread or a worker) holds: its streams, and the way back to its event loop.
#pragma once
#include <napi.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <set>

#include "core/stream.h"

namespace alps {

// A JavaScript value that is kept alive from a call until its result is posted. Let go of on the JavaScript thread, by
// Context::release or with the environment; destroying it on another thread touches nothing.
class Kept {
 public:
  explicit Kept(const Napi::Object& value) : reference_(Napi::Persistent(value)) { reference_.SuppressDestruct(); }
  Napi::Object value() const { return reference_.Value(); }

 private:
  friend class Context;
  Napi::ObjectReference reference_;
};

// What V8 is told of the tensors' memory, so that it collects those that nobody disposed. Each growth makes it look,
// which takes the event loop milliseconds, and most tensors live as long as that: it is told of growth by a step beyond
// what it was told before, and when half of that is gone. JavaScript thread only.
class ReportedMemory {
 public:
  void change(Napi::BasicEnv env, int64_t bytes) {
    live_ += bytes;
    int64_t step = std::max(smallestStep, reported_ / 4);
    if (live_ < reported_ + step && live_ >= reported_ / 2) return;
    Napi::MemoryManagement::AdjustExternalMemory(env, live_ - reported_);
    reported_ = live_;
  }

 private:
  static constexpr int64_t smallestStep = int64_t{64} << 20;
  int64_t live_ = 0, reported_ = 0;
};

class Context : public std::enable_shared_from_this<Context> {
 public:
  static std::shared_ptr<Context> create(Napi::Env env);
  static std::shared_ptr<Context>& of(Napi::Env env);

  void addStream(const std::shared_ptr<Stream>& stream) { streams_.insert(stream); }
  void removeStream(const std::shared_ptr<Stream>& stream) { streams_.erase(stream); }

  // JavaScript thread.
  std::shared_ptr<Kept> keep(const Napi::Object& value) { return *kept_.insert(std::make_shared<Kept>(value)).first; }
  void release(const std::shared_ptr<Kept>& kept);

  // Outlives the context where a tensor's finalizer does.
  const std::shared_ptr<ReportedMemory>& memory() const { return memory_; }

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
  std::set<std::shared_ptr<Kept>> kept_;       // JavaScript thread only
  std::shared_ptr<ReportedMemory> memory_ = std::make_shared<ReportedMemory>();
};

// The memory of a JavaScript typed array, kept alive while native code reads or writes it.
struct Pin {
  std::shared_ptr<Kept> kept;
  void* data;
};

}  // namespace alps
