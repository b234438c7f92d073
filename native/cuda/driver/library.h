/// Opens a driver: the system's `libcuda.so.1`, or the emulator that lies beside the addon.
#pragma once

#include <string>

#include "native/core/runtime/fork.h"
#include "native/core/status.h"
#include "native/cuda/driver/driver.h"

namespace lowrank::cuda {

/// The oldest driver version that has every call: cuTensorMapEncodeTiled came with 12.0.
constexpr int kNeededVersion = 12000;

struct Library {
  std::string path;
  Driver driver;  // with the faults of LOWRANK_CUDA_FAULT
  ForkMark opened_in;
  int version = 0;  // major · 1000 + minor · 10
  /// For the emulator, else null: what its checks last found, in words; "" if nothing.
  const char* (*last_report)() = nullptr;
};

/// Opens the system's driver (or the library that LOWRANK_CUDA_LIBRARY names) and initialises it.
/// Fails with kDevice and the reason if there is none, or if the driver does not answer within
/// LOWRANK_CUDA_TIMEOUT seconds (60). What was opened stays open.
Status OpenSystemDriver(Library* library);

/// Where the emulator is: LOWRANK_EMULATOR is source (the default), check, ptx, or a path.
Status EmulatorPath(std::string* path);
Status OpenEmulator(const std::string& path, Library* library);

/// A file beside the addon, or beside the program if this is linked into one.
std::string BesideThis(const std::string& file);

/// "13.0"
std::string VersionText(int version);

/// "an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS, 700)"
std::string ErrorText(const Driver& driver, CUresult error);

/// Whether the context is unusable after this error: every later call returns the same.
bool IsFatal(CUresult error);

}  // namespace lowrank::cuda
