#include "native/addon/env_state.h"

#include <new>

namespace lowrank::addon {

EnvState::EnvState(Napi::Env env) : cancel_(std::make_shared<CancelToken>()) {
  channel_ = decltype(channel_)::New(env, "lowrank", 0, 1, this);
  channel_.Unref(env);
  // Added after the channel, so it runs before the channel's own teardown.
  env.AddCleanupHook(&EnvState::OnTeardown, this);
}

EnvState& EnvState::Of(Napi::Env env) { return *env.GetInstanceData<EnvState>(); }

// worker.terminate() or the end of the process: running kernels stop at their next tile, queued
// ones do nothing; after that no thread of ours touches this environment again.
void EnvState::OnTeardown(EnvState* state) {
  state->cancel_->Cancel();
  state->cancel_->WaitIdle();
  state->pending_.clear();
  state->channel_.Abort();
}

uint64_t EnvState::Expect(Napi::Env env, Pending pending) {
  const uint64_t id = next_id_++;
  if (pending_.empty()) channel_.Ref(env);
  pending_.emplace(id, std::move(pending));
  return id;
}

void EnvState::Settle(uint64_t id, const Status& status) {
  Settled* settled = new (std::nothrow) Settled{id, status};
  if (settled == nullptr) return;
  if (channel_.NonBlockingCall(settled) != napi_ok) delete settled;
}

void EnvState::Forget(Napi::Env env, uint64_t id) {
  pending_.erase(id);
  if (pending_.empty()) channel_.Unref(env);
}

void EnvState::Deliver(Napi::Env env, Napi::Function, EnvState* state, Settled* settled) {
  const std::unique_ptr<Settled> owned(settled);
  // A null env means that the queue is being emptied at teardown; OnTeardown has cleared pending_.
  if (env == nullptr) return;
  const auto found = state->pending_.find(owned->id);
  if (found == state->pending_.end()) return;
  Pending pending = std::move(found->second);
  state->Forget(env, owned->id);
  const Napi::HandleScope scope(env);
  const Status& status = owned->status;
  pending.callback.Call({
      status.ok() ? env.Null() : Napi::String::New(env, CodeName(status.code())).As<Napi::Value>(),
      Napi::String::New(env, status.message()),
  });
}

void EnvState::Bury(napi_ref reference) {
  const std::lock_guard<std::mutex> lock(buried_mutex_);
  buried_.push_back(reference);
}

void EnvState::DeleteBuried(Napi::Env env) {
  const std::lock_guard<std::mutex> lock(buried_mutex_);
  for (napi_ref reference : buried_) napi_delete_reference(env, reference);
  buried_.clear();
}

}  // namespace lowrank::addon
