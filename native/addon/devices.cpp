/// devices(), one device, memoryUsage(), threads.
#include <cmath>
#include <limits>

#include "native/addon/bindings.h"
#include "native/addon/handles.h"
#include "native/core/runtime/memory_budget.h"
#include "native/core/runtime/registry.h"

namespace lowrank::addon {
namespace {

Napi::Array StringArray(Napi::Env env, const std::vector<std::string>& strings) {
  Napi::Array array = Napi::Array::New(env, strings.size());
  for (size_t i = 0; i < strings.size(); ++i) array.Set(static_cast<uint32_t>(i), strings[i]);
  return array;
}

Napi::Object DeviceRow(Napi::Env env, const DeviceInfo& device) {
  Napi::Object row = Napi::Object::New(env);
  row.Set("device", device.device);
  row.Set("available", device.available);
  if (!device.reason.empty()) row.Set("reason", device.reason);
  row.Set("name", device.name);
  row.Set("features", StringArray(env, device.features));
  row.Set("memory", static_cast<double>(device.memory_bytes));
  if (!device.isa.empty()) row.Set("isa", device.isa);
  if (!device.better_isas.empty()) row.Set("betterIsas", StringArray(env, device.better_isas));
  if (device.sm != 0) row.Set("sm", device.sm);
  if (!device.driver.empty()) row.Set("driver", device.driver);
  return row;
}

Napi::Value Devices(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::vector<DeviceInfo> devices = ListDevices();
  Napi::Array list = Napi::Array::New(env, devices.size());
  for (size_t i = 0; i < devices.size(); ++i) {
    list.Set(static_cast<uint32_t>(i), DeviceRow(env, devices[i]));
  }
  return list;
}

/// The row of one device; null if there is none of that name.
Napi::Value Device(const Napi::CallbackInfo& info) {
  Backend* backend = nullptr;
  if (!FindKnownBackend(StringArg(info[0], "device", "device"), &backend).ok()) {
    return info.Env().Null();
  }
  return DeviceRow(info.Env(), backend->Info());
}

Napi::Value DeviceNames(const Napi::CallbackInfo& info) {
  return StringArray(info.Env(), KnownDeviceNames());
}

Napi::Value StartDevice(const Napi::CallbackInfo& info) {
  Backend* backend = nullptr;
  ThrowIfError(info.Env(), FindBackend(StringArg(info[0], "device", "device"), &backend));
  ThrowIfError(info.Env(), backend->Start());
  return info.Env().Undefined();
}

/// A device that may be lost: everything that it can still report is reported.
Backend* KnownBackendArg(const Napi::Value& value) {
  Backend* backend = nullptr;
  ThrowIfError(value.Env(), FindKnownBackend(StringArg(value, "device", "device"), &backend));
  return backend;
}

Napi::Value Memory(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const MemoryUsage usage = KnownBackendArg(info[0])->Memory();
  Napi::Object row = Napi::Object::New(env);
  row.Set("liveBytes", static_cast<double>(usage.live_bytes));
  row.Set("peakBytes", static_cast<double>(usage.peak_bytes));
  row.Set("liveTensors", static_cast<double>(usage.live_tensors));
  return row;
}

Napi::Value ResetPeak(const Napi::CallbackInfo& info) {
  KnownBackendArg(info[0])->ResetPeak();
  return info.Env().Undefined();
}

/// Infinity: no limit.
Napi::Value SetMemoryBudget(const Napi::CallbackInfo& info) {
  constexpr double kLargest = 9007199254740991.0;
  const double bytes = NumberArg(info[1], "setMemoryBudget", "bytes");
  const bool none = bytes == std::numeric_limits<double>::infinity();
  if (!none && !(bytes >= 0 && bytes <= kLargest && bytes == std::floor(bytes))) {
    ThrowIfError(info.Env(), Refuse(Code::kValue, "setMemoryBudget", "bytes",
                                    "an integer from 0 to 2^53 - 1", std::to_string(bytes)));
  }
  KnownBackendArg(info[0])->SetMemoryBudget(none ? kNoMemoryBudget : static_cast<int64_t>(bytes));
  return info.Env().Undefined();
}

Napi::Value SetThreadCount(const Napi::CallbackInfo& info) {
  const double threads = NumberArg(info[0], "setThreads", "n");
  if (!(threads >= 1 && threads <= 256 && threads == static_cast<int>(threads))) {
    ThrowIfError(info.Env(), Refuse(Code::kValue, "setThreads", "n", "an integer from 1 to 256",
                                    std::to_string(threads)));
  }
  SetThreads(static_cast<int>(threads));
  return info.Env().Undefined();
}

Napi::Value ThreadCount(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), GetThreads());
}

}  // namespace

void RegisterDevices(Napi::Env env, Napi::Object exports) {
  Export<Devices>(env, exports, "devices");
  Export<Device>(env, exports, "device");
  Export<DeviceNames>(env, exports, "deviceNames");
  Export<StartDevice>(env, exports, "startDevice");
  Export<Memory>(env, exports, "memoryUsage");
  Export<ResetPeak>(env, exports, "resetPeak");
  Export<SetMemoryBudget>(env, exports, "setMemoryBudget");
  Export<SetThreadCount>(env, exports, "setThreads");
  Export<ThreadCount>(env, exports, "threads");
}

}  // namespace lowrank::addon
