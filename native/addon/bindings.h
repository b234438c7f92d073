/// The raw functions that `lib/core/binding.ts` calls, one group a file.
#pragma once

#include <napi.h>

#include <exception>
#include <new>

namespace lowrank::addon {

void RegisterTensors(Napi::Env env, Napi::Object exports);   // tensors.cpp
void RegisterTransfer(Napi::Env env, Napi::Object exports);  // transfer.cpp
void RegisterOps(Napi::Env env, Napi::Object exports);       // ops.cpp
void RegisterWeights(Napi::Env env, Napi::Object exports);   // weights.cpp
void RegisterDevices(Napi::Env env, Napi::Object exports);   // devices.cpp

/// `kFunction`, with everything that it may throw as a JavaScript error with a stable code.
template <Napi::Value (*kFunction)(const Napi::CallbackInfo&)>
Napi::Value Guarded(const Napi::CallbackInfo& info) {
  try {
    return kFunction(info);
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    napi_throw_error(info.Env(), "ERR_OOM", "no memory left on the host");
  } catch (const std::exception& error) {
    napi_throw_error(info.Env(), "ERR_COMPUTE", error.what());
  }
  return Napi::Value();
}

template <Napi::Value (*kFunction)(const Napi::CallbackInfo&)>
void Export(Napi::Env env, Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New(env, Guarded<kFunction>, name));
}

}  // namespace lowrank::addon
