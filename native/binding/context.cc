#include "binding/context.h"

namespace alps {

std::shared_ptr<Context>& Context::of(Napi::Env env) { return *env.GetInstanceData<std::shared_ptr<Context>>(); }

std::shared_ptr<Context> Context::create(Napi::Env env) {
  auto context = std::make_shared<Context>();
  context->channel_ = Channel::New(env, "alps", /* maxQueueSize = */ 0, /* initialThreadCount = */ 1, context.get());
  context->channel_.Unref(env);
  env.SetInstanceData(new std::shared_ptr<Context>(context));
  // Runs when a worker is terminated or the process exits: nothing may touch this environment's memory after that.
  env.AddCleanupHook([context] { context->close(); });
  return context;
}

void Context::close() {
  for (auto& stream : streams_) stream->close();
  streams_.clear();
  for (auto& kept : kept_) kept->reference_.Reset();  // no stream uses their memory any more
  kept_.clear();
  std::lock_guard lock(mutex_);
  open_ = false;
  channel_.Abort();
}

void Context::release(const std::shared_ptr<Kept>& kept) {
  kept->reference_.Reset();
  kept_.erase(kept);
}

void Context::expectPost(Napi::Env env) {
  if (expected_++ == 0) channel_.Ref(env);
}

void Context::post(std::function<void(Napi::Env)> callback) {
  std::lock_guard lock(mutex_);
  if (!open_) return;
  auto* posted = new Posted{std::move(callback)};
  if (channel_.NonBlockingCall(posted) != napi_ok) delete posted;
}

void Context::callJs(Napi::Env env, Napi::Function, Context* context, Posted* posted) {
  std::unique_ptr<Posted> owned(posted);
  if (env == nullptr) return;
  if (--context->expected_ == 0) context->channel_.Unref(env);
  Napi::HandleScope scope(env);
  try {
    posted->callback(env);
  } catch (const Napi::Error& error) {
    // A worker that is being terminated runs no JavaScript any more, and then this does nothing.
    error.ThrowAsJavaScriptException();
  }
}

}  // namespace alps
