#include "cuda/emulator/driver/options.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>

#include "cuda/emulator/runtime.h"

namespace lowrank::emu::driver {
namespace {

struct Shared {
  std::mutex mutex;
  DriverOptions options;

  static Shared& Get() {
    static auto* const shared = new Shared;
    return *shared;
  }
};

bool ParseCount(const std::string& text, unsigned long long max, unsigned long long* value) {
  if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != text.npos) {
    return false;
  }
  *value = std::strtoull(text.c_str(), nullptr, 10);
  return *value <= max;
}

/// 1: set; 0: the name is not one of ours; -1: the value is not understood.
int SetOwn(const std::string& name, const std::string& value, DriverOptions* options) {
  unsigned long long number = 0;
  if (name == "memory") {
    if (!ParseCount(value, 1ull << 50, &number)) return -1;
    options->memory_bytes = static_cast<size_t>(number);
  } else if (name == "devices") {
    if (!ParseCount(value, 8, &number)) return -1;
    options->devices = static_cast<int>(number);
  } else if (name == "multiprocessors") {
    if (!ParseCount(value, 1024, &number)) return -1;
    options->multiprocessors = static_cast<int>(number);
  } else if (name == "driver") {
    if (!ParseCount(value, 1000000, &number)) return -1;
    options->driver_version = static_cast<int>(number);
  } else if (name == "streams") {
    if (value != "eager" && value != "late") return -1;
    options->late_streams = value == "late";
  } else if (name == "trace") {
    options->trace_path = value;
  } else if (name == "run") {
    if (!ParseCount(value, 1, &number)) return -1;
    options->run = number == 1;
  } else {
    return 0;
  }
  return 1;
}

constexpr struct {
  const char* name;
  const char* variable;
} kOwn[] = {
    {"memory", "LOWRANK_EMULATOR_MEMORY"}, {"devices", "LOWRANK_EMULATOR_DEVICES"},
    {"driver", "LOWRANK_EMULATOR_DRIVER"}, {"streams", "LOWRANK_EMULATOR_STREAMS"},
    {"trace", "LOWRANK_EMULATOR_TRACE"},   {"multiprocessors", "LOWRANK_EMULATOR_MULTIPROCESSORS"},
    {"run", "LOWRANK_EMULATOR_RUN"},
};

}  // namespace

DriverOptions CurrentDriverOptions() {
  Shared& shared = Shared::Get();
  const std::lock_guard<std::mutex> lock(shared.mutex);
  return shared.options;
}

DeviceModel CurrentModel() {
  DeviceModel model = ModelOf(CurrentOptions().sm);
  const int multiprocessors = CurrentDriverOptions().multiprocessors;
  if (multiprocessors > 0) model.sm_count = multiprocessors;
  return model;
}

bool SetAnyOption(const std::string& name, const std::string& value) {
  Shared& shared = Shared::Get();
  const std::lock_guard<std::mutex> lock(shared.mutex);
  const int own = SetOwn(name, value, &shared.options);
  return own != 0 ? own > 0 : SetOption(name.c_str(), value.c_str());
}

bool AllOptionsFromEnvironment(std::string* error) {
  if (!OptionsFromEnvironment(error)) return false;
  Shared& shared = Shared::Get();
  const std::lock_guard<std::mutex> lock(shared.mutex);
  for (const auto& own : kOwn) {
    const char* value = std::getenv(own.variable);
    if (value == nullptr || *value == 0) continue;
    if (SetOwn(own.name, value, &shared.options) < 0) {
      *error = std::string(own.variable) + " is not understood: " + value;
      return false;
    }
  }
  return true;
}

namespace {

/// The hooks that any kernel here has; kernels register before the first call.
Hooks MostHooks() {
  static const Hooks most = [] {
    Hooks hooks = Hooks::kNone;
    for (const Kernel* kernel : AllKernels()) hooks = std::max(hooks, kernel->hooks);
    return hooks;
  }();
  return most;
}

}  // namespace

bool Checking() {
  const int check = CurrentOptions().check;
  const Hooks hooks = MostHooks();
  return check != 0 && (hooks == Hooks::kAlways || (check == 1 && hooks == Hooks::kOnRequest));
}

const char* Variant() {
  switch (MostHooks()) {
    case Hooks::kAlways:
      return "check";
    case Hooks::kOnRequest:
      return "ptx";
    case Hooks::kNone:
      break;
  }
  return "source";
}

}  // namespace lowrank::emu::driver
