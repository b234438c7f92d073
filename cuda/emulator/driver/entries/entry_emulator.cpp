/// The emulator's own functions.
#include <string>

#include "cuda/emulator/driver/entries/exports.h"
#include "cuda/emulator/driver/launch.h"
#include "cuda/emulator/driver/options.h"

namespace {

/// Text that stays until this thread asks again.
const char* Keep(std::string text) {
  static thread_local std::string kept;
  kept = std::move(text);
  return kept.c_str();
}

}  // namespace

int lowrankEmulatorSetOption(const char* name, const char* value) {
  if (name == nullptr || value == nullptr) return -1;
  return lowrank::emu::driver::SetAnyOption(name, value) ? 0 : -1;
}

const char* lowrankEmulatorLastReport() { return Keep(lowrank::emu::driver::LastReport()); }

const char* lowrankEmulatorCounters() { return Keep(lowrank::emu::driver::CountersJson()); }

void lowrankEmulatorResetCounters() { lowrank::emu::driver::ResetCounters(); }

const char* lowrankEmulatorKernels() { return Keep(lowrank::emu::driver::KernelsJson()); }
