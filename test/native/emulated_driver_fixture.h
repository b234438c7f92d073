// What the checks of the emulated driver share: the library opened as a program opens libcuda, one
// context, and a count of what failed.
#pragma once

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "native/cuda/driver/driver.h"
#include "test/native/emulated_driver_params.h"

namespace lowrank::test {

using namespace cuda;  // NOLINT: the names of the interface

inline int failures = 0;
inline int checks = 0;
inline const char* current_case = "";

inline void Fail(const char* file, int line, const std::string& text) {
  ++failures;
  std::printf("FAILED %s (%s:%d): %s\n", current_case, file, line, text.c_str());
}

#define EXPECT(condition)                                                    \
  do {                                                                       \
    ++checks;                                                                \
    if (!(condition)) ::lowrank::test::Fail(__FILE__, __LINE__, #condition); \
  } while (false)
#define EXPECT_RESULT(expected, call)                                                              \
  do {                                                                                             \
    ++checks;                                                                                      \
    const int lowrank_result_ = (call);                                                            \
    if (lowrank_result_ != (expected)) {                                                           \
      ::lowrank::test::Fail(                                                                       \
          __FILE__, __LINE__,                                                                      \
          #call " gave " + std::to_string(lowrank_result_) + ", not " + std::to_string(expected)); \
    }                                                                                              \
  } while (false)
#define EXPECT_OK(call) EXPECT_RESULT(0, call)

/// Calls that are not in the backend's table.
struct MoreCalls {
  CUresult (*cuDevicePrimaryCtxReset_v2)(CUdevice);
  CUresult (*cuDevicePrimaryCtxGetState)(CUdevice, unsigned*, int*);
  CUresult (*cuDeviceGetDefaultMemPool)(CUmemoryPool*, CUdevice);
  CUresult (*cuCtxGetCurrent)(CUcontext*);
  CUresult (*cuCtxGetDevice)(CUdevice*);
  CUresult (*cuCtxSynchronize)();
  CUresult (*cuLaunchKernel)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                             unsigned, CUstream, void**, void**);
  CUresult (*cuLaunchHostFunc)(CUstream, void (*)(void*), void*);
  CUresult (*cuMemPoolGetAttribute)(CUmemoryPool, CUmemPool_attribute, void*);
  CUresult (*cuMemAllocAsync)(CUdeviceptr*, size_t, CUstream);
  CUresult (*cuMemcpyHtoD_v2)(CUdeviceptr, const void*, size_t);
  CUresult (*cuMemcpyDtoH_v2)(void*, CUdeviceptr, size_t);
  CUresult (*cuMemcpyDtoD_v2)(CUdeviceptr, CUdeviceptr, size_t);
  CUresult (*cuMemsetD8_v2)(CUdeviceptr, unsigned char, size_t);
  int (*lowrankEmulatorSetOption)(const char*, const char*);
  const char* (*lowrankEmulatorLastReport)();
  const char* (*lowrankEmulatorCounters)();
  void (*lowrankEmulatorResetCounters)();
  const char* (*lowrankEmulatorKernels)();
};

inline Driver d;
inline MoreCalls more;

template <typename Function>
bool LookUp(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function == nullptr) std::printf("FAILED: the library lacks %s\n", name);
  return *function != nullptr;
}

inline bool OpenLibrary(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::printf("FAILED: %s\n", dlerror());
    return false;
  }
  bool found = true;
#define LOWRANK_LOOK_UP(symbol, parameters) found = LookUp(library, #symbol, &d.symbol) && found;
  LOWRANK_FOR_EACH_CUDA_CALL(LOWRANK_LOOK_UP)
#undef LOWRANK_LOOK_UP
#define LOWRANK_LOOK_UP(symbol) found = LookUp(library, #symbol, &more.symbol) && found;
  LOWRANK_LOOK_UP(cuDevicePrimaryCtxReset_v2)
  LOWRANK_LOOK_UP(cuDevicePrimaryCtxGetState)
  LOWRANK_LOOK_UP(cuDeviceGetDefaultMemPool)
  LOWRANK_LOOK_UP(cuCtxGetCurrent)
  LOWRANK_LOOK_UP(cuCtxGetDevice)
  LOWRANK_LOOK_UP(cuCtxSynchronize)
  LOWRANK_LOOK_UP(cuLaunchKernel)
  LOWRANK_LOOK_UP(cuLaunchHostFunc)
  LOWRANK_LOOK_UP(cuMemPoolGetAttribute)
  LOWRANK_LOOK_UP(cuMemAllocAsync)
  LOWRANK_LOOK_UP(cuMemcpyHtoD_v2)
  LOWRANK_LOOK_UP(cuMemcpyDtoH_v2)
  LOWRANK_LOOK_UP(cuMemcpyDtoD_v2)
  LOWRANK_LOOK_UP(cuMemsetD8_v2)
  LOWRANK_LOOK_UP(lowrankEmulatorSetOption)
  LOWRANK_LOOK_UP(lowrankEmulatorLastReport)
  LOWRANK_LOOK_UP(lowrankEmulatorCounters)
  LOWRANK_LOOK_UP(lowrankEmulatorResetCounters)
  LOWRANK_LOOK_UP(lowrankEmulatorKernels)
#undef LOWRANK_LOOK_UP
  return found;
}

inline void SetOption(const char* name, const char* value) {
  EXPECT(more.lowrankEmulatorSetOption(name, value) == 0);
}

/// The primary context of device 0, current, and ended with everything in it.
class Fixture {
 public:
  Fixture() {
    EXPECT_OK(d.cuDevicePrimaryCtxRetain(&context, 0));
    EXPECT_OK(d.cuCtxSetCurrent(context));
    EXPECT_OK(d.cuModuleLoadData(&module, "image"));
    EXPECT_OK(more.cuDeviceGetDefaultMemPool(&pool, 0));
  }
  ~Fixture() {
    d.cuCtxSetCurrent(nullptr);
    EXPECT_OK(more.cuDevicePrimaryCtxReset_v2(0));
  }
  Fixture(const Fixture&) = delete;
  Fixture& operator=(const Fixture&) = delete;

  CUfunction Kernel(const char* name) {
    CUfunction function = nullptr;
    EXPECT_OK(d.cuModuleGetFunction(&function, module, name));
    return function;
  }
  CUstream Stream(unsigned flags = CU_STREAM_NON_BLOCKING) {
    CUstream stream = nullptr;
    EXPECT_OK(d.cuStreamCreate(&stream, flags));
    return stream;
  }
  CUevent Event(unsigned flags = CU_EVENT_DEFAULT) {
    CUevent event = nullptr;
    EXPECT_OK(d.cuEventCreate(&event, flags));
    return event;
  }
  template <typename T>
  T* Memory(size_t elems, int fill = 0) {
    CUdeviceptr pointer = 0;
    EXPECT_OK(d.cuMemAlloc_v2(&pointer, elems * sizeof(T)));
    EXPECT_OK(more.cuMemsetD8_v2(pointer, static_cast<unsigned char>(fill), elems * sizeof(T)));
    EXPECT_OK(more.cuCtxSynchronize());
    return reinterpret_cast<T*>(pointer);
  }

  CUcontext context = nullptr;
  CUmodule module = nullptr;
  CUmemoryPool pool = nullptr;
};

inline CUdeviceptr Pointer(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

template <typename Params>
CUresult Launch(CUfunction function, CUstream stream, Params params, unsigned blocks = 1,
                unsigned threads = 32, unsigned shared_bytes = 0) {
  CUlaunchConfig config = {};
  config.gridDimX = blocks;
  config.gridDimY = config.gridDimZ = 1;
  config.blockDimX = threads;
  config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = shared_bytes;
  config.hStream = stream;
  void* arguments[] = {&params};
  return d.cuLaunchKernelEx(&config, function, arguments, nullptr);
}

template <typename T>
std::vector<T> ReadBack(const T* pointer, size_t elems) {
  std::vector<T> values(elems);
  EXPECT_OK(more.cuMemcpyDtoH_v2(values.data(), Pointer(pointer), elems * sizeof(T)));
  return values;
}

struct Case {
  const char* name;
  void (*body)();
};
std::vector<Case> StreamCases();
std::vector<Case> MemoryCases();
std::vector<Case> LaunchCases();

}  // namespace lowrank::test
