#include <cstdlib>
#include <cstring>
#include <mutex>

#include "cuda/emulator/runtime.h"

namespace lowrank::emu {
namespace {

Options& Current() {
  static auto* options = new Options;
  return *options;
}

bool ParseNumber(const char* text, uint64_t limit, uint64_t* value) {
  if (*text < '0' || *text > '9') return false;
  char* end = nullptr;
  *value = std::strtoull(text, &end, 10);
  return *end == 0 && *value <= limit;
}

bool ParseFlag(const char* text, bool* value) {
  if (std::strcmp(text, "0") != 0 && std::strcmp(text, "1") != 0) return false;
  *value = *text == '1';
  return true;
}

bool Set(Options* options, const char* name, const char* value) {
  const auto is = [](const char* a, const char* b) { return std::strcmp(a, b) == 0; };
  uint64_t number = 0;
  bool flag = false;
  if (is(name, "order")) {
    if (is(value, "forward")) {
      options->order = Order::kForward;
    } else if (is(value, "reverse")) {
      options->order = Order::kReverse;
    } else if (is(value, "random")) {
      options->order = Order::kRandom;
    } else {
      return false;
    }
    return true;
  }
  if (is(name, "seed")) return ParseNumber(value, UINT64_MAX, &options->seed);
  if (is(name, "copies")) {
    if (!is(value, "late") && !is(value, "early")) return false;
    options->copies = is(value, "late") ? Copies::kLate : Copies::kEarly;
    return true;
  }
  if (is(name, "check")) {
    if (is(value, "-1")) {
      options->check = -1;
      return true;
    }
    if (!ParseFlag(value, &flag)) return false;
    options->check = flag ? 1 : 0;
    return true;
  }
  if (is(name, "counters")) return ParseFlag(value, &options->counters);
  if (is(name, "print")) return ParseFlag(value, &options->print);
  if (is(name, "workers")) {
    if (!ParseNumber(value, 1024, &number)) return false;
    options->workers = static_cast<int>(number);
    return true;
  }
  if (is(name, "sm")) {
    if (!ParseNumber(value, 999, &number)) return false;
    options->sm = static_cast<int>(number);
    return true;
  }
  if (is(name, "report")) {
    options->report_path = value;
    return true;
  }
  return false;
}

constexpr struct {
  const char* name;
  const char* variable;
} kVariables[] = {
    {"order", "LOWRANK_EMULATOR_ORDER"},
    {"seed", "LOWRANK_EMULATOR_SEED"},
    {"copies", "LOWRANK_EMULATOR_COPIES"},
    {"check", "LOWRANK_EMULATOR_CHECK"},
    {"counters", "LOWRANK_EMULATOR_COUNTERS"},
    {"workers", "LOWRANK_EMULATOR_WORKERS"},
    {"sm", "LOWRANK_EMULATOR_SM"},
    {"report", "LOWRANK_EMULATOR_REPORT"},
    {"print", "LOWRANK_EMULATOR_PRINT"},
};

}  // namespace

const Options& CurrentOptions() { return Current(); }
void SetOptions(const Options& options) { Current() = options; }

bool SetOption(const char* name, const char* value) { return Set(&Current(), name, value); }

bool OptionsFromEnvironment(std::string* error) {
  Options options;
  for (const auto& variable : kVariables) {
    const char* value = std::getenv(variable.variable);
    if (value == nullptr || *value == 0) continue;
    if (!Set(&options, variable.name, value)) {
      *error = std::string(variable.variable) + " is not understood: " + value;
      return false;
    }
  }
  Current() = options;
  return true;
}

}  // namespace lowrank::emu
