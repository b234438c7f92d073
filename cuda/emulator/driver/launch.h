/// Running a kernel for a stream, and keeping what came of it: findings, counters, the trace.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "cuda/emulator/driver/memory.h"
#include "cuda/emulator/runtime.h"

namespace lowrank::emu::driver {

/// A launch with its parameters copied: the caller's may change once the call has returned.
class OwnedLaunch {
 public:
  OwnedLaunch(const Launch& launch, std::shared_ptr<LaunchChain> chain,
              std::shared_ptr<Memory> memory);

  /// A CUresult: 0, or the failure that the context keeps from now on.
  int Run() const;

 private:
  struct alignas(128) ParamBlock {  // tensor maps inside are 64-byte aligned
    unsigned char bytes[128];
  };
  Launch launch_;
  std::vector<ParamBlock> params_;
  std::shared_ptr<LaunchChain> chain_;
  std::shared_ptr<Memory> memory_;
};

/// A fault that no kernel made: a copy to memory that is not there any more.
int ReportCopyFault(const std::string& text);

/// The findings of the last launch that had any, as text; empty where none had.
std::string LastReport();
/// Counters of all launches since ResetCounters(), as JSON.
std::string CountersJson();
void ResetCounters();
/// The kernels in this library, as JSON.
std::string KernelsJson();

}  // namespace lowrank::emu::driver
