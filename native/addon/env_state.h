/// What one JavaScript environment (the main thread, or a worker) owns: its work in flight, and the
/// way back to its thread.
#pragma once

#include <napi.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "native/core/backend.h"

namespace lowrank::addon {

/// One `read()` or `synchronize()` that waits for its queue. Lives and dies on the JS thread.
struct Pending {
  Napi::FunctionReference callback;  // (code: string | null, message: string) => void
  Napi::ObjectReference target;      // the array that the bytes go into, kept alive
};

class EnvState {
 public:
  explicit EnvState(Napi::Env env);
  ~EnvState() = default;
  EnvState(const EnvState&) = delete;
  EnvState& operator=(const EnvState&) = delete;

  static EnvState& Of(Napi::Env env);

  const CancelPtr& cancel() const { return cancel_; }

  /// Keeps `pending` until Settle; returns its id. Keeps the event loop alive meanwhile.
  uint64_t Expect(Napi::Env env, Pending pending);
  /// From any thread, any number of times in flight: calls the callback on the JS thread.
  void Settle(uint64_t id, const Status& status);
  /// Drops one that was never queued.
  void Forget(Napi::Env env, uint64_t id);

  /// From any thread: a reference to a JavaScript object that native memory no longer needs. It is
  /// deleted on the JS thread, at the next call into the addon.
  void Bury(napi_ref reference);
  void DeleteBuried(Napi::Env env);

 private:
  struct Settled {
    uint64_t id;
    Status status;
  };
  static void Deliver(Napi::Env env, Napi::Function unused, EnvState* state, Settled* settled);
  static void OnTeardown(EnvState* state);

  CancelPtr cancel_;
  Napi::TypedThreadSafeFunction<EnvState, Settled, &EnvState::Deliver> channel_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Pending> pending_;  // JS thread only
  std::mutex buried_mutex_;
  std::vector<napi_ref> buried_;
};

}  // namespace lowrank::addon
