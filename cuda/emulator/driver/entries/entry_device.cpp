/// Driver calls on the driver itself, devices and contexts.
#include <cstdio>
#include <cstring>

#include "cuda/emulator/driver/entries/error_text.h"
#include "cuda/emulator/driver/entries/exports.h"
#include "cuda/emulator/driver/options.h"
#include "cuda/emulator/driver/state.h"

namespace lowrank::cuda {

using emu::driver::ContextPtr;
using emu::driver::ContextStack;
using emu::driver::CurrentDriverOptions;
using emu::driver::Device;
using emu::driver::EnterContext;
using emu::driver::EnterDriver;
using emu::driver::State;

namespace {

/// The start of a call about a device.
CUresult EnterDevice(CUdevice ordinal, Device** device) {
  if (const int result = EnterDriver(); result != 0) return result;
  *device = State::Get().FindDevice(ordinal);
  return *device == nullptr ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

CUresult CheckContextHandle(CUcontext context) {
  if (context == nullptr || State::Get().contexts.Find(context) != nullptr) return CUDA_SUCCESS;
  return CUDA_ERROR_INVALID_CONTEXT;
}

}  // namespace

CUresult cuInit(unsigned flags) {
  return flags != 0 ? CUDA_ERROR_INVALID_VALUE : State::Get().Init();
}

CUresult cuDriverGetVersion(int* version) {
  if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *version = CurrentDriverOptions().driver_version;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** text) {
  if (text == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *text = emu::driver::ErrorName(error);
  return *text == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  if (text == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *text = emu::driver::ErrorText(error);
  return *text == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
  if (const int result = EnterDriver(); result != 0) return result;
  if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *count = State::Get().device_count();
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  Device* found = nullptr;
  if (const CUresult result = EnterDevice(ordinal, &found); result != 0) return result;
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *device = found->ordinal;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  Device* found = nullptr;
  if (const CUresult result = EnterDevice(device, &found); result != 0) return result;
  if (name == nullptr || length < 1) return CUDA_ERROR_INVALID_VALUE;
  std::snprintf(name, static_cast<size_t>(length), "lowrank CUDA emulator (%s)",
                emu::driver::Variant());
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  Device* found = nullptr;
  if (const CUresult result = EnterDevice(device, &found); result != 0) return result;
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const auto model = emu::driver::CurrentModel();
  return emu::driver::DeviceAttribute(model, attribute, value) ? CUDA_SUCCESS
                                                               : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  Device* found = nullptr;
  if (const CUresult result = EnterDevice(device, &found); result != 0) return result;
  if (bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *bytes = emu::driver::MemoryOfDevice();
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  Device* found = nullptr;
  if (const CUresult result = EnterDevice(device, &found); result != 0) return result;
  if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return State::Get().Retain(found, context);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  Device* found = nullptr;
  if (const CUresult result = EnterDevice(device, &found); result != 0) return result;
  return State::Get().Release(found, false);
}

CUresult cuDevicePrimaryCtxReset_v2(CUdevice device) {
  Device* found = nullptr;
  if (const CUresult result = EnterDevice(device, &found); result != 0) return result;
  return State::Get().Release(found, true);
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  Device* found = nullptr;
  if (const CUresult result = EnterDevice(device, &found); result != 0) return result;
  if (flags == nullptr || active == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const std::lock_guard<std::mutex> lock(found->mutex);
  *flags = 0;
  *active = found->primary != nullptr ? 1 : 0;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice device) {
  Device* found = nullptr;
  if (const CUresult result = EnterDevice(device, &found); result != 0) return result;
  if (pool == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const std::lock_guard<std::mutex> lock(found->mutex);
  if (found->primary == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  *pool = found->default_pool;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  if (const int result = EnterDriver(); result != 0) return result;
  if (const CUresult result = CheckContextHandle(context); result != 0) return result;
  std::vector<CUcontext>& stack = ContextStack();
  if (context == nullptr) {
    if (!stack.empty()) stack.pop_back();
  } else if (stack.empty()) {
    stack.push_back(context);
  } else {
    stack.back() = context;
  }
  return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext context) {
  if (const int result = EnterDriver(); result != 0) return result;
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (const CUresult result = CheckContextHandle(context); result != 0) return result;
  ContextStack().push_back(context);
  return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  if (const int result = EnterDriver(); result != 0) return result;
  std::vector<CUcontext>& stack = ContextStack();
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (context != nullptr) *context = stack.back();
  stack.pop_back();
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  if (const int result = EnterDriver(); result != 0) return result;
  if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *context = ContextStack().empty() ? nullptr : ContextStack().back();
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
  ContextPtr context;
  if (const int result = EnterContext(&context); context == nullptr) return result;
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *device = context->device;
  return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize() {
  ContextPtr context;
  if (const int result = EnterContext(&context); result != 0) return result;
  if (const int result = emu::driver::RefuseDuringCapture(); result != 0) return result;
  context->streams->WaitAll();
  context->memory->TrimToThresholds();
  return context->streams->fault();
}

}  // namespace lowrank::cuda
