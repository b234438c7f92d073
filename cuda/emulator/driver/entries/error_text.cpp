#include "cuda/emulator/driver/entries/error_text.h"

namespace lowrank::emu::driver {
namespace {

struct Row {
  int result;
  const char* name;
  const char* text;
};

constexpr Row kRows[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "an argument is out of its range"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "cuInit was not called"},
    {4, "CUDA_ERROR_DEINITIALIZED", "the driver is shutting down"},
    {34, "CUDA_ERROR_STUB_LIBRARY", "the library is a stub"},
    {35, "CUDA_ERROR_INSUFFICIENT_DRIVER", "the driver is too old"},
    {36, "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER", "the call needs a newer driver"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "the device is busy or not available"},
    {100, "CUDA_ERROR_NO_DEVICE", "no device was found"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "no device has this ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "the kernel image is malformed"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "no valid context is current"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "the image has no code for this device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "an uncorrectable memory error"},
    {218, "CUDA_ERROR_INVALID_PTX", "the PTX does not compile"},
    {221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "the PTX compiler was not found"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the PTX is newer than the driver"},
    {304, "CUDA_ERROR_OPERATING_SYSTEM", "a call of the operating system failed"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "the handle is not of a live object"},
    {401, "CUDA_ERROR_ILLEGAL_STATE", "the object is in no state for this call"},
    {500, "CUDA_ERROR_NOT_FOUND", "no such symbol"},
    {600, "CUDA_ERROR_NOT_READY", "not finished yet"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "a kernel touched memory that is not its own"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "the launch needs more than the device has"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "a kernel ran for too long"},
    {708, "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE", "the primary context is in use"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "the context was destroyed"},
    {710, "CUDA_ERROR_ASSERT", "a check failed inside a kernel"},
    {714, "CUDA_ERROR_HARDWARE_STACK_ERROR", "a kernel's stack overflowed"},
    {715, "CUDA_ERROR_ILLEGAL_INSTRUCTION", "an illegal instruction"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "an access that is not aligned to its size"},
    {717, "CUDA_ERROR_INVALID_ADDRESS_SPACE", "an access in the wrong address space"},
    {718, "CUDA_ERROR_INVALID_PC", "a jump to no code"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "a kernel failed"},
    {800, "CUDA_ERROR_NOT_PERMITTED", "not permitted here"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "not supported"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "the system is not ready"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "kernel module and driver library differ"},
    {804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "compatibility mode is not for this device"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "not possible while a stream is captured"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "an earlier error spoilt the capture"},
    {902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "two captures would become one"},
    {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "the capture did not begin on this stream"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "a stream was not joined to the captured one"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "the capture would depend on work outside it"},
    {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "the null stream would become part of a capture"},
    {907, "CUDA_ERROR_CAPTURED_EVENT", "the event was recorded in a capture"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "the capture began on another thread"},
    {912, "CUDA_ERROR_INVALID_CLUSTER_SIZE", "the device has no clusters of this size"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const Row* Find(int result) {
  for (const Row& row : kRows) {
    if (row.result == result) return &row;
  }
  return nullptr;
}

}  // namespace

const char* ErrorName(int result) {
  const Row* row = Find(result);
  return row == nullptr ? nullptr : row->name;
}

const char* ErrorText(int result) {
  const Row* row = Find(result);
  return row == nullptr ? nullptr : row->text;
}

}  // namespace lowrank::emu::driver
