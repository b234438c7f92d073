/// Bugs on purpose, one a function: a sanitizer run counts only after it has reported each of them.
/// Built beside the addon in sanitizer builds, with the same flags.
#include <napi.h>

#include <cstdint>
#include <cstdlib>
#include <thread>

namespace {

// Through volatile pointers, so that the compiler neither sees nor removes the bug.
Napi::Value OverRead(const Napi::CallbackInfo& info) {
  volatile uint8_t* bytes = static_cast<uint8_t*>(std::malloc(24));
  const uint8_t past = bytes[24];
  std::free(const_cast<uint8_t*>(bytes));
  return Napi::Number::New(info.Env(), past);
}

/// One byte past a JavaScript array.
Napi::Value OverReadArray(const Napi::CallbackInfo& info) {
  const Napi::Uint8Array array = info[0].As<Napi::Uint8Array>();
  const volatile uint8_t* bytes = array.Data();
  return Napi::Number::New(info.Env(), bytes[array.ByteLength()]);
}

Napi::Value UseAfterFree(const Napi::CallbackInfo& info) {
  volatile uint8_t* bytes = static_cast<uint8_t*>(std::malloc(24));
  std::free(const_cast<uint8_t*>(bytes));
  return Napi::Number::New(info.Env(), bytes[3]);
}

Napi::Value Leak(const Napi::CallbackInfo& info) {
  volatile uint8_t* bytes = static_cast<uint8_t*>(std::malloc(4321));
  bytes[0] = 1;
  bytes = nullptr;
  return info.Env().Undefined();
}

Napi::Value Race(const Napi::CallbackInfo& info) {
  volatile int64_t count = 0;
  auto add = [&count] {
    for (int i = 0; i < 10000; ++i) count = count + 1;
  };
  std::thread other(add);
  add();
  other.join();
  return Napi::Number::New(info.Env(), static_cast<double>(count));
}

/// NaN to an integer.
Napi::Value FloatCast(const Napi::CallbackInfo& info) {
  volatile float nan = __builtin_nanf("");
  return Napi::Number::New(info.Env(), static_cast<int32_t>(nan));
}

Napi::Value Overflow(const Napi::CallbackInfo& info) {
  volatile int32_t big = INT32_MAX;
  return Napi::Number::New(info.Env(), big + 1);
}

Napi::Value Misaligned(const Napi::CallbackInfo& info) {
  alignas(8) volatile uint8_t bytes[16] = {};
  volatile uintptr_t address = reinterpret_cast<uintptr_t>(bytes) + 1;
  return Napi::Number::New(info.Env(), *reinterpret_cast<volatile int32_t*>(address));
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  exports.Set("overRead", Napi::Function::New(env, OverRead));
  exports.Set("overReadArray", Napi::Function::New(env, OverReadArray));
  exports.Set("useAfterFree", Napi::Function::New(env, UseAfterFree));
  exports.Set("leak", Napi::Function::New(env, Leak));
  exports.Set("race", Napi::Function::New(env, Race));
  exports.Set("floatCast", Napi::Function::New(env, FloatCast));
  exports.Set("overflow", Napi::Function::New(env, Overflow));
  exports.Set("misaligned", Napi::Function::New(env, Misaligned));
  return exports;
}

}  // namespace

NODE_API_MODULE(sanitizer_plant, Init)
