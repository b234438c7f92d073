/// Every symbol that the library exports: the driver calls that the backend makes (declared from
/// its own table, so a definition that differs does not compile), others that programs over the
/// driver commonly make, and the emulator's own.
#pragma once

#include "native/cuda/driver/driver.h"

#define LOWRANK_EXPORT extern "C" __attribute__((visibility("default")))

namespace lowrank::cuda {

#define LOWRANK_EXPORT_CALL(symbol, parameters) LOWRANK_EXPORT CUresult symbol parameters;
LOWRANK_FOR_EACH_CUDA_CALL(LOWRANK_EXPORT_CALL)
#undef LOWRANK_EXPORT_CALL

LOWRANK_EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice device);
LOWRANK_EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active);
LOWRANK_EXPORT CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice device);
LOWRANK_EXPORT CUresult cuCtxGetCurrent(CUcontext* context);
LOWRANK_EXPORT CUresult cuCtxGetDevice(CUdevice* device);
LOWRANK_EXPORT CUresult cuCtxSynchronize();
LOWRANK_EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y,
                                       unsigned grid_z, unsigned block_x, unsigned block_y,
                                       unsigned block_z, unsigned shared_bytes, CUstream stream,
                                       void** params, void** extra);
LOWRANK_EXPORT CUresult cuLaunchHostFunc(CUstream stream, void (*function)(void*), void* argument);
LOWRANK_EXPORT CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int priority);
LOWRANK_EXPORT CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute,
                                              void* value);
LOWRANK_EXPORT CUresult cuMemAllocAsync(CUdeviceptr* pointer, size_t bytes, CUstream stream);
LOWRANK_EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr target, const void* source, size_t bytes);
LOWRANK_EXPORT CUresult cuMemcpyDtoH_v2(void* target, CUdeviceptr source, size_t bytes);
LOWRANK_EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes);
LOWRANK_EXPORT CUresult cuMemsetD8_v2(CUdeviceptr target, unsigned char value, size_t count);

}  // namespace lowrank::cuda

/// Sets an option ("check", "order", "seed", "memory", ...) for what comes after. 0, or -1 for a
/// name or a value that is not known. The number of devices and their memory are fixed at cuInit.
LOWRANK_EXPORT int lowrankEmulatorSetOption(const char* name, const char* value);
/// What the last failing launch was found to do, with file and line; "" where none failed. The text
/// stays until this thread calls again.
LOWRANK_EXPORT const char* lowrankEmulatorLastReport();
/// JSON: the counters of all launches since the last reset, per source line and by name.
LOWRANK_EXPORT const char* lowrankEmulatorCounters();
LOWRANK_EXPORT void lowrankEmulatorResetCounters();
/// JSON: the kernels in this library.
LOWRANK_EXPORT const char* lowrankEmulatorKernels();
