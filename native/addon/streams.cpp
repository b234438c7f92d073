/// Streams and workspaces of the caller, on devices that support them.
#include "native/addon/bindings.h"
#include "native/addon/handles.h"
#include "native/addon/waiting.h"

namespace lowrank::addon {
namespace {

// useStream(device, handle | null)
Napi::Value UseStream(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "useStream";
  const Napi::Env env = info.Env();
  Backend* backend = BackendArg(info[0]);
  uint64_t handle = 0;
  if (IsPresent(info[1])) {
    bool lossless = false;
    if (!info[1].IsBigInt()) {
      ThrowIfError(env, Refuse(Code::kType, kOp, "stream", "a bigint or null", "something else"));
    }
    handle = info[1].As<Napi::BigInt>().Uint64Value(&lossless);
    if (!lossless || handle == 0) {
      ThrowIfError(env, Refuse(Code::kValue, kOp, "stream", "a non-null 64-bit handle",
                               std::to_string(handle)));
    }
  }
  ThrowIfError(env, backend->UseStream(reinterpret_cast<void*>(static_cast<uintptr_t>(handle)),
                                       EnvState::Of(env).cancel()));
  return env.Undefined();
}

// flush(device, callback)
Napi::Value Flush(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Backend* backend = BackendArg(info[0]);
  QueueWithCallback(env, info[1], Napi::Value(), [&](DoneFn done) {
    return backend->Flush(std::move(done), EnvState::Of(env).cancel());
  });
  return env.Undefined();
}

// flushSync(device): false if the environment went away in the meantime
Napi::Value FlushSync(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto arrival = std::make_shared<Parcel>(0);
  ThrowIfError(
      env, BackendArg(info[0])->Flush([arrival](const Status& outcome) { arrival->Seal(outcome); },
                                      EnvState::Of(env).cancel()));
  return AwaitParcel(env, arrival.get());
}

// workspaceBytes(device)
Napi::Value WorkspaceBytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(BackendArg(info[0])->WorkspaceBytes()));
}

// reserveWorkspace(device, bytes, callback)
Napi::Value ReserveWorkspace(const Napi::CallbackInfo& info) {
  constexpr const char* kOp = "reserveWorkspace";
  const Napi::Env env = info.Env();
  Backend* backend = BackendArg(info[0]);
  const double bytes = NumberArg(info[1], kOp, "bytes");
  if (!(bytes >= 0 && bytes <= 9007199254740991.0)) {
    ThrowIfError(env,
                 Refuse(Code::kValue, kOp, "bytes", "from 0 to 2^53 - 1", std::to_string(bytes)));
  }
  QueueWithCallback(env, info[2], Napi::Value(), [&](DoneFn done) {
    return backend->ReserveWorkspace(static_cast<int64_t>(bytes), std::move(done),
                                     EnvState::Of(env).cancel());
  });
  return env.Undefined();
}

constexpr napi_type_tag kRecordingTag = {0x3d5f90b27ae14c68ULL, 0xa20e7b61d4c935f8ULL};

RecordingPtr& RecordingOf(const Napi::Value& value) {
  if (value.IsExternal()) {
    const auto external = value.As<Napi::External<RecordingPtr>>();
    if (external.CheckTypeTag(&kRecordingTag)) return *external.Data();
  }
  ThrowIfError(value.Env(), Refuse(Code::kType, "captureStep", "the recording",
                                   "a handle of beginRecording", "another value"));
  return *value.As<Napi::External<RecordingPtr>>().Data();
}

// beginRecording(device): the ops of this thread are recorded from here to endRecording()
Napi::Value BeginRecording(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto recording = std::make_unique<RecordingPtr>();
  ThrowIfError(env, BackendArg(info[0])->BeginRecording(recording.get()));
  const auto external = Napi::External<RecordingPtr>::New(
      env, recording.release(), [](Napi::BasicEnv, RecordingPtr* held) { delete held; });
  external.TypeTag(&kRecordingTag);
  return external;
}

// endRecording(recording, discard): the launches of a run
Napi::Value EndRecording(const Napi::CallbackInfo& info) {
  const RecordingPtr& recording = RecordingOf(info[0]);
  ThrowIfError(info.Env(), recording->End(BoolArg(info[1])));
  return Napi::Number::New(info.Env(), static_cast<double>(recording->launches()));
}

// replay(recording): queues one run
Napi::Value Replay(const Napi::CallbackInfo& info) {
  const RecordingPtr& recording = RecordingOf(info[0]);
  if (recording == nullptr) {
    ThrowIfError(info.Env(), Refuse(Code::kDisposed, "replay", "the step", "live", "disposed"));
  }
  ThrowIfError(info.Env(), recording->Replay(EnvState::Of(info.Env()).cancel()));
  return info.Env().Undefined();
}

// disposeRecording(recording): twice is a no-op
Napi::Value DisposeRecording(const Napi::CallbackInfo& info) {
  RecordingOf(info[0]).reset();
  return info.Env().Undefined();
}

// launches(device): kernels and graphs so far
Napi::Value Launches(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(BackendArg(info[0])->Launches()));
}

}  // namespace

void RegisterStreams(Napi::Env env, Napi::Object exports) {
  Export<UseStream>(env, exports, "useStream");
  Export<Flush>(env, exports, "flush");
  Export<FlushSync>(env, exports, "flushSync");
  Export<WorkspaceBytes>(env, exports, "workspaceBytes");
  Export<ReserveWorkspace>(env, exports, "reserveWorkspace");
  Export<BeginRecording>(env, exports, "beginRecording");
  Export<EndRecording>(env, exports, "endRecording");
  Export<Replay>(env, exports, "replay");
  Export<DisposeRecording>(env, exports, "disposeRecording");
  Export<Launches>(env, exports, "launches");
}

}  // namespace lowrank::addon
