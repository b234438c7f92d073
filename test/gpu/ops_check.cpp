/// Ops on a GPU at sizes that no emulator reaches.
///
///   gpu_ops_check [--device LIBRARY] [--tiny] [--plant]
///
/// The GPU is the system's driver with lowrank.fatbin beside this program; --device names an
/// emulator in its place, with --tiny for sizes that it can do. One line of JSON a check. Exit
/// status: 0, 1 where a check fails, 2 where nothing could be run.
#include "test/gpu/ops_check.h"

#include <cstring>

namespace lowrank::cuda {

void OpsCheck::Report(const std::string& check, bool passed, const std::string& facts) {
  ++checks;
  failures += passed ? 0 : 1;
  std::printf("{\"check\":\"%s\",\"passed\":%s%s}\n", check.c_str(), passed ? "true" : "false",
              facts.c_str());
  std::fflush(stdout);
}

void OpsCheck::Report(const std::string& check, const Status& status) {
  Report(check, status.ok(),
         status.ok() ? "" : ",\"error\":\"" + JsonText(status.message()) + "\"");
}

void OpsCheck::Skip(const std::string& check, const std::string& reason) {
  std::printf("{\"check\":\"%s\",\"skipped\":\"%s\"}\n", check.c_str(), JsonText(reason).c_str());
  std::fflush(stdout);
}

}  // namespace lowrank::cuda

int main(int count, char** values) {
  using namespace lowrank::cuda;
  OpsCheck check;
  const char* library = nullptr;
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(values[i], "--device") == 0 && i + 1 < count) library = values[++i];
    if (std::strcmp(values[i], "--tiny") == 0) check.tiny = true;
    if (std::strcmp(values[i], "--plant") == 0) check.plant = true;
  }
  Machine machine;
  machine.name = "the device";
  const lowrank::Status status = StartMachine(library, "lowrank.fatbin", &machine);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 2;
  }
  PrintMachine(machine);
  check.machine = &machine;
  CheckRepeats(&check);
  CheckLarge(&check);
  return check.failures == 0 && check.checks > 0 ? 0 : 1;
}
