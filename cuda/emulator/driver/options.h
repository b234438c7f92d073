/// Options of the driver itself, beside those of the runtime. By environment
/// (LOWRANK_EMULATOR_<NAME>, read at cuInit) or lowrankEmulatorSetOption.
#pragma once

#include <cstddef>
#include <string>

#include "cuda/emulator/driver/device_model.h"

namespace lowrank::emu::driver {

struct DriverOptions {
  /// MEMORY=bytes of each device; 0: 16 GiB, or what the host has if that is less.
  size_t memory_bytes = 0;
  int devices = 1;  // DEVICES=n, 0 to 8
  /// STREAMS=eager|late: late holds an operation back until somebody waits for it.
  bool late_streams = false;
  /// TRACE=path: a line of JSON is appended there for each launch.
  std::string trace_path;
  /// RUN=0: kernels are told of in the trace and not run. Outputs stay as they were.
  bool run = true;
  /// MULTIPROCESSORS=n in place of the card's: with few of them, plans for a full device (large
  /// tiles, no cut of the contraction) are reached with small shapes. 0: the card's.
  int multiprocessors = 0;
  int driver_version = 13000;  // DRIVER=n: what cuDriverGetVersion answers
};

DriverOptions CurrentDriverOptions();
/// The card of the capability asked for, as the options change it.
DeviceModel CurrentModel();
/// A name of the driver's or of the runtime's, in lower case. False: no such name or value.
bool SetAnyOption(const std::string& name, const std::string& value);
/// False, and why in `error`, where a value is not understood.
bool AllOptionsFromEnvironment(std::string* error);
/// Are kernels checked (races, bounds, initialisation), by what was asked or how they were built?
bool Checking();
/// "source", "check" or "ptx": how the kernels in this library were made.
const char* Variant();

}  // namespace lowrank::emu::driver
