#include "native/core/registry.h"

#include <atomic>
#include <iterator>

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

// What teardown may look at without starting a device.
std::atomic<Backend*> g_started[std::size(kRows)];

Backend* Start(size_t row) {
  Backend* backend = kRows[row].create();
  g_started[row].store(backend, std::memory_order_release);
  return backend;
}

}  // namespace

Status FindBackend(const std::string& device, Backend** backend) {
  std::string known;
  for (size_t i = 0; i < std::size(kRows); ++i) {
    const Row& row = kRows[i];
    if (device == row.device) {
      *backend = Start(i);
      return (*backend)->Ready();
    }
    known += (known.empty() ? "'" : ", '") + std::string(row.device) + "'";
  }
  return Refuse(Code::kDevice, "device", "device", "one of " + known, "'" + device + "'");
}

std::vector<DeviceInfo> ListDevices() {
  std::vector<DeviceInfo> devices;
  for (size_t i = 0; i < std::size(kRows); ++i) devices.push_back(Start(i)->Info());
  return devices;
}

void DropQueued(const CancelToken* cancel) {
  for (const std::atomic<Backend*>& started : g_started) {
    Backend* backend = started.load(std::memory_order_acquire);
    if (backend != nullptr) backend->DropQueued(cancel);
  }
}

void SetThreads(int threads) { SetCpuThreads(threads); }
int GetThreads() { return GetCpuThreads(); }

}  // namespace lowrank
