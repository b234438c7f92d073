/// The raw functions that `lib/core/binding.ts` calls, one group a file.
#pragma once

#include <napi.h>

namespace lowrank::addon {

void RegisterTensors(Napi::Env env, Napi::Object exports);   // tensors.cpp
void RegisterTransfer(Napi::Env env, Napi::Object exports);  // transfer.cpp
void RegisterOps(Napi::Env env, Napi::Object exports);       // ops.cpp
void RegisterWeights(Napi::Env env, Napi::Object exports);   // weights.cpp
void RegisterDevices(Napi::Env env, Napi::Object exports);   // devices.cpp

inline void Export(Napi::Env env, Napi::Object exports, const char* name,
                   Napi::Value (*function)(const Napi::CallbackInfo&)) {
  exports.Set(name, Napi::Function::New(env, function, name));
}

}  // namespace lowrank::addon
