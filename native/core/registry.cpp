#include "native/core/registry.h"

namespace lowrank {
namespace {

struct Row {
  const char* device;
  Backend* (*create)();
};

constexpr Row kRows[] = {
    {"cpu", CpuBackend},
    {"reference", ReferenceBackend},
};

}  // namespace

Status FindBackend(const std::string& device, Backend** backend) {
  std::string known;
  for (const Row& row : kRows) {
    if (device == row.device) {
      *backend = row.create();
      const DeviceInfo info = (*backend)->Info();
      if (info.available) return Status();
      return Status(Code::kDevice, "device: '" + device + "' is not available: " + info.reason);
    }
    known += (known.empty() ? "'" : ", '") + std::string(row.device) + "'";
  }
  return Refuse(Code::kDevice, "device", "device", "one of " + known, "'" + device + "'");
}

std::vector<DeviceInfo> ListDevices() {
  std::vector<DeviceInfo> devices;
  for (const Row& row : kRows) devices.push_back(row.create()->Info());
  return devices;
}

void SetThreads(int threads) { SetCpuThreads(threads); }
int GetThreads() { return GetCpuThreads(); }

}  // namespace lowrank
