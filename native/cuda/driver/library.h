/// Opens a driver: the system's `libcuda.so.1`, or the emulator that lies beside the addon.
#pragma once

#include <string>

#include "native/core/runtime/fork.h"
#include "native/core/status.h"
#include "native/cuda/driver/driver.h"

namespace lowrank::cuda {

/// The oldest interface that has every call: cuTensorMapEncodeTiled came with 12.0.
constexpr int kNeededVersion = 12000;

struct Library {
  std::string path;
  Driver driver;  // with the faults that LOWRANK_CUDA_FAULT asks for
  ForkMark opened_in;
  int version = 0;  // major · 1000 + minor · 10
  /// Of the emulator, else null: what its checks last found, in words; "" for nothing.
  const char* (*last_report)() = nullptr;
};

/// Opens the system's driver (or the library that LOWRANK_CUDA_LIBRARY names) and initialises it.
/// Fails with kDevice, saying why there is none, also where the driver does not answer within
/// LOWRANK_CUDA_TIMEOUT seconds (60). What was opened stays open.
Status OpenSystemDriver(Library* library);

/// Where the emulator lies: LOWRANK_EMULATOR is source (the default), check, ptx, or a path.
Status EmulatorPath(std::string* path);
Status OpenEmulator(const std::string& path, Library* library);

/// A file beside the addon, or beside the program where this is linked into one.
std::string BesideThis(const std::string& file);

/// "13.0"
std::string VersionText(int version);

/// "an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS, 700)"
std::string ErrorText(const Driver& driver, CUresult error);

/// Whether the context is beyond use after this: every later call returns the same.
bool IsFatal(CUresult error);

}  // namespace lowrank::cuda
