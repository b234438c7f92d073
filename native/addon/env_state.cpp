#include "native/addon/env_state.h"

#include <string>
#include <utility>

#include "native/addon/handles.h"
#include "native/core/runtime/registry.h"

namespace lowrank::addon {

Graveyard::~Graveyard() {
  // The remaining references ended with their environment. Only their places must be freed here.
  for (Grave* grave = TakeAll(); grave != nullptr;) delete std::exchange(grave, grave->next);
}

void Graveyard::Bury(std::unique_ptr<Grave> grave) {
  const std::lock_guard<std::mutex> lock(mutex_);
  grave->next = first_;
  first_ = grave.release();
}

Graveyard::Grave* Graveyard::TakeAll() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(first_, nullptr);
}

void Graveyard::DeleteBuried(napi_env env) {
  for (Grave* grave = TakeAll(); grave != nullptr;) {
    napi_delete_reference(env, grave->reference);
    delete std::exchange(grave, grave->next);
  }
}

EnvState::EnvState(Napi::Env env)
    : env_(env),
      cancel_(std::make_shared<CancelToken>()),
      graveyard_(std::make_shared<Graveyard>()) {
  channel_ = decltype(channel_)::New(env, "lowrank", 0, 1, this);
  channel_.Unref(env);
  array_buffer_ = Napi::Persistent(env.Global().Get("ArrayBuffer").As<Napi::Function>());
  // Added after the channel, so it runs before the channel's own teardown.
  env.AddCleanupHook(&EnvState::OnTeardown, this);
}

EnvState& EnvState::Of(Napi::Env env) { return *env.GetInstanceData<EnvState>(); }

void EnvState::Abandon() {
  cancel_->Cancel();
  DropQueued(cancel_.get());
}

// worker.terminate(), or the end of the process: after this no thread of the addon touches the
// environment again.
void EnvState::OnTeardown(EnvState* state) {
  state->Abandon();
  state->cancel_->WaitIdle();
  state->pending_.clear();
  state->channel_.Abort();
  state->graveyard_->DeleteBuried(state->env_);
}

Napi::ArrayBuffer EnvState::NewBuffer(Napi::Env env, size_t bytes) {
  Napi::Value buffer;
  // Node-API aborts the process if there is no memory; the constructor throws a RangeError.
  try {
    buffer = array_buffer_.New({Napi::Number::New(env, static_cast<double>(bytes))});
  } catch (const Napi::Error&) {
    buffer = Napi::Value();
  }
  const bool made = !buffer.IsEmpty() && buffer.IsArrayBuffer() &&
                    buffer.As<Napi::ArrayBuffer>().ByteLength() == bytes;
  if (!made) {
    Throw(env, Code::kOom,
          "read: no memory for an ArrayBuffer of " + std::to_string(bytes) + " bytes");
  }
  return buffer.As<Napi::ArrayBuffer>();
}

EnvState::Pending* EnvState::Expect(Napi::Env env, const Napi::Value& callback,
                                    const Napi::Value& target) {
  pending_.emplace_front();
  Pending* pending = &pending_.front();
  pending->self = pending_.begin();
  if (pending_.size() == 1) channel_.Ref(env);
  try {
    pending->callback = Napi::Persistent(callback.As<Napi::Function>());
    if (!target.IsEmpty()) pending->target = Napi::Persistent(target.As<Napi::Object>());
  } catch (...) {
    Forget(env, pending);
    throw;
  }
  return pending;
}

void EnvState::Settle(Pending* pending, const Status& outcome) noexcept {
  pending->outcome = outcome;
  // Fails only after Abort, when nobody waits any more.
  channel_.NonBlockingCall(pending);
}

void EnvState::Forget(Napi::Env env, Pending* pending) {
  pending_.erase(pending->self);
  if (pending_.empty()) channel_.Unref(env);
}

// In plain Node-API with failures ignored: an environment that is closing rejects any of these
// calls, and an exception here would end the process. What the callback itself throws stays
// pending, and Node reports it as uncaught.
void EnvState::Deliver(Napi::Env env, Napi::Function, EnvState* state, Pending* pending) {
  // A null env means that the channel is being emptied at teardown; OnTeardown has cleared
  // pending_.
  if (env == nullptr) return;
  const Status outcome = pending->outcome;
  napi_value callback = nullptr;
  napi_value self = nullptr;
  napi_value arguments[3] = {};
  const std::string& message = outcome.message();
  bool ready =
      napi_get_reference_value(env, pending->callback, &callback) == napi_ok &&
      napi_get_undefined(env, &self) == napi_ok &&
      napi_get_undefined(env, &arguments[2]) == napi_ok &&
      napi_create_string_utf8(env, message.data(), message.size(), &arguments[1]) == napi_ok;
  ready =
      ready && (outcome.ok() ? napi_get_null(env, &arguments[0])
                             : napi_create_string_utf8(env, CodeName(outcome.code()),
                                                       NAPI_AUTO_LENGTH, &arguments[0])) == napi_ok;
  if (outcome.ok() && !pending->target.IsEmpty()) {
    ready = ready && napi_get_reference_value(env, pending->target, &arguments[2]) == napi_ok;
  }
  state->Forget(env, pending);
  if (ready) napi_call_function(env, self, callback, 3, arguments, nullptr);
}

}  // namespace lowrank::addon
