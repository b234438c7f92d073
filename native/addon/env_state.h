/// The state that one JavaScript environment (the main thread, or a worker) owns: its work in
/// flight, and the way back to its thread.
#pragma once

#include <napi.h>

#include <list>
#include <memory>
#include <mutex>

#include "native/core/runtime/backend.h"

namespace lowrank::addon {

/// References to JavaScript objects that native memory no longer needs. Any thread may bury one;
/// they are deleted on the JS thread. All memory that will bury references shares this object, so
/// the order in which memory and environment go does not matter.
class Graveyard {
 public:
  /// One reference and its place here, so that burying, which destructors do, needs no memory.
  struct Grave {
    napi_ref reference = nullptr;
    Grave* next = nullptr;
  };

  Graveyard() = default;
  ~Graveyard();
  Graveyard(const Graveyard&) = delete;
  Graveyard& operator=(const Graveyard&) = delete;

  void Bury(std::unique_ptr<Grave> grave);
  void DeleteBuried(napi_env env);

 private:
  Grave* TakeAll();

  std::mutex mutex_;
  Grave* first_ = nullptr;
};

class EnvState {
 public:
  /// One `read()` or `synchronize()` that waits for its queue.
  struct Pending {
    Napi::FunctionReference callback;  // (code: string | null, message: string) => void
    Napi::ObjectReference target;      // the buffer that the bytes go into; passed to the callback
    Status outcome;                    // written by Settle
    std::list<Pending>::iterator self;
  };

  explicit EnvState(Napi::Env env);
  ~EnvState() = default;
  EnvState(const EnvState&) = delete;
  EnvState& operator=(const EnvState&) = delete;

  static EnvState& Of(Napi::Env env);

  const CancelPtr& cancel() const { return cancel_; }
  const std::shared_ptr<Graveyard>& graveyard() const { return graveyard_; }

  /// An ArrayBuffer that nobody else knows, so it cannot be detached or shrunk while a queue writes
  /// to it. Throws ERR_OOM.
  Napi::ArrayBuffer NewBuffer(Napi::Env env, size_t bytes);

  /// Keeps both, and the event loop alive, until Settle or Forget. `target` may be empty.
  Pending* Expect(Napi::Env env, const Napi::Value& callback, const Napi::Value& target);
  /// Calls the callback on the JS thread. May be called from any thread, once; never throws.
  void Settle(Pending* pending, const Status& outcome) noexcept;
  /// Drops one that was never queued.
  void Forget(Napi::Env env, Pending* pending);

  /// Stops the work of this environment: running kernels at their next tile, queued ops at once.
  void Abandon();

 private:
  static void Deliver(Napi::Env env, Napi::Function unused, EnvState* state, Pending* pending);
  static void OnTeardown(EnvState* state);

  Napi::Env env_;
  CancelPtr cancel_;
  std::shared_ptr<Graveyard> graveyard_;
  Napi::TypedThreadSafeFunction<EnvState, Pending, &EnvState::Deliver> channel_;
  std::list<Pending> pending_;            // JS thread only
  Napi::FunctionReference array_buffer_;  // the constructor, which unlike Node-API's can fail
};

}  // namespace lowrank::addon
