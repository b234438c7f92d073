/// Waits for a device's queue: by a callback, or by blocking the thread.
#pragma once

#include <napi.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "native/addon/handles.h"

namespace lowrank::addon {

/// Bytes in transit from one queue to another: filled once, then taken.
class Parcel {
 public:
  explicit Parcel(size_t bytes) : bytes_(new uint8_t[bytes == 0 ? 1 : bytes]) {}
  uint8_t* data() { return bytes_.get(); }

  void Seal(const Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    status_ = status;
    sealed_ = true;
    ready_.notify_all();
  }
  bool AwaitFor(std::chrono::milliseconds time) {
    std::unique_lock<std::mutex> lock(mutex_);
    return ready_.wait_for(lock, time, [this] { return sealed_; });
  }
  Status Await() {
    std::unique_lock<std::mutex> lock(mutex_);
    ready_.wait(lock, [this] { return sealed_; });
    return status_;
  }

 private:
  std::unique_ptr<uint8_t[]> bytes_;
  std::mutex mutex_;
  std::condition_variable ready_;
  bool sealed_ = false;
  Status status_;
};

/// Queues work that reports to `callback`: queue(done) -> Status.
template <typename QueueFn>
void QueueWithCallback(Napi::Env env, const Napi::Value& callback, const Napi::Value& target,
                       const QueueFn& queue) {
  if (!callback.IsFunction()) {
    ThrowIfError(env, Refuse(Code::kType, "addon", "callback", "a function", "another value"));
  }
  EnvState& state = EnvState::Of(env);
  EnvState::Pending* pending = state.Expect(env, callback, target);
  Status status;
  try {
    // Runs before the environment's teardown ends, which waits for everything queued.
    status = queue([&state, pending](const Status& outcome) { state.Settle(pending, outcome); });
  } catch (...) {
    state.Forget(env, pending);
    throw;
  }
  if (status.ok()) return;
  state.Forget(env, pending);
  ThrowIfError(env, status);
}

/// False once the environment is being terminated: it then rejects any call that may run
/// JavaScript.
inline bool MayRunScript(Napi::Env env) {
  napi_value truth = nullptr;
  return napi_coerce_to_bool(env, env.Null(), &truth) == napi_ok;
}

/// Blocks until the parcel is sealed. False if the environment went away in the meantime.
inline Napi::Value AwaitParcel(Napi::Env env, Parcel* arrival) {
  // worker.terminate() cannot interrupt this wait, so it checks regularly whether the environment
  // is closing.
  while (!arrival->AwaitFor(std::chrono::milliseconds(10))) {
    if (!MayRunScript(env)) {
      EnvState::Of(env).Abandon();
      arrival->Await();
      return Napi::Boolean::New(env, false);
    }
  }
  ThrowIfError(env, arrival->Await());
  return Napi::Boolean::New(env, true);
}

}  // namespace lowrank::addon
