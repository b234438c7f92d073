/// The raw functions that `lib/core/binding.ts` calls, one group per file.
#pragma once

#include <napi.h>

#include <exception>
#include <new>

namespace lowrank::addon {

void RegisterTensors(Napi::Env env, Napi::Object exports);      // tensors.cpp
void RegisterTransfer(Napi::Env env, Napi::Object exports);     // transfer.cpp
void RegisterOps(Napi::Env env, Napi::Object exports);          // ops.cpp
void RegisterBorrowed(Napi::Env env, Napi::Object exports);     // borrowed/borrowed.cpp
void RegisterLoraParts(Napi::Env env, Napi::Object exports);    // lora_parts.cpp
void RegisterGrouped(Napi::Env env, Napi::Object exports);      // grouped.cpp
void RegisterElementwise(Napi::Env env, Napi::Object exports);  // elementwise.cpp
void RegisterFeatures(Napi::Env env, Napi::Object exports);     // features.cpp
void RegisterExperts(Napi::Env env, Napi::Object exports);      // experts.cpp
void RegisterAttention(Napi::Env env, Napi::Object exports);    // attention.cpp
void RegisterModelOps(Napi::Env env, Napi::Object exports);     // model_ops.cpp
void RegisterOptimizer(Napi::Env env, Napi::Object exports);    // optimizer.cpp
void RegisterWeights(Napi::Env env, Napi::Object exports);      // weights/weights.cpp
void RegisterPlanes(Napi::Env env, Napi::Object exports);       // weights/planes.cpp
void RegisterBitFields(Napi::Env env, Napi::Object exports);    // weights/bit_fields.cpp
void RegisterStreams(Napi::Env env, Napi::Object exports);      // streams.cpp
void RegisterDevices(Napi::Env env, Napi::Object exports);      // devices.cpp
void RegisterExplain(Napi::Env env, Napi::Object exports);      // explain.cpp

/// Calls `kFunction` and turns everything that it throws into a JavaScript error with a stable
/// code. The wrapper of node-addon-api would build its argument list outside any handler that knows
/// our exceptions.
template <Napi::Value (*kFunction)(const Napi::CallbackInfo&)>
napi_value Entry(napi_env env, napi_callback_info raw) {
  try {
    return kFunction(Napi::CallbackInfo(env, raw));
  } catch (const Napi::Error& error) {
    error.ThrowAsJavaScriptException();
  } catch (const std::bad_alloc&) {
    napi_throw_error(env, "ERR_OOM", "no memory left on the host");
  } catch (const std::exception& error) {
    napi_throw_error(env, "ERR_COMPUTE", error.what());
  }
  return nullptr;
}

template <Napi::Value (*kFunction)(const Napi::CallbackInfo&)>
void Export(Napi::Env env, Napi::Object exports, const char* name) {
  napi_value function = nullptr;
  const napi_status status =
      napi_create_function(env, name, NAPI_AUTO_LENGTH, Entry<kFunction>, nullptr, &function);
  if (status != napi_ok) throw Napi::Error::New(env);
  exports.Set(name, Napi::Value(env, function));
}

}  // namespace lowrank::addon
